"""What the batches of a split depend on, kept in checkpoints and compared."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.config import legacy

# In the fingerprint of an earlier version, a source had the name of its place:
# `data.train[0]=text:a.txt`.
_SOURCE = re.compile(r'(data\.\w+)\[(\d+)\]=.*', re.DOTALL)


def make(
  config: config_lib.Data,
  split: str,
  batch_size: int,
  seed: int,
  tokenizer: str,
  digests: Sequence[str],
) -> dict[str, Any]:
  """Plain JSON values, by the field that each is of.

  Args:
    config: of the data.
    split: which part of the data.
    batch_size: rows of a global batch.
    seed: of the order.
    tokenizer: its fingerprint.
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
  # By content: the same records may lie at another place.
  values[f'data.{split}'] = list(digests)
  return values


def check(
  now: dict[str, Any],
  state: dict[str, Any],
  split: str,
  names: Sequence[str],
  accepted: Sequence[str] = (),
) -> int:
  """The next batch of a state that belongs to the data of `now`.

  Args:
    now: of the data.
    state: of a checkpoint.
    split: which part of the data.
    names: of the sources, for messages.
    accepted: fields that may differ from those of the checkpoint; batch t is
      then that of the new fields.

  Raises:
    ConfigError: other fields or the content differ, with their names.
  """
  then = _by_content(state['fingerprint'], now[f'data.{split}'])
  changes = {
    name: _change(name, then.get(name), now.get(name), f'data.{split}', names)
    for name in {**then, **now}
    if then.get(name) != now.get(name)
  }
  refused = [name for name in changes if name not in accepted]
  # Another tokenizer makes another model of the tokens.
  wanted = tuple(dict.fromkeys([*accepted, *changes]))
  remedy = (
    ''
    if 'tokenizer' in changes
    else '; to resume with them all the same, give '
    f'--config.train.accept_changes="{wanted}"'
  )
  config_lib.check(
    not refused,
    'the data are not those of the checkpoint: '
    f'{"; ".join(changes[name] for name in refused)}{remedy}',
  )
  step = state['next_batch']
  if changes:
    logging.warning(
      'train.accept_changes: %s; batch %s and those after it are the ones '
      'that a run of these values from the start would have there: of this '
      'epoch some examples may come twice and others not at all',
      '; '.join(changes.values()),
      f'{step:,}',
    )
  return step


def _change(
  name: str, then: Any, now: Any, of_sources: str, names: Sequence[str]
) -> str:
  """What of the fingerprint was another, for an error."""
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
  """A fingerprint as this version writes it, of one of any version.

  Earlier ones named the sources, and knew nothing of the content of media:
  where the tokens are those of `digests`, so are the media taken to be.
  """
  values: dict[str, Any] = {}
  by_number: dict[str, dict[int, Any]] = {}
  for old, value in fingerprint.items():
    name = legacy.field(old)
    if match := _SOURCE.fullmatch(name):
      by_number.setdefault(match[1], {})[int(match[2])] = value
    else:
      values[name] = value
  for name, of_source in by_number.items():
    values[name] = [
      next((now for now in digests if now.split()[0] == then), then)
      for _, then in sorted(of_source.items())
    ]
  return values
