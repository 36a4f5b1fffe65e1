r"""nanoGPT's CPU recipe on tiny_shakespeare.

  python -m gemini_jax.main --config=experiments/nanogpt_cpu.py \
      --workdir=runs/nanogpt_cpu --config.data.data_dir=DIR

Measured: validation loss 1.682 over the whole split after 2,000 steps (nanoGPT:
1.886 on 20 batches), 2 min 35 s on 2 cores.
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.train = ('tfds:tiny_shakespeare#train',)
  config.data.validation = ('tfds:tiny_shakespeare#validation+test',)
  config.data.batch_size = 12
  config.data.sequence_length = 64
  config.tokenizer.kind = 'characters'
  config.model.vocab_size = 72
  config.model.max_length = 64
  config.model.width = 128
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.gated = False
  config.model.scan_layers = False
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.final_scale = 0.1
  config.optimizer.b2 = 0.99
  config.train.num_steps = 2000
  config.train.eval_every = 500
  config.train.save_every = 500
  config.train.log_every = 50
  config.evaluate.batch_size = 48
  config.evaluate.evaluators = ('samples',)
  config.evaluate.samples.prompts = ('\n',)
  return config
