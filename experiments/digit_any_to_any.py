r"""One model that transcribes spoken digits and speaks digits.

  python -m gemini_jax.main --config=experiments/digit_any_to_any.py \
      --workdir=runs/digit --config.data.data_dir=DIR
  python -m gemini_jax.main --config=experiments/digit_any_to_any.py \
      --workdir=runs/digit --config.data.data_dir=DIR --mode=generate \
      --config.generate.output=audio --config.generate.prompt=seven

DIR is the folder of TFDS data sets.
"""

import ml_collections

from experiments import spoken_digit


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = spoken_digit.get_config(arg)
  config.data.tasks = (
    'sound_to_text = {audio:audio} -> {label}',
    'text_to_sound = {label} -> {audio:audio}',
  )
  config.data.objective = 'prefix'
  config.data.sequence_length = 36
  config.data.inputs_dropout = 0.1
  config.model.architecture = 'decoder'
  config.model.max_length = 36
  config.model.num_encoder_layers = 0
  config.model.num_layers = 3
  config.model.dropout = 0.0
  config.model.audio.autoencoder.dim = 16
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 0.006
  config.loss_weights.media_nll = 0.1
  config.loss_weights.detail = 0.1
  config.train.label_smoothing = 0.0
  config.evaluate.evaluators = ('judged_media',)
  config.evaluate.judged_media.num_examples = 300
  config.generate.temperature = 1.0
  return config
