"""How near captions are to those that people wrote.

A word is a run of letters and digits; of Chinese and Japanese, one character.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib

_ORDERS = range(1, 5)
# Standard deviation of the penalty for another length, in words.
_SIGMA = 6.0
# Chinese characters and kana: no blanks stand between their words.
_CHARACTER = re.compile('[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]')
_WORD = re.compile(r'\w+')


def check():
  """ConfigError, with the remedy, unless BLEU can be computed."""
  _sacrebleu()


def _sacrebleu() -> Any:
  return config_lib.optional(
    'sacrebleu', 'BLEU of captions needs sacrebleu', 'captions'
  )


def report(
  hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
  """BLEU and CIDEr-D of captions, each with one or more references."""
  return {
    'bleu': bleu(hypotheses, references),
    'cider': cider(hypotheses, references),
  }


def bleu(
  hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """BLEU-4 of all captions together by sacrebleu (13a), 0 to 100.

  Case counts. Where no caption has four words, of the orders that there are.
  """
  _paired(hypotheses, references)
  most = max(map(len, references))
  # As many for each: one that stands there twice changes nothing.
  streams = [
    [_apart(each[min(k, len(each) - 1)]) for each in references]
    for k in range(most)
  ]
  metric = _sacrebleu().BLEU(effective_order=True)
  return metric.corpus_score([*map(_apart, hypotheses)], streams).score


def cider(
  hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """CIDEr-D (Vedantam et al. 2015, equations 1, 4 and 5), 0 to 10.

  How rare an n-gram is is counted in these references: figures of other sets
  do not compare, and of one caption it is 0. Tables of COCO show it times 10.
  A reference has no n-grams longer than itself, so that captions of less than
  four words stay below 10. The words are those of `words`, where COCO's own
  evaluation splits as the Penn Treebank does.
  """
  _paired(hypotheses, references)
  found = [[_count(words(each)) for each in some] for some in references]
  documents = collections.Counter()
  for some in found:
    documents.update(set().union(*some))
  number = math.log(len(found))
  rarity = collections.defaultdict(
    lambda: number,
    {gram: number - math.log(count) for gram, count in documents.items()},
  )
  total = 0.0
  for hypothesis, some in zip(hypotheses, found, strict=True):
    own = _count(words(hypothesis))
    total += sum(_likeness(own, each, rarity) for each in some) / len(some)
  return 10 * total / len(found)


def words(text: str) -> list[str]:
  """The words of a caption, in small letters, without marks."""
  return _WORD.findall(_apart(text).lower())


def _apart(text: str) -> str:
  return _CHARACTER.sub(r' \g<0> ', text)


def _paired(hypotheses, references):
  if not hypotheses or len(hypotheses) != len(references):
    raise ValueError(
      f'{len(hypotheses)} captions for {len(references)} with references; '
      'there must be as many, and at least one'
    )
  if not all(references):
    raise ValueError('every caption needs at least one reference')


def _count(found: Sequence[str]) -> collections.Counter:
  return collections.Counter(
    tuple(found[i : i + n]) for n in _ORDERS for i in range(len(found) - n + 1)
  )


def _likeness(
  own: collections.Counter,
  other: collections.Counter,
  rarity: Mapping[tuple[str, ...], float],
) -> float:
  """Mean cosine of the orders, of counts clipped to the reference's."""
  dots, squares, other_squares, lengths = np.zeros((4, len(_ORDERS)))
  for gram, count in own.items():
    order, weight = len(gram) - 1, rarity[gram] ** 2
    dots[order] += min(count, other[gram]) * other[gram] * weight
    squares[order] += count**2 * weight
    lengths[order] += count
  for gram, count in other.items():
    order = len(gram) - 1
    other_squares[order] += (count * rarity[gram]) ** 2
    lengths[order] -= count
  # Of what has no n-grams, or only such as stand everywhere, it is 0.
  norms = np.sqrt(squares * other_squares)
  cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
  penalty = math.exp(-(lengths[0] ** 2) / (2 * _SIGMA**2))
  return float(cosines.mean()) * penalty
