"""How much texts have in common, from the words that they are made of.

A word is a run of letters and digits, or any other mark; case counts.
"""

import collections
import math
import re
from collections.abc import Sequence

_WORD = re.compile(r'\w+|[^\w\s]')
_ORDER = 4
# Counts as so many matches where there is none (Chen and Cherry 2014,
# smoothing 1).
_SMOOTH = 0.1


def words(text: str) -> list[str]:
  """The words of a text."""
  return _WORD.findall(text)


def self_bleu(texts: Sequence[str]) -> float:
  """Mean BLEU-4 of each text against all the others (Zhu et al. 2018).

  1: every text stands there again; 0: no two share a word. It is exact, and it
  rises with the number of texts: compare equal numbers. Orders above 1 without
  a match count 0.1 of one (smoothing 1 of Chen and Cherry 2014); a text of
  less than four words has only the orders that it is long enough for. Texts
  without a word are left out.
  """
  split = [found for found in map(words, texts) if found]
  if len(split) < 2:
    return 1.0
  counts = [[_count(found, n) for n in range(1, _ORDER + 1)] for found in split]
  most = [_Most([each[n] for each in counts]) for n in range(_ORDER)]
  lengths = collections.Counter(map(len, split))
  total = 0.0
  for i, found in enumerate(split):
    precisions = []
    for n in range(min(_ORDER, len(found))):
      own = counts[i][n]
      matches = sum(
        min(count, most[n].of_others(gram, i)) for gram, count in own.items()
      )
      precisions.append((matches or _SMOOTH) / own.total())
      if not n and not matches:
        break
    else:
      geometric = math.exp(sum(map(math.log, precisions)) / len(precisions))
      total += geometric * _brevity(len(found), lengths)
  return total / len(split)


class _Most:
  """The largest count of each n-gram in one of the other texts."""

  def __init__(self, counts: Sequence[collections.Counter]):
    # Of each n-gram: its largest count, where, and the largest elsewhere.
    self._found: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, own in enumerate(counts):
      for gram, count in own.items():
        first, where, second = self._found.get(gram, (0, -1, 0))
        if count > first:
          self._found[gram] = count, i, first
        else:
          self._found[gram] = first, where, max(second, count)

  def of_others(self, gram: tuple[str, ...], index: int) -> int:
    first, where, second = self._found[gram]
    return second if where == index else first


def _brevity(length: int, lengths: collections.Counter) -> float:
  """BLEU's penalty against the nearest length of another text."""
  others = [
    other for other, count in lengths.items() if count > (other == length)
  ]
  nearest = min(others, key=lambda other: (abs(other - length), other))
  return math.exp(min(0.0, 1 - nearest / length))


def distinct(texts: Sequence[str], n: int) -> float:
  """Different n-grams of all texts for each n-gram (Li et al. 2016)."""
  total = collections.Counter()
  for text in texts:
    total.update(_count(words(text), n))
  return len(total) / max(1, total.total())


def overlap(text: str, other: str) -> float:
  """F1 of the words of two texts, in any order."""
  one, two = (collections.Counter(words(each)) for each in (text, other))
  size = one.total() + two.total()
  return 2 * (one & two).total() / size if size else 1.0


def _count(found: Sequence[str], n: int) -> collections.Counter:
  return collections.Counter(zip(*(found[i:] for i in range(n)), strict=False))
