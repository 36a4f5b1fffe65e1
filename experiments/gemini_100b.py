r"""A dense Transformer of over 100 billion parameters, for 512 TPU v5p chips.

python -m gemini_jax.main --mode=plan --config=experiments/gemini_100b.py \
      --workdir=runs/gemini_100b --config.plan.topology=v5p:8x8x8
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.batch_size = 512
  config.data.sequence_length = 8192
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 131072
  config.model.vocab_size = 131072
  config.model.max_length = 8192
  config.model.width = 12288
  config.model.num_layers = 64
  config.model.num_heads = 96
  config.model.num_kv_heads = 8
  config.model.head_dim = 128
  config.model.mlp_dim = 36864
  config.model.activation = 'silu'
  config.model.rope_base = 500_000.0
  config.model.tie_embeddings = False
  config.model.dtype = 'bfloat16'
  config.model.remat = True
  config.model.remat_save = ('query', 'key', 'value', 'attended')
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 2000
  config.parallel.data = 1
  config.parallel.fsdp = -1
  config.train.num_steps = 100_000
  return config
