"""Names of BIO tags, and the likeliest sequence that is one."""

import itertools

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.evaluate import tags

TAGS = ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (('O', 'PER'), "the tag 'PER' is not BIO: O, B-TYPE or I-TYPE"),
    (('O', 'B-'), "the tag 'B-' is not BIO"),
    (('o',), "the tag 'o' is not BIO"),
    (('O', 'B-LOC', 'S-LOC'), "the tag 'S-LOC' is not BIO"),
    (('O', 'B-LOC', 'I-PER'), "the tag 'I-PER' has no 'B-PER'"),
  ],
)
def test_tags_that_are_not_bio_are_named(names, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    tags.check(names)


def test_tags_that_are_bio_pass():
  tags.check(TAGS)
  tags.check(('O', 'B-date-of-birth'))


def is_bio(names):
  """Whether each I- goes on with a span of its type."""
  before = ['O', *names]
  return all(
    not name.startswith('I-') or last[2:] == name[2:]
    for last, name in zip(before, names, strict=False)
  )


def test_it_is_the_best_of_all_that_are_bio():
  rng = np.random.default_rng(0)
  lengths = [1, 4, 3, 1, 4]
  probabilities_NC = rng.dirichlet([0.5] * len(TAGS), sum(lengths))
  found_N = tags.likeliest(
    TAGS, probabilities_NC, np.repeat(np.arange(len(lengths)), lengths)
  )
  bounds = np.cumsum(lengths)[:-1]
  greedy = probabilities_NC.argmax(axis=1)
  assert not all(
    is_bio([TAGS[i] for i in part]) for part in np.split(greedy, bounds)
  )
  for part, probabilities in zip(
    np.split(found_N, bounds), np.split(probabilities_NC, bounds), strict=True
  ):
    best = max(
      (
        ids
        for ids in itertools.product(range(len(TAGS)), repeat=len(part))
        if is_bio([TAGS[i] for i in ids])
      ),
      key=lambda ids: np.prod(probabilities[range(len(ids)), ids]),
    )
    np.testing.assert_array_equal(part, best)


@pytest.mark.parametrize('names', [('DT', 'NN', 'VB'), ('O', 'I-LOC', 'I-PER')])
def test_tags_without_a_beginning_follow_any(names):
  probabilities_NC = np.random.default_rng(1).dirichlet([1] * 3, 50)
  np.testing.assert_array_equal(
    tags.likeliest(names, probabilities_NC, np.arange(50) // 7),
    probabilities_NC.argmax(axis=1),
  )


def test_a_probability_of_zero_is_no_reason_to_stop():
  found = tags.likeliest(TAGS, np.array([[0, 0, 1.0, 0, 0]]), np.zeros(1))
  assert TAGS[found[0]][0] != 'I'


def test_of_nothing_there_is_nothing():
  assert tags.likeliest(TAGS, np.zeros((0, 5)), np.zeros(0)).size == 0
