"""BLEU and CIDEr-D of captions against references that people wrote.

A word is a run of letters and digits; in Chinese and Japanese, a character.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib

_ORDERS = range(1, 5)
# Standard deviation of the Gaussian penalty on a difference in length, words.
_SIGMA = 6.0
# Chinese characters and kana, whose words have no blanks between them.
_CHARACTER = re.compile('[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]')
_WORD = re.compile(r'\w+')


def check():
  """ConfigError, with the remedy, unless sacrebleu is installed."""
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
  """Corpus BLEU-4 by sacrebleu (13a), 0 to 100; case counts.

  Where no caption has four words, it is of the orders that there are.
  """
  _check_pairs(hypotheses, references)
  # sacrebleu takes equally many references of each caption; a repeated one
  # changes nothing.
  streams = [
    [_with_blanks(texts[min(k, len(texts) - 1)]) for texts in references]
    for k in range(max(map(len, references)))
  ]
  metric = _sacrebleu().BLEU(effective_order=True)
  return metric.corpus_score([*map(_with_blanks, hypotheses)], streams).score


def cider(
  hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """CIDEr-D (Vedantam et al. 2015, equations 1, 4 and 5), 0 to 10.

  Document frequencies are those of these references, so scores of different
  sets do not compare, and the score of a single caption is 0. Tables of COCO
  show it times 10. Captions of fewer than four words stay below 10, since they
  have no 4-grams. Texts are split by `words`; COCO's evaluation splits as the
  Penn Treebank does.
  """
  _check_pairs(hypotheses, references)
  counts = [[_count(words(text)) for text in texts] for texts in references]
  documents = collections.Counter()
  for of_references in counts:
    documents.update(set().union(*of_references))
  log_size = math.log(len(counts))
  idf = collections.defaultdict(
    lambda: log_size,
    {gram: log_size - math.log(count) for gram, count in documents.items()},
  )
  total = 0.0
  for hypothesis, of_references in zip(hypotheses, counts, strict=True):
    count = _count(words(hypothesis))
    scores = [_similarity(count, other, idf) for other in of_references]
    total += sum(scores) / len(scores)
  return 10 * total / len(counts)


def words(text: str) -> list[str]:
  """The words of a caption, in lower case, without punctuation."""
  return _WORD.findall(_with_blanks(text).lower())


def _with_blanks(text: str) -> str:
  """The text with blanks around Chinese and Japanese characters."""
  return _CHARACTER.sub(r' \g<0> ', text)


def _check_pairs(
  hypotheses: Sequence[str], references: Sequence[Sequence[str]]
):
  if not hypotheses or len(hypotheses) != len(references):
    raise ValueError(
      f'{len(hypotheses)} captions for {len(references)} with references; '
      'there must be as many, and at least one'
    )
  if not all(references):
    raise ValueError('every caption needs at least one reference')


def _count(text_words: Sequence[str]) -> collections.Counter:
  """How often each n-gram of the orders 1 to 4 occurs."""
  return collections.Counter(
    tuple(text_words[i : i + n])
    for n in _ORDERS
    for i in range(len(text_words) - n + 1)
  )


def _similarity(
  count: collections.Counter,
  reference: collections.Counter,
  idf: Mapping[tuple[str, ...], float],
) -> float:
  """Mean over the orders of the cosine of TF-IDF vectors, counts clipped.

  Args:
    count: n-grams of a caption; no count exceeds the reference's.
    reference: n-grams of a reference.
    idf: inverse document frequencies of n-grams.
  """
  dots, squares, reference_squares, lengths = np.zeros((4, len(_ORDERS)))
  for gram, number in count.items():
    order, weight = len(gram) - 1, idf[gram] ** 2
    dots[order] += min(number, reference[gram]) * reference[gram] * weight
    squares[order] += number**2 * weight
    lengths[order] += number
  for gram, number in reference.items():
    order = len(gram) - 1
    reference_squares[order] += (number * idf[gram]) ** 2
    lengths[order] -= number
  # 0 where a side has no n-gram, or only n-grams that every caption has.
  norms = np.sqrt(squares * reference_squares)
  cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
  penalty = math.exp(-(lengths[0] ** 2) / (2 * _SIGMA**2))
  return float(cosines.mean()) * penalty
