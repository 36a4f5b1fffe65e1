"""A small Transformer learns CPython's language reference."""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.train = ('python:pydoc_data.topics#[!9::10]',)
  config.data.validation = ('python:pydoc_data.topics#[9::10]',)
  config.data.deduplicate = True
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 1024
  config.model.width = 192
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.data.sequence_length = 128
  config.model.max_length = 256
  config.train.num_steps = 100
  config.eval.samples = ('The with statement',)
  return config
