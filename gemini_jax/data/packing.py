"""Packing plans: which pieces of which documents fill each row.

A plan gives the pieces of any rows, in any order, by vectorised arithmetic:
there is no loop over documents or tokens, and over rows only in `next_fit`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Mixture weights are rounded to multiples of about 1 / _PERIOD.
_PERIOD = 10_000


class Pieces(NamedTuple):
  """Pieces of documents in the rows of a batch, row by row.

  Attributes:
    rows: int64[P], the row of each piece, ascending.
    starts: int64[P], index of its first token among all tokens of the source.
    lengths: int64[P], positions; one less than its number of tokens.
    firsts: int64[P], index of the first target in the piece; 1 for plain text.
  """

  rows: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray
  firsts: np.ndarray


@dataclasses.dataclass(frozen=True)
class StreamPlan:
  """Documents concatenated into a stream that is cut every `width` positions.

  Attributes:
    starts: int64[D], first token of each document, in stream order.
    ends: int64[D], position in the stream after each document.
    begin: position where the first row begins; the stream wraps around.
    size: total positions, each of which is in one row.
    width: positions of a row.
  """

  starts: np.ndarray
  ends: np.ndarray
  begin: int
  size: int
  width: int

  @classmethod
  def make(cls, starts, lengths, width, order=None, begin=0):
    """The plan of documents in the given order."""
    if order is not None:
      starts, lengths = starts[order], lengths[order]
    ends = np.cumsum(lengths)
    size = int(ends[-1])
    if begin:
      # The last row wraps around into these documents.
      again = slice(0, int(np.searchsorted(ends, begin)) + 1)
      starts = np.concatenate([starts, starts[again]])
      ends = np.concatenate([ends, size + ends[again]])
    return cls(starts, ends, begin, size, width)

  @property
  def num_rows(self) -> int:
    """Number of rows; the last may be partly empty."""
    return -(-self.size // self.width)

  def pieces(self, rows: np.ndarray) -> Pieces:
    """Pieces of the given rows; rows past the last are empty."""
    start = np.minimum(rows * self.width, self.size) + self.begin
    stop = np.minimum(start + self.width, self.begin + self.size)
    first = np.searchsorted(self.ends, start, 'right')
    last = np.searchsorted(self.ends, stop, 'left')
    owner, document = _spans(first, np.where(stop > start, last + 1, first))
    begins = np.where(document > 0, self.ends[document - 1], 0)
    left = np.maximum(begins, start[owner])
    lengths = np.minimum(self.ends[document], stop[owner]) - left
    starts = self.starts[document] + left - begins
    return Pieces(owner, starts, lengths, np.ones_like(starts))


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """Rows of whole documents, or of one piece each.

  Attributes:
    bounds: int64[R + 1], the first piece of each row.
    starts, lengths, firsts: int64[P], as in Pieces.
  """

  bounds: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray
  firsts: np.ndarray

  @property
  def num_rows(self) -> int:
    """Number of rows."""
    return len(self.bounds) - 1

  def pieces(self, rows: np.ndarray) -> Pieces:
    """Pieces of the given rows; rows past the last are empty."""
    first = self.bounds[np.minimum(rows, self.num_rows)]
    last = self.bounds[np.minimum(rows + 1, self.num_rows)]
    owner, piece = _spans(first, last)
    return Pieces(
      owner, self.starts[piece], self.lengths[piece], self.firsts[piece]
    )


def cut(starts: np.ndarray, lengths: np.ndarray, width: int) -> RowPlan:
  """One piece a row; a text longer than a row takes several rows."""
  counts = -(-lengths // width)
  owner, index = _spans(np.zeros_like(counts), counts)
  left = index * width
  return RowPlan(
    np.arange(len(owner) + 1),
    starts[owner] + left,
    np.minimum(lengths[owner] - left, width),
    np.ones_like(left),
  )


def next_fit(
  sizes: Sequence[np.ndarray], capacities: Sequence[int]
) -> np.ndarray:
  """int64[R + 1], bounds of rows filled in order while all sizes fit.

  Args:
    sizes: int64[N] arrays, the size of each document in each sequence; none is
      larger than the capacity.
    capacities: of a row in each sequence.
  """
  jumps = []
  for size, capacity in zip(sizes, capacities, strict=True):
    total = np.concatenate([[0], np.cumsum(size)])
    jumps.append(np.searchsorted(total, total[:-1] + capacity, 'right') - 1)
  follow = np.min(jumps, axis=0).tolist()
  bounds = [0]
  while bounds[-1] < len(follow):
    bounds.append(follow[bounds[-1]])
  return np.asarray(bounds)


def schedule(
  weights: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The source of each row of a mixture, over one period.

  After any number of rows, the number of rows of each source is within one of
  its share, which is rounded to 1/10,000 (Tijdeman, "The chairman assignment
  problem", 1980).

  Args:
    weights: mixture weights, not necessarily normalised.

  Returns:
    The source of each row of the period, the number of earlier rows of that
    source, and the number of rows of each source in a period.
  """
  shares = np.asarray(weights, np.float64) / np.sum(weights)
  counts = np.maximum(np.round(shares * _PERIOD).astype(np.int64), 1)
  counts //= np.gcd.reduce(counts)
  period = counts.sum()
  slack = 2 * max(len(counts) - 1, 1)
  given = np.zeros_like(counts)
  owners, ranks = [], []
  for row in range(1, period + 1):
    due = (row * counts - period * given) * slack
    # Of the sources that may come next, the one with the earliest deadline.
    deadline = np.where(due >= period, (period * slack - due) / counts, np.inf)
    owner = int(np.argmin(deadline))
    owners.append(owner)
    ranks.append(int(given[owner]))
    given[owner] += 1
  return np.asarray(owners), np.asarray(ranks), counts


def _spans(first: np.ndarray, last: np.ndarray):
  """The span of each integer of the spans [first, last), and the integer."""
  counts = last - first
  owner = np.repeat(np.arange(len(counts)), counts)
  ends = np.cumsum(counts)
  return owner, np.arange(counts.sum()) - (ends - counts - first)[owner]
