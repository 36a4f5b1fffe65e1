r"""A mixture of experts of over a trillion parameters, for 4,096 TPU v5p chips.

python -m gemini_jax.main --mode=plan --config=experiments/gemini_moe_1t.py \
      --workdir=runs/gemini_moe_1t --config.plan.topology=v5p:16x16x16
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.batch_size = 4096
  config.data.sequence_length = 4096
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 131072
  config.model.vocab_size = 131072
  config.model.max_length = 4096
  config.model.width = 8192
  config.model.num_layers = 64
  config.model.num_heads = 64
  config.model.num_kv_heads = 8
  config.model.head_dim = 128
  config.model.num_experts = 128
  config.model.experts_per_token = 8
  config.model.expert_dim = 5120
  config.model.activation = 'silu'
  config.model.tie_embeddings = False
  config.model.dtype = 'bfloat16'
  config.model.remat = True
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 2000
  config.parallel.data = 1
  config.parallel.fsdp = -1
  config.parallel.expert = 4
  config.train.num_steps = 100_000
  return config
