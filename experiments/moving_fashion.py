r"""Direction and class of moving clothes, from two of six frames.

  python -m gemini_jax.main --config=experiments/moving_fashion.py \
      --workdir=runs/moving --config.data.data_dir=DIR
  python -m gemini_jax.main --config=experiments/moving_fashion.py \
      --workdir=runs/moving --config.data.data_dir=DIR --mode=eval \
      --config.data.test="('moving:test,shuffled#[:2000]',)"

DIR is the folder of TFDS data sets. The second command tests with the frames
in a random order.
"""

import ml_collections

from experiments import base, fashion_any_to_any


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.tasks = (
    'direction = {video:video} direction -> {direction}',
    'class = {video:video} class -> {label}',
  )
  config.data.train = ('moving:train#[:98%]',)
  config.data.validation = ('moving:train#[98%:]',)
  config.data.test = ('moving:test#[:2000]',)
  config.data.label_names = fashion_any_to_any.LABELS
  config.data.objective = 'seq2seq'
  config.data.batch_size = 64
  config.data.inputs_length = 32
  config.data.sequence_length = 12
  config.data.pack = False
  config.model.architecture = 'encoder_decoder'
  config.model.max_length = 40
  config.model.width = 96
  config.model.num_encoder_layers = 2
  config.model.num_layers = 1
  config.model.num_heads = 4
  config.model.mlp_dim = 192
  config.model.scan_layers = False
  config.model.image.height = 40
  config.model.image.width = 40
  config.model.image.channels = 1
  config.model.image.patch = 8
  config.model.image.num_blocks = 1
  config.model.image.num_layers = 1
  config.model.video.num_frames = 2
  config.model.video.frame_tokens = 9
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 0.006
  config.optimizer.warmup_steps = 200
  config.optimizer.final_scale = 0.0
  config.train.num_steps = 4500
  config.train.eval_every = 500
  config.train.save_every = 500
  config.train.log_every = 50
  config.evaluate.batch_size = 200
  config.generate.temperature = 0.0
  return config
