"""Diversity and overlap of texts by their n-grams of words.

A word is a run of letters and digits, or a single punctuation mark; case
counts.
"""

import collections
import math
import re
from collections.abc import Sequence

_WORD = re.compile(r'\w+|[^\w\s]')
_ORDER = 4
# Matches that an order without any is given (Chen and Cherry 2014, smoothing
# 1).
_SMOOTH = 0.1


def words(text: str) -> list[str]:
  """The words of a text."""
  return _WORD.findall(text)


def self_bleu(texts: Sequence[str]) -> float:
  """Mean BLEU-4 of each text against all the others (Zhu et al. 2018).

  1 if every text occurs twice, 0 if no two share a word. It is computed for
  all texts, without sampling, and rises with their number: compare sets of one
  size. An order above 1 without a match counts as 0.1 matches (smoothing 1 of
  Chen and Cherry 2014); a text of fewer than four words has only the orders
  that it is long enough for. Texts without a word are left out.
  """
  split = [text_words for text_words in map(words, texts) if text_words]
  if len(split) < 2:
    return 1.0
  orders = range(1, _ORDER + 1)
  counts = [[_count(text_words, n) for n in orders] for text_words in split]
  largest = [
    _LargestCounts([of_text[n] for of_text in counts]) for n in range(_ORDER)
  ]
  lengths = collections.Counter(map(len, split))
  total = 0.0
  for i, text_words in enumerate(split):
    precisions = []
    for n in range(min(_ORDER, len(text_words))):
      matches = sum(
        min(count, largest[n].without(gram, i))
        for gram, count in counts[i][n].items()
      )
      precisions.append((matches or _SMOOTH) / counts[i][n].total())
      if not n and not matches:
        break
    else:
      geometric = math.exp(sum(map(math.log, precisions)) / len(precisions))
      total += geometric * _brevity(len(text_words), lengths)
  return total / len(split)


class _LargestCounts:
  """The largest count of each n-gram in a text, with any one text left out."""

  def __init__(self, counts: Sequence[collections.Counter]):
    # Of each n-gram: the largest count, its text, and the largest of the rest.
    self._largest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, of_text in enumerate(counts):
      for gram, count in of_text.items():
        first, text, second = self._largest.get(gram, (0, -1, 0))
        if count > first:
          self._largest[gram] = count, i, first
        else:
          self._largest[gram] = first, text, max(second, count)

  def without(self, gram: tuple[str, ...], index: int) -> int:
    """The largest count in all texts but that of `index`."""
    first, text, second = self._largest[gram]
    return second if text == index else first


def _brevity(length: int, lengths: collections.Counter) -> float:
  """BLEU's brevity penalty, by the nearest length of another text."""
  others = [
    other for other, count in lengths.items() if count > (other == length)
  ]
  nearest = min(others, key=lambda other: (abs(other - length), other))
  return math.exp(min(0.0, 1 - nearest / length))


def distinct(texts: Sequence[str], n: int) -> float:
  """Share of distinct n-grams among all n-grams (Li et al. 2016)."""
  total = collections.Counter()
  for text in texts:
    total.update(_count(words(text), n))
  return len(total) / max(1, total.total())


def overlap(text: str, other: str) -> float:
  """F1 of the words of two texts, in any order; 1 if neither has any."""
  first, second = (collections.Counter(words(t)) for t in (text, other))
  size = first.total() + second.total()
  return 2 * (first & second).total() / size if size else 1.0


def _count(text_words: Sequence[str], n: int) -> collections.Counter:
  grams = zip(*(text_words[i:] for i in range(n)), strict=False)
  return collections.Counter(grams)
