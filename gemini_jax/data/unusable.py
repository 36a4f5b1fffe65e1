"""Records that cannot be used: the reasons, and how many there are."""

import collections
import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib

# Unusable records that an error shows, and characters of each.
_NUM_SHOWN = 3


class UnusableError(Exception):
  """A record that cannot be used, with the reason.

  Attributes:
    excerpt: how the record begins, if it could not be read as one.
  """

  def __init__(self, reason: str, excerpt: str = ''):
    super().__init__(reason)
    self.excerpt = excerpt


class AbsentError(UnusableError):
  """A record lacks a field that is asked for."""


class EmptyError(AbsentError):
  """A field that is asked for has nothing in it."""


@dataclasses.dataclass
class Tally:
  """How many examples of a source can be used.

  Attributes:
    usable: those that can.
    num_absent: those of the unusable that are merely empty, or that their
      record lacks while it gives another task what it asks for.
    unusable: those that cannot, by reason.
    shown: the number of a record, the reason and its beginning, of a few.
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
  ):
    """Counts examples of the record of a number, which are unusable.

    Args:
      error: why.
      number: of the record.
      record: what it holds, if that is known.
      count: of examples.
      absent: whether they are merely not there; see `num_absent`.
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
      self.shown.append(f'record {number}: {reason}{mark}{excerpt}')

  def add(self, other: 'Tally'):
    """Counts what another has counted as well."""
    self.usable += other.usable
    self.num_absent += other.num_absent
    self.unusable.update(other.unusable)
    self.shown += other.shown[: _NUM_SHOWN - len(self.shown)]

  def check(self, name: str, limit: float):
    """ConfigError if more than the share `limit` is unusable, or all."""
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
      'data.max_unusable to the share that may be left out',
    )


def reasons(unusable: Mapping[str, int]) -> str:
  """`, 3 unusable: 2 invalid JSON, 1 too long`, or nothing."""
  if not unusable:
    return ''
  parts = [f'{count:,} {reason}' for reason, count in sorted(unusable.items())]
  return f', {sum(unusable.values()):,} unusable: {", ".join(parts)}'
