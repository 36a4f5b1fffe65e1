"""Fields and metrics that earlier versions called by other names.

The one table of renames: whoever reads what an earlier version wrote (a run's
`config.json`, a manifest, `metrics.jsonl`) passes it through here first.
"""

from collections.abc import Mapping
from typing import Any

# Fields by their path; a section's own name is the last of its entries.
_FIELDS = {
  'model.audio.rate': 'model.audio.sample_rate',
  'model.audio.low': 'model.audio.f_min',
  'model.audio.high': 'model.audio.f_max',
  'model.over_sequence': 'model.context_parallel',
  'data.weights': 'data.mixture_weights',
  'data.audio_rate': 'data.audio_sample_rate',
  'data.without': 'data.drop_kinds',
  'data.permuted': 'data.shuffled_fields',
  'train.bottleneck.off': 'train.bottleneck.zero_fraction',
  'train.bottleneck.ramp': 'train.bottleneck.ramp_fraction',
  'train.bottleneck.autoencode': 'train.bottleneck.pretrain_fraction',
  'train.bottleneck.min_rate': 'train.bottleneck.min_kl',
  'train.bottleneck': 'train.kl_annealing',
  'loss_weights.min_rate': 'loss_weights.min_kl',
  'loss_weights.media_rate': 'loss_weights.media_kl',
}

# Metrics by the last part of their name.
_METRICS = {'rate': 'kl', 'min_rate': 'min_kl', 'media_rate': 'media_kl'}


def field(path: str) -> str:
  """The path of a field today, of one of any version."""
  for old, new in _FIELDS.items():
    if path == old or path.startswith(f'{old}.'):
      path = new + path.removeprefix(old)
  return path


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
  """A config as this version writes it, of the JSON of any version.

  What is not as a config should be is left for `schema.convert` to refuse.
  """
  config = dict(values)
  for old, new in _FIELDS.items():
    *sections, name = old.split('.')
    # Copied on the way, since the values are the caller's.
    section: Any = config
    for step in sections:
      inner = section.get(step)
      if not isinstance(inner, Mapping):
        section = {}
        break
      section[step] = section = dict(inner)
    new_name = new.split('.')[-1]
    if name in section and new_name not in section:
      section[new_name] = section.pop(name)
  return config


def metrics(line: Mapping[str, Any]) -> dict[str, Any]:
  """A line of `metrics.jsonl` as this version writes it, of any version's."""
  values = {}
  for name, value in line.items():
    split, slash, metric = name.rpartition('/')
    metric = _METRICS.get(metric, metric)
    # It was of tokens, unless whole examples were counted beside it.
    if metric == 'accuracy' and split and f'{split}/token_accuracy' not in line:
      metric = 'token_accuracy'
    values[f'{split}{slash}{metric}'] = value
  return values
