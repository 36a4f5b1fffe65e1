"""The numbers of a set of texts are those that hands compute."""

import math

import numpy as np
import pytest

from gemini_jax.evaluate import ngram


def test_words_are_runs_of_letters_and_single_marks():
  assert ngram.words("a `bird' (small), x2") == (
    ['a', '`', 'bird', "'", '(', 'small', ')', ',', 'x2']
  )


def test_self_bleu_by_hand():
  """Two texts of five and four words that share `a b c`."""
  # Of the first: 3/5 words, 2/4 pairs, 1/3 triples, 0.1/2 of four; longer.
  first = (3 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** (1 / 4)
  # Of the second: 3/4, 2/3, 1/2, 0.1/1; shorter by one word.
  second = (3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 4) * math.exp(1 - 5 / 4)
  found = ngram.self_bleu(['a b c d e', 'a b c f'])
  np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-12)


@pytest.mark.parametrize(
  ('texts', 'expected'),
  [
    (['a b c d e'] * 3, 1.0),
    # Short texts have only the orders that they are long enough for.
    (['a', 'a'], 1.0),
    (['a b', 'a b', ''], 1.0),
    (['a b c d', 'e f g h', 'i j k l'], 0.0),
    (['', ''], 1.0),
  ],
)
def test_self_bleu_of_the_same_and_of_the_different(texts, expected):
  assert ngram.self_bleu(texts) == expected


def plain_self_bleu(texts):
  """By its definition, reference by reference."""
  total = 0.0
  for i, text in enumerate(texts):
    own, others = text.split(), [t.split() for t in texts[:i] + texts[i + 1 :]]
    grams = lambda words, n: [
      tuple(words[k : k + n]) for k in range(len(words) - n + 1)
    ]
    logs, matched = [], False
    for n in range(1, min(4, len(own)) + 1):
      matches = sum(
        min(
          grams(own, n).count(gram),
          max(grams(other, n).count(gram) for other in others),
        )
        for gram in set(grams(own, n))
      )
      matched |= bool(n == 1 and matches)
      logs.append(math.log((matches or 0.1) / len(grams(own, n))))
    nearest = min((abs(len(o) - len(own)), len(o)) for o in others)[1]
    brevity = min(1.0, math.exp(1 - nearest / len(own)))
    total += matched * brevity * math.exp(sum(logs) / len(logs))
  return total / len(texts)


@pytest.mark.parametrize('seed', range(5))
def test_self_bleu_equals_its_definition(seed):
  """Few different words, so that clipping and ties matter."""
  random = np.random.default_rng(seed)
  texts = [
    ' '.join(random.choice(list('abc'), random.integers(1, 9)))
    for _ in range(12)
  ]
  np.testing.assert_allclose(
    ngram.self_bleu(texts), plain_self_bleu(texts), rtol=1e-12
  )


def test_distinct():
  texts = ['a b a', 'a b']
  assert ngram.distinct(texts, 1) == 2 / 5
  assert ngram.distinct(texts, 2) == 2 / 3
  assert ngram.distinct(texts, 4) == 0


def test_overlap():
  assert ngram.overlap('a b b', 'b a b') == 1
  assert ngram.overlap('a b', 'c') == 0
  np.testing.assert_allclose(ngram.overlap('a a b', 'a c'), 2 * 1 / 5)
  assert ngram.overlap('', '') == 1
