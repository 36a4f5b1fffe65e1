r"""Which way clothes move and what they are, from six frames.

  python -m gemini_jax.main --config=experiments/moving_fashion.py \
      --workdir=runs/moving --config.data.data_dir=DIR
  python -m gemini_jax.main --config=experiments/moving_fashion.py \
      --workdir=runs/moving --config.data.data_dir=DIR --mode=eval \
      --config.data.test="('moving:test,shuffled',)"

DIR is where TFDS keeps its data sets. The second line tests with the same
frames in a random order.
"""

import ml_collections

from experiments import fashion_any_to_any


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = fashion_any_to_any.get_config(arg)
  config.data.tasks = (
    'direction = {video:video} direction -> {direction}',
    'class = {video:video} class -> {label}',
  )
  config.data.train = ('moving:train#[:98%]',)
  config.data.validation = ('moving:train#[98%:]',)
  config.data.test = ('moving:test#[:2000]',)
  config.data.objective = 'seq2seq'
  config.data.batch_size = 64
  config.data.inputs_length = 64
  config.data.sequence_length = 12
  config.data.inputs_dropout = 0.0
  config.model.architecture = 'encoder_decoder'
  config.model.max_length = 64
  config.model.num_encoder_layers = 2
  config.model.num_layers = 1
  config.model.image.height = 40
  config.model.image.width = 40
  config.model.image.patch = 8
  config.model.image.num_layers = 1
  config.model.image.autoencoder.dim = 0
  config.model.video.num_frames = 6
  config.model.video.frame_tokens = 6
  config.loss_weights.media_nll = 1.0
  config.eval.judged = 0
  config.generate.temperature = 0.0
  return config
