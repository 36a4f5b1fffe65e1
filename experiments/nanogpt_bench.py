"""A larger model for benchmarks against nanoGPT; it has no data."""

import ml_collections

from experiments import nanogpt_cpu


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = nanogpt_cpu.get_config(arg)
  config.data.train = ()
  config.data.validation = ()
  config.data.batch_size = 8
  config.data.sequence_length = 256
  config.model.vocab_size = 8192
  config.model.max_length = 256
  config.model.width = 384
  config.model.num_layers = 6
  config.model.num_heads = 6
  return config
