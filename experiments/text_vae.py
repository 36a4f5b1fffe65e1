r"""A text VAE, and a language model with the same decoder for comparison.

  python -m gemini_jax.main --workdir=runs/vae \
      --config=experiments/text_vae.py:jsonl=FILE,latent=cyclical

Each line of FILE is `{"text": ..., "label": {"attribute": value}}`; labels are
needed for steering only. `latent` is `cyclical`, the recommended KL annealing
with free bits; `constant`, the plain ELBO, under which z may collapse; or
`none`, the language model. Nine of ten texts are for training; half of the
others give `validation/...`, half `test/nll` (nats a text), `test/kl`,
`test/mi` and `test/active_units`.

Measured on the grammar of the tests, at half of this width: see LOG.md.
"""

import json
import math

from experiments import base

LATENTS = ('cyclical', 'constant', 'none')


def get_config(arg=''):
  """The config; `arg` is `jsonl=FILE,latent=NAME`."""
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
  """One text a row; all splits are slices of `source`."""
  config.data.train = (f'{source}#[!9::10]',)
  config.data.validation = (f'{source}#[9::20]',)
  config.data.test = (f'{source}#[19::20]',)
  config.data.pack = False
  config.data.batch_size = 64
  config.evaluate.evaluators = ('likelihood',)
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 8192


def set_latent(config, latent):
  """Model and training for one of LATENTS."""
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
  """A length in tokens that fits nearly all texts, estimated from words."""
  try:
    with open(path, encoding='utf-8') as file:
      texts = [str(json.loads(line).get('text', '')) for line in file]
  except (OSError, ValueError, AttributeError):
    return 64  # An unreadable file is reported when the data are read.
  lengths = sorted(len(text.split()) for text in texts)
  words = {word for text in texts for word in text.split()}
  # With a small vocabulary every word is one piece, else about 1.5 pieces.
  pieces = 1.0 if len(words) < 2000 else 1.6
  num_words = lengths[int(0.995 * (len(lengths) - 1))] if lengths else 0
  return min(128, 2 * math.ceil((pieces * num_words + 2) / 2))
