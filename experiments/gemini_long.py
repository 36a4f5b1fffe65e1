r"""Sequences of 131,072 tokens, split over devices, for 512 TPU v5p chips.

python -m gemini_jax.main --mode=plan --config=experiments/gemini_long.py \
      --workdir=runs/gemini_long --config.plan.topology=v5p:8x8x8
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.batch_size = 64
  config.data.sequence_length = 131_072
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 131072
  config.model.vocab_size = 131072
  config.model.max_length = 131_072
  config.model.width = 8192
  config.model.num_heads = 64
  config.model.num_kv_heads = 8
  config.model.head_dim = 128
  config.model.mlp_dim = 28672
  # As in Gemma 3: five of six layers have local attention.
  config.model.attention_pattern = ('local',) * 5 + ('global',)
  config.model.num_layers = 66
  config.model.window = 4096
  config.model.rope_base = 1_000_000.0
  config.model.rope_base_local = 10_000.0
  config.model.activation = 'silu'
  config.model.tie_embeddings = False
  config.model.dtype = 'bfloat16'
  config.model.remat = True
  config.model.context_parallel = 'ring'
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 2000
  config.parallel.data = 1
  config.parallel.fsdp = -1
  config.parallel.sequence = 8
  # A cache is not sharded along its length; one row per group of devices.
  config.plan.decode_batch_size = 64
  config.train.num_steps = 20_000
  return config
