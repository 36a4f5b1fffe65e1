r"""Texts from a latent z, beside a language model of the same decoder.

  python -m gemini_jax.main --workdir=runs/vae \
      --config=experiments/text_vae.py:jsonl=FILE,latent=cyclical

FILE holds a JSON object a line, `{"text": ..., "label": {"attribute": value}}`;
labels are needed for steering alone. `latent` is `cyclical`, the recommended
training, with free bits; `constant`, the plain bound from the start, under
which z may end unused; or `none`, the language model. Nine of ten texts are
trained on, half of the others give `validation/...`, half `test/nll` (nats a
text), `test/kl`, `test/mi` and `test/active_units`.

Measured on the grammar of the tests, at half of this width: see LOG.md.
"""

import json
import math

from experiments import base

LATENTS = ('cyclical', 'constant', 'none')


def get_config(arg=''):
  """The config, of `jsonl=FILE,latent=NAME`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  path = options.pop('jsonl', '')
  latent = options.pop('latent', 'cyclical')
  if not path or latent not in LATENTS or options:
    raise ValueError(
      f'--config=...:{arg} must be jsonl=FILE,latent=NAME with NAME one of '
      f'{", ".join(LATENTS)}'
    )
  config = base.get_config()
  set_data(config, f'jsonl:{path}')
  set_latent(config, latent)
  config.data.sequence_length = longest(path)
  config.model.max_length = config.data.sequence_length
  config.model.width = 128
  config.model.mlp_dim = 256
  config.data.batch_size = 32
  config.train.num_steps = 1500
  config.train.eval_every = 1000
  config.train.save_every = 1000
  return config


def set_data(config, source):
  """A text a row, of `source` for all splits."""
  config.data.train = (f'{source}#[!9::10]',)
  config.data.validation = (f'{source}#[9::20]',)
  config.data.test = (f'{source}#[19::20]',)
  config.data.pack = False
  config.data.batch_size = 64
  config.evaluate.evaluators = ('likelihood',)
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 8192


def set_latent(config, latent):
  """The model and its training; `latent` is one of LATENTS."""
  config.model.num_layers = 2
  config.model.num_encoder_layers = 1
  config.model.latent.dim = 0 if latent == 'none' else 8
  config.train.kl_annealing.schedule = 'cyclical'
  config.train.kl_annealing.free_bits = 0.4
  if latent == 'constant':
    config.train.kl_annealing.schedule = 'constant'
    config.train.kl_annealing.free_bits = 0.0
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 6e-3
  config.optimizer.warmup_steps = 100
  config.train.log_every = 100
  config.generate.source = 'prompt' if latent == 'none' else 'prior'


def longest(path):
  """Tokens that nearly every text fits in, from its words."""
  try:
    with open(path, encoding='utf-8') as file:
      texts = [str(json.loads(line).get('text', '')) for line in file]
  except (OSError, ValueError, AttributeError):
    return 64  # What is wrong with the file is told when it is read.
  lengths = sorted(len(text.split()) for text in texts)
  words = {word for text in texts for word in text.split()}
  # A small vocabulary has a piece for every word, others about 1.5 a word.
  pieces = 1.0 if len(words) < 2000 else 1.6
  most = lengths[int(0.995 * (len(lengths) - 1))] if lengths else 0
  return min(128, 2 * math.ceil((pieces * most + 2) / 2))
