"""Fields, metrics and defaults that were others in earlier versions.

The one table of renames: whoever reads what an earlier version wrote (a run's
`config.json`, a manifest, `metrics.jsonl`) passes it through here first.
"""

from collections.abc import Mapping
from typing import Any

# Fields by their path; a section's own name comes after those of its fields.
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
  'sparsity.n_of_m': 'sparsity.n_m',
  'generate.int8_kernel': 'generate.cpu_kernel',
  'eval.exact_match': 'evaluate.exact_match.num_examples',
  'eval.captions': 'evaluate.captions.num_examples',
  'eval.judged': 'evaluate.judged_media.num_examples',
  'eval.retrieval': 'evaluate.retrieval.num_examples',
  'eval.latent_examples': 'evaluate.likelihood.num_examples',
  'eval.importance_samples': 'evaluate.likelihood.importance_samples',
  'eval.samples': 'evaluate.samples.prompts',
  'eval': 'evaluate',
}

# Evaluators by the field of the section `eval` that was 0 or () for none, in
# the order in which they ran.
_EVALUATORS = {
  'latent_examples': 'likelihood',
  'exact_match': 'exact_match',
  'retrieval': 'retrieval',
  'captions': 'captions',
  'judged': 'judged_media',
  'samples': 'samples',
}

# Fields of the section `generate` that evaluators obeyed as well.
_OF_GENERATE = {
  'judged': ('judged_media', ('temperature', 'guidance')),
  'samples': ('samples', ('temperature', 'max_tokens', 'task')),
}

# Metrics by the last part of their name.
_METRICS = {'rate': 'kl', 'min_rate': 'min_kl', 'media_rate': 'media_kl'}


def field(path: str) -> str:
  """The path of a field today, of one of any version."""
  for old, new in _FIELDS.items():
    if path == old or path.startswith(f'{old}.'):
      path = new + path.removeprefix(old)
  return path


def hint(name: str) -> str:
  """`; eval is now evaluate` for the last part of an old path, or nothing."""
  for old in _FIELDS:
    if old.split('.')[-1] == name:
      return f'; {old} is now {field(old)}'
  return ''


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
  """A config as this version writes it, of the JSON of any version.

  What is not as a config should be is left for `schema.convert` to refuse.
  """
  # Copied, since the values are the caller's.
  config = _copy(values)
  if isinstance(config.get('eval'), dict):
    _name_evaluators(config, config['eval'])
  for old, new in _FIELDS.items():
    _move(config, old, new)
  if isinstance(config.get('optimizer'), dict):
    _name_muons_rate(config['optimizer'])
  return config


def _copy(values: Any) -> Any:
  if not isinstance(values, Mapping):
    return values
  return {name: _copy(value) for name, value in values.items()}


def _move(config: dict[str, Any], old: str, new: str):
  """Moves a field or a section, unless there is nothing or no place for it."""
  *sections, name = old.split('.')
  source: Any = config
  for section in sections:
    source = source.get(section)
    if not isinstance(source, dict):
      return
  if name not in source:
    return
  *sections, new_name = new.split('.')
  target: Any = config
  for section in sections:
    target = target.setdefault(section, {})
    if not isinstance(target, dict):
      return
  value, there = source[name], target.get(new_name)
  if isinstance(value, dict) and isinstance(there, dict):
    target[new_name] = value | there
  elif new_name not in target:
    target[new_name] = value
  else:
    return
  del source[name]


def _name_evaluators(config: dict[str, Any], section: dict[str, Any]):
  """Lists the evaluators that numbers of the section `eval` switched on."""
  data, generate = (
    config[name] if isinstance(config.get(name), dict) else {}
    for name in ('data', 'generate')
  )
  rows = not data.get('pack', True) and not data.get('tasks')
  if not (rows and data.get('test')):
    # The likelihood was left out where a row is not one sequence of text.
    section['latent_examples'] = 0
  names = []
  for field, name in _EVALUATORS.items():
    value = section.get(field, 1000 if field == 'latent_examples' else 0)
    if value:
      names.append(name)
      into, fields = _OF_GENERATE.get(field, ('', ()))
      options = {key: generate[key] for key in fields if key in generate}
      if options:
        evaluate = config.setdefault('evaluate', {})
        evaluate[into] = options
    else:
      section.pop(field, None)
  section['evaluators'] = names
  if 'checkpoint' in generate:
    section['checkpoint'] = generate['checkpoint']


def _name_muons_rate(section: dict[str, Any]):
  """Names Muon's rate where none was given, of before its default changed."""
  is_before = 'adam_learning_rate' not in section
  if is_before and section.get('name') == 'muon':
    section['learning_rate'] = section.get('learning_rate') or 3e-3


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
