"""Names of BIO tags, and the likeliest sequence that is one."""

import itertools

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.commands import predict
from gemini_jax.evaluate import class_predictions, classification, tags
from gemini_jax.infer import request as request_lib

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


@pytest.mark.parametrize('num_words', [1, 4, 5])
def test_it_is_the_best_of_all_that_are_bio(num_words):
  rng = np.random.default_rng(num_words)
  greedy_are_bio = []
  for _ in range(10):
    probabilities_WC = rng.dirichlet([0.5] * len(TAGS), num_words)
    best = max(
      (
        ids
        for ids in itertools.product(range(len(TAGS)), repeat=num_words)
        if is_bio([TAGS[i] for i in ids])
      ),
      key=lambda ids: np.prod(probabilities_WC[range(len(ids)), ids]),
    )
    np.testing.assert_array_equal(tags.likeliest(TAGS, probabilities_WC), best)
    greedy = [TAGS[i] for i in probabilities_WC.argmax(axis=1)]
    greedy_are_bio.append(is_bio(greedy))
  assert not all(greedy_are_bio)


@pytest.mark.parametrize('names', [('DT', 'NN', 'VB'), ('O', 'I-LOC', 'I-PER')])
def test_tags_without_a_beginning_follow_any(names):
  probabilities_WC = np.random.default_rng(1).dirichlet([1] * 3, 50)
  np.testing.assert_array_equal(
    tags.likeliest(names, probabilities_WC), probabilities_WC.argmax(axis=1)
  )


def test_a_probability_of_zero_is_no_reason_to_stop():
  (tag,) = tags.likeliest(TAGS, np.array([[0, 0, 1.0, 0, 0]]))
  assert not TAGS[tag].startswith('I')


def test_of_nothing_there_is_nothing():
  assert tags.likeliest(TAGS, np.zeros((0, 5))).size == 0


def test_reports_are_of_the_likeliest_tags_of_each_example():
  """Of the second word, I-LOC alone is the likeliest, and begins no span."""
  outputs_NC = np.array(
    [[0.1, 0.9, 0, 0, 0], [0.3, 0.1, 0.6, 0, 0], [0.9, 0.1, 0, 0, 0]]
  )
  truth_N, examples_N = np.array([1, 0, 0]), np.array([0, 1, 1])
  truth, predicted = classification.tag_sequences(
    TAGS, class_predictions.Predictions(truth_N, outputs_NC, examples_N)
  )
  assert [part.tolist() for part in truth] == [[1], [0, 0]]
  assert [part.tolist() for part in predicted] == [[1], [0, 0]]


def test_predictions_are_the_likeliest_tags():
  config = config_lib.from_config_dict(
    {
      'data': {
        'tasks': ('{words:tokens} -> {tags:tags}',),
        'label_names': TAGS,
        'objective': 'prefix',
      }
    }
  )
  request = request_lib.Request('', np.zeros(0, np.int32))
  line = predict._named(
    config,
    predict._Example(request, ('in', 'Rome')),
    np.array([[0.3, 0.1, 0.6, 0, 0], [0.1, 0.2, 0.7, 0, 0]]),
  )
  assert line == {
    'words': ('in', 'Rome'),
    'prediction': ['B-LOC', 'I-LOC'],
    'probability': [0.1, 0.7],
  }
