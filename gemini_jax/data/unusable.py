"""Records that cannot be used: errors with a reason, and their counts."""

import collections
import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from gemini_jax import config as config_lib

# Unusable records that an error shows, and characters of each.
_NUM_SHOWN = 3


class UnusableError(Exception):
  """A record that cannot be used, with the reason.

  Attributes:
    excerpt: the first characters of a record that cannot be parsed.
  """

  def __init__(self, reason: str, excerpt: str = ''):
    super().__init__(reason)
    self.excerpt = excerpt


class AbsentError(UnusableError):
  """A record lacks a required field."""


class EmptyError(AbsentError):
  """A required field is empty."""


@dataclasses.dataclass
class Tally:
  """Counts of the usable and unusable examples of a source.

  Attributes:
    usable: number of usable examples.
    num_absent: how many of the unusable ones are merely empty, or lack a field
      while their record has those of another task.
    unusable: number of unusable examples by reason.
    shown: index, reason and first characters of a few unusable records.
  """

  usable: int = 0
  num_absent: int = 0
  unusable: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  shown: list[str] = dataclasses.field(default_factory=list)

  def leave_out(
    self,
    error: UnusableError,
    number: int,
    record: Any = None,
    count: int = 1,
    absent: bool = False,
    place: Callable[[], str] = str,
  ):
    """Counts unusable examples of one record.

    Args:
      error: the reason.
      number: index of the record.
      record: its content, if it could be parsed.
      count: number of examples.
      absent: whether to count them in `num_absent`.
      place: gives FILE:LINE of the record, or ''.
    """
    reason = str(error)
    self.unusable[reason] += count
    if absent:
      self.num_absent += count
    elif len(self.shown) < _NUM_SHOWN:
      excerpt = error.excerpt
      if record is not None:
        excerpt = ' '.join(reprlib.repr(record).split())
      mark = ': ' if excerpt else ''
      where = f' ({found})' if (found := place()) else ''
      self.shown.append(f'record {number}{where}: {reason}{mark}{excerpt}')

  def add(self, other: 'Tally'):
    """Adds the counts of another tally."""
    self.usable += other.usable
    self.num_absent += other.num_absent
    self.unusable.update(other.unusable)
    self.shown += other.shown[: _NUM_SHOWN - len(self.shown)]

  def check(self, name: str, limit: float):
    """ConfigError if none is usable, or more than a share `limit` unusable."""
    num_unusable = self.unusable.total() - self.num_absent
    total = self.usable + num_unusable
    shown = ''.join(f'; {line}' for line in self.shown)
    if not self.usable:
      raise config_lib.ConfigError(
        f'{name}: no record is usable{reasons(self.unusable)}{shown}'
      )
    config_lib.check(
      num_unusable <= limit * total,
      f'{name}: of {total:,} examples{reasons(self.unusable)}, more than '
      f'data.max_unusable={limit} allows{shown}; repair or remove them, or set '
      'data.max_unusable to the share that may be skipped',
    )


def reasons(unusable: Mapping[str, int]) -> str:
  """`, 3 unusable: 2 invalid JSON, 1 too long`, or an empty string."""
  if not unusable:
    return ''
  parts = [f'{count:,} {reason}' for reason, count in sorted(unusable.items())]
  return f', {sum(unusable.values()):,} unusable: {", ".join(parts)}'
