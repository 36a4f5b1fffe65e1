r"""Stamps: captions in five languages from speech or pictures, and pictures.

  python -m gemini_jax.main --config=experiments/stamps.py \
      --workdir=runs/stamps --config.data.data_dir=DIR
  python -m gemini_jax.main --config=experiments/stamps.py \
      --workdir=runs/stamps --config.data.data_dir=DIR --mode=generate \
      --config.generate.task=de --config.generate.image=stamp.png

DIR is the folder of TFDS data sets, with `stamps` prepared.
"""

import ml_collections

from experiments import base

LANGUAGES = {
  'en': 'English',
  'de': 'German',
  'fr': 'French',
  'es': 'Spanish',
  'zh_cn': 'Chinese',
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.tasks = (
    'speech = {audio:speech_fr} -> {caption_fr}',
    *(
      f'{code} = {{image:image}} in {name} -> {{caption_{code}}}'
      for code, name in LANGUAGES.items()
    ),
    'paint = {caption_en} -> {image:image}',
  )
  config.data.train = ('tfds:stamps#train[:95%]',)
  config.data.validation = ('tfds:stamps#train[95%:]',)
  config.data.test = ('tfds:stamps#test',)
  config.data.objective = 'seq2seq'
  config.data.batch_size = 32
  config.data.inputs_length = 96
  config.data.sequence_length = 80
  config.data.pack = False
  config.data.inputs_dropout = 0.1
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 2048
  config.model.architecture = 'encoder_decoder'
  config.model.max_length = 96
  config.model.width = 128
  config.model.num_heads = 4
  config.model.num_encoder_layers = 2
  config.model.num_layers = 2
  config.model.mlp_dim = 256
  config.model.dropout = 0.1
  config.model.scan_layers = False
  config.model.contrast_dim = 64
  config.model.image.height = 48
  config.model.image.width = 48
  config.model.image.channels = 3
  config.model.image.patch = 6
  config.model.image.autoencoder.dim = 16
  config.model.audio.sample_rate = 8000
  config.model.audio.seconds = 3.0
  config.model.audio.num_mels = 40
  config.model.audio.patch = 4
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 0.004
  config.optimizer.warmup_steps = 100
  config.loss_weights.media_nll = 0.1
  config.train.num_steps = 1000
  config.train.eval_every = 500
  config.train.save_every = 500
  config.train.log_every = 50
  config.evaluate.evaluators = ('retrieval', 'captions', 'judged_media')
  config.evaluate.retrieval.num_examples = 95
  config.evaluate.captions.num_examples = 95
  config.evaluate.judged_media.num_examples = 24
  config.evaluate.judged_media.temperature = 0.8
  return config
