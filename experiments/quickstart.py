r"""A small language model of the language reference that comes with CPython.

  python -m gemini_jax.main --config=experiments/quickstart.py \
      --workdir=runs/quickstart

Measured: 2.06 bits per byte on validation after 250 steps (xz -9: 2.78), 1 min
58 s on 2 cores, samples included.
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.train = ('python:pydoc_data.topics#[!9::10]',)
  config.data.validation = ('python:pydoc_data.topics#[9::10]',)
  config.data.deduplicate = True
  config.data.batch_size = 16
  config.data.sequence_length = 128
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 1024
  config.model.max_length = 256
  config.model.width = 192
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.scan_layers = False
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 50
  config.train.num_steps = 250
  config.train.eval_every = 100
  config.train.save_every = 200
  config.train.log_every = 20
  config.evaluate.evaluators = ('samples',)
  config.evaluate.samples.prompts = (
    'The "with" statement',
    'A class definition',
  )
  return config
