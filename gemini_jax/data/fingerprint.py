"""All that the batches of a split depend on, to be compared on resume."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.config import legacy

# Earlier versions named sources by their place: `data.train[0]=text:a.txt`.
_SOURCE = re.compile(r'(data\.\w+)\[(\d+)\]=.*', re.DOTALL)
# Arguments in `Augment(flip=False, noise_db=(5.0, 9.0))`.
_ARGUMENT = re.compile(r'(\w+)=(\(.*?\)|[^,)]+)')


def make(
  config: config_lib.Data,
  split: str,
  batch_size: int,
  seed: int,
  tokenizer: str,
  digests: Sequence[str],
) -> dict[str, Any]:
  """The fingerprint: JSON values by the field that they come from.

  Args:
    config: of the data.
    split: train, validation or test.
    batch_size: rows of a global batch.
    seed: of the order.
    tokenizer: fingerprint of the tokenizer.
    digests: of the content of each source.
  """
  values = {
    f'data.{name}': getattr(config, name) for name in config_lib.BATCH_FIELDS
  } | {
    'data.batch_size': batch_size,
    'data.mixture_weights': list(config.mixture_weights),
    'train.seed': seed,
    'tokenizer': tokenizer,
  }
  if config.tasks:
    values |= {
      f'data.{name}': repr(getattr(config, name))
      for name in config_lib.TASK_FIELDS
    }
  if config.normalization.fields:
    values['data.normalization'] = repr(config.normalization)
  if config.class_weights != 'none':
    values['data.class_weights'] = config.class_weights
  # By content, since the files may have been moved.
  values[f'data.{split}'] = list(digests)
  return values


def check(
  now: dict[str, Any],
  state: dict[str, Any],
  split: str,
  names: Sequence[str],
  accepted: Sequence[str] = (),
) -> int:
  """Index of the next batch after a checkpoint; see `Loader.check`.

  Args:
    now: fingerprint of the data as they are.
    state: of the data loader, from a checkpoint.
    split: train, validation or test.
    names: of the sources, for messages.
    accepted: fields that may have changed since; batches are then those of the
      new values.

  Raises:
    ConfigError: another field or the content of a source has changed.
  """
  then = _by_content(state['fingerprint'], now[f'data.{split}'])
  changes = {
    name: _change(name, then.get(name), now.get(name), f'data.{split}', names)
    for name in {**then, **now}
    if then.get(name) != now.get(name)
  }
  refused = [name for name in changes if name not in accepted]
  # With another tokenizer the trained model would be of no use.
  suggested = tuple(dict.fromkeys([*accepted, *changes]))
  remedy = (
    ''
    if 'tokenizer' in changes
    else '; to resume with the new values, set '
    f'--config.train.accept_changes="{suggested}"'
  )
  config_lib.check(
    not refused,
    'the data are not those of the checkpoint: '
    f'{"; ".join(changes[name] for name in refused)}{remedy}',
  )
  step = state['next_batch']
  if changes:
    logging.warning(
      'train.accept_changes: %s; batches from %s on are those of a run with '
      'the new values from the start: in this epoch some examples may be seen '
      'twice and others not at all',
      '; '.join(changes.values()),
      f'{step:,}',
    )
  return step


def _change(
  name: str, then: Any, now: Any, of_sources: str, names: Sequence[str]
) -> str:
  """How an entry of the fingerprint has changed, for a message."""
  counts = [
    len(value) if name == of_sources and isinstance(value, list) else None
    for value in (then, now)
  ]
  if None in counts or counts[0] != counts[1]:
    shown = [
      'absent' if value is None else f'{count} sources' if count else value
      for value, count in zip((then, now), counts, strict=True)
    ]
    return f'{name} was {shown[0]}, is {shown[1]}'
  changed = [
    source
    for source, *digests in zip(names, then, now, strict=True)
    if digests[0] != digests[1]
  ]
  return f'{name} had other records: {", ".join(changed)}'


def _by_content(
  fingerprint: dict[str, Any], digests: Sequence[str]
) -> dict[str, Any]:
  """A fingerprint of any version, as this version writes it.

  Earlier versions named sources by their place and did not include the content
  of media. Where the tokens match those of `digests`, the media are assumed to
  match as well.
  """
  values: dict[str, Any] = {}
  by_number: dict[str, dict[int, Any]] = {}
  for old, value in fingerprint.items():
    name = legacy.field(old)
    if match := _SOURCE.fullmatch(name):
      by_number.setdefault(match[1], {})[int(match[2])] = value
    else:
      values[name] = value
  if 'data.augment' in values:
    values['data.augment'] = _with_defaults(str(values['data.augment']))
  for name, of_source in by_number.items():
    values[name] = [
      next((now for now in digests if now.split()[0] == then), then)
      for _, then in sorted(of_source.items())
    ]
  return values


def _with_defaults(text: str) -> str:
  """`data.augment` of any version; what came later had its default."""
  defaults = {
    field.name: repr(field.default)
    for field in dataclasses.fields(config_lib.Augment)
  }
  values = defaults | dict(_ARGUMENT.findall(text))
  return f'Augment({", ".join(f"{k}={v}" for k, v in values.items())})'
