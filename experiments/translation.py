r"""Multi30k: English captions to German, an encoder-decoder from nothing.

  python -m gemini_jax.main --config=experiments/translation.py \
      --workdir=runs/translation --config.data.data_dir=DIR

DIR is the folder of TFDS data sets, with `multi30k` prepared. `test/bleu` is
sacrebleu's of the 1,000 captions of test_2016_flickr, as they are (detokenised,
case counts), by a beam search of five; its signature stands in report.md.

Measured (seed 0, 61 minutes on 2 cores): test/bleu 39.9.
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.train = ('tfds:multi30k#train',)
  config.data.validation = ('tfds:multi30k#validation',)
  config.data.test = ('tfds:multi30k#test',)
  config.data.inputs_field = 'en'
  config.data.targets_field = 'de'
  config.data.objective = 'seq2seq'
  config.data.batch_size = 32
  config.data.inputs_length = 128
  config.data.sequence_length = 128
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 6000
  config.model.architecture = 'encoder_decoder'
  config.model.max_length = 128
  config.model.width = 192
  config.model.num_encoder_layers = 3
  config.model.num_layers = 3
  config.model.num_heads = 4
  config.model.mlp_dim = 384
  config.model.dropout = 0.2
  config.model.scan_layers = False
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.final_scale = 0.0
  config.optimizer.ema_decay = 0.99
  config.train.label_smoothing = 0.1
  config.train.num_steps = 3000
  config.train.log_every = 50
  config.train.eval_every = 500
  config.train.save_every = 500
  config.evaluate.evaluators = ('texts',)
  config.evaluate.texts.beam_size = 5
  config.evaluate.texts.length_penalty = 1.0
  config.generate.beam_size = 5
  config.generate.length_penalty = 1.0
  return config
