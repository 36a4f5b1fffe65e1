r"""Names of people, places and organisations in text, a tag for each word.

  pip install 'gemini_jax[tasks]'
  python -m gemini_jax.main --config=experiments/token_classification.py \
      --workdir=runs/wikiann --config.data.data_dir=DIR

DIR is the folder of TFDS data sets. From nothing, on WikiANN's English: a
decoder that sees all of a sentence reads its bytes, and the last byte of a word
predicts the word's tag. The run writes `test/span_f1` (seqeval, strict).
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  config = base.get_config()
  config.data.tasks = ('{words:tokens} -> {tags:tags}',)
  config.data.train = ('tfds:wikiann#train',)
  config.data.validation = ('tfds:wikiann#validation[:2000]',)
  config.data.test = ('tfds:wikiann#test',)
  config.data.objective = 'prefix'
  config.data.batch_size = 32
  config.data.sequence_length = 512
  config.model.max_length = 512
  config.model.width = 128
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.mlp_dim = 384
  config.model.attention_pattern = ('local', 'local', 'global', 'global')
  config.model.window = 16
  config.model.dropout = 0.2
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = 'cosine'
  config.optimizer.warmup_steps = 200
  config.train.label_smoothing = 0.05
  config.train.num_steps = 2000
  config.train.eval_every = 500
  config.train.save_every = 500
  config.evaluate.evaluators = ('classification',)
  return config
