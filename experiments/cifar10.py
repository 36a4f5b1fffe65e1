r"""Photographs of ten classes: convolutions, then attention.

  python -m gemini_jax.main --config=experiments/cifar10.py \
      --workdir=runs/cifar10 --config.data.data_dir=DIR

DIR is the folder of TFDS data sets. The run writes `test/accuracy`, of
probabilities that are averaged over six views of a picture.
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.tasks = ('{image:image} -> {class:label}',)
  config.data.train = ('tfds:cifar10#train[:98%]',)
  config.data.validation = ('tfds:cifar10#train[98%:]',)
  config.data.test = ('tfds:cifar10#test',)
  config.data.objective = 'prefix'
  config.data.batch_size = 128
  config.data.sequence_length = 18
  config.data.pack = False
  config.data.augment.crop_padding = 4
  config.data.augment.flip = True
  config.model.max_length = 18
  config.model.width = 256
  config.model.num_layers = 1
  config.model.num_heads = 4
  config.model.mlp_dim = 512
  config.model.scan_layers = False
  config.model.image.height = 32
  config.model.image.width = 32
  config.model.image.channels = 3
  config.model.image.patch = 8
  config.model.image.num_blocks = 2
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 200
  config.optimizer.final_scale = 0.01
  config.train.epoch_examples = 49_000
  config.train.epochs = 20
  config.train.label_smoothing = 0.1
  # Every second epoch.
  config.train.eval_every = 766
  config.train.save_every = 766
  config.train.log_every = 50
  config.evaluate.batch_size = 500
  config.evaluate.evaluators = ('classification',)
  config.evaluate.test_time_views = 6
  return config
