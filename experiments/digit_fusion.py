r"""Classifies a digit from a noisy picture, a noisy sound, or both.

  python -m gemini_jax.main --workdir=runs/digit_fusion \
      --config=experiments/digit_fusion.py:inputs=both,dropout=0.8 \
      --config.data.data_dir=DIR

DIR is the folder of TFDS data sets. A model of both is tested without one of
them by `--mode=eval --config.data.drop_kinds="('audio',)"`; all of these runs
are in tests/fusion_study.py.
"""

import ml_collections

from experiments import spoken_digit

_DROPPED_KINDS = {'both': (), 'image': ('audio',), 'audio': ('image',)}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config, of `inputs=both|image|audio,dropout=SHARE`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  inputs, dropout = options.pop('inputs', 'both'), options.pop('dropout', '0')
  if inputs not in _DROPPED_KINDS or options:
    raise ValueError(
      f'--config=...:{arg} must be inputs=NAME or inputs=NAME,dropout=SHARE '
      f'with NAME one of {", ".join(_DROPPED_KINDS)}'
    )
  config = spoken_digit.get_config()
  config.data.tasks = ('{image:image} {audio:audio} -> {label}',)
  config.data.train = ('digits:train#[:95%]',)
  config.data.validation = ('digits:train#[95%:]',)
  config.data.test = ('digits:test',)
  config.data.drop_kinds = _DROPPED_KINDS[inputs]
  config.data.media_dropout = float(dropout)
  config.data.inputs_length = 48
  config.model.max_length = 48
  config.model.width = 96
  config.model.mlp_dim = 192
  config.model.num_encoder_layers = 2
  config.model.image.height = 8
  config.model.image.width = 8
  config.model.image.channels = 1
  config.model.image.patch = 2
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 0.006
  # With dropout=0.8, two fifths of 3,000 steps have one kind alone: 1,200.
  config.train.num_steps = 3000 if config.data.media_dropout else 1200
  config.train.eval_every = 400
  config.train.save_every = 400
  return config
