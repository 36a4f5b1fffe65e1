r"""GPT-2 of 124 million parameters on OpenWebText-like text (nanoGPT's recipe).

  python -m gemini_jax.main --config=experiments/gpt2_124m.py \
      --workdir=runs/gpt2_124m --config.data.train='("text:DIR/*.txt",)'

For 8 GPUs; for one GPU set --config.optimizer.accumulation_steps=40. Not
trained here for want of a GPU.
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  # 491,520 tokens a step.
  config.data.batch_size = 480
  config.data.sequence_length = 1024
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 50_257
  # A multiple of 64; GPT-2 has 50,257.
  config.model.vocab_size = 50_304
  config.model.max_length = 1024
  config.model.width = 768
  config.model.num_layers = 12
  config.model.num_heads = 12
  config.model.mlp_dim = 3072
  config.model.activation = 'gelu'
  config.model.gated = False
  config.model.position = 'learned'
  config.model.init_scale = 0.02
  config.model.dtype = 'bfloat16'
  config.model.scan_layers = False
  config.optimizer.name = 'adamw'
  config.optimizer.learning_rate = 6e-4
  config.optimizer.warmup_steps = 2000
  config.optimizer.final_scale = 0.1
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.optimizer.accumulation_steps = 5
  config.train.num_steps = 600_000
  config.train.eval_every = 1000
  config.train.save_every = 1000
  return config
