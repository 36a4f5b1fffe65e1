r"""Classes of short texts: from nothing, or by tuning a published model.

  apt install wordnet-base
  python -m gemini_jax.main --workdir=runs/glosses \
      --config=experiments/text_classification.py
  python -m gemini_jax.main --workdir=runs/snippets \
      --config=experiments/text_classification.py:data=snippets.csv,base=runs/smollm2

Without `data` the texts are WordNet's definitions and the classes those of its
45 lexicographer files. `data=FILE.csv` or `.jsonl` has fields `text` and
`class`; every tenth record is for `test`, the one before it for validation.
With `base` the model is that of a workdir, with LoRA; else it is small.

Measured (seed 0, 2 cores): VADER's movie snippets, from nothing in 1.5 minutes,
test/accuracy 0.791; TF-IDF with logistic regression has 0.803. The others have
not been run to their ends.
"""

import ml_collections

from experiments import base as base_lib
from experiments import fine_tune


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is `data=FILE,base=WORKDIR`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  file, folder = options.pop('data', ''), options.pop('base', '')
  if options:
    raise ValueError(f'--config=...:{arg} must be data=FILE,base=WORKDIR')
  config = base_lib.get_config()
  kind = 'csv' if file.endswith(('.csv', '.tsv')) else 'jsonl'
  source = f'{kind}:{file}' if file else 'wordnet:'
  config.data.tasks = ('{text} -> {class:class}',)
  config.data.train = tuple(f'{source}#[{i}::10]' for i in range(8))
  config.data.validation = (f'{source}#[8::10]',)
  config.data.test = (f'{source}#[9::10]',)
  config.data.objective = 'prefix'
  config.data.sequence_length = 256
  # WordNet has 94,000 texts to learn from, a file some thousands.
  config.data.batch_size, config.train.num_steps = (
    (8, 500) if file else (32, 2000)
  )
  config.train.eval_every = config.train.num_steps // 4
  config.train.save_every = config.train.num_steps // 4
  config.evaluate.evaluators = ('classification',)
  if folder:
    fine_tune.set_base(config, folder, 'lora')
    # As it was trained: a word reads those before it.
    config.data.objective = 'causal'
    return config
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 8192
  config.model.max_length = 256
  config.model.width = 128
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.mlp_dim = 256
  config.model.dropout = 0.3
  config.optimizer.learning_rate = 2e-3
  return config
