"""Metrics of classes, labels and numbers are what their definitions say."""

import numpy as np
import pytest

from gemini_jax.evaluate import classification_metrics

pytest.importorskip('sklearn', reason='needs gemini_jax[tasks]')

# Class 2 does not occur, and is predicted once; class 3 does neither.
TRUTH = np.array([0, 0, 0, 1, 1])
PREDICTED = np.array([0, 0, 1, 1, 2])
NAMES = ('a', 'b', 'c', 'd')


def softmax(x_NC):
  x_NC = np.exp(x_NC)
  return x_NC / x_NC.sum(axis=1, keepdims=True)


def draw(probabilities_NC, rng):
  """A class for each row, by its probabilities."""
  sums_NC = probabilities_NC.cumsum(axis=1)
  return (rng.random((len(sums_NC), 1)) > sums_NC).sum(axis=1)


def test_metrics_by_hand():
  probabilities_NC = np.full((5, 4), 0.1)
  probabilities_NC[np.arange(5), PREDICTED] = 0.7
  metrics = classification_metrics.metrics(
    NAMES, TRUTH, probabilities_NC, num_bootstrap=0
  )
  # Precision 1, 1/2, 0; recall 2/3, 1/2, 0 / 0; F1 4/5, 1/2, 0.
  expected = {
    'accuracy': 3 / 5,
    'balanced_accuracy': (2 / 3 + 1 / 2) / 2,
    'macro_precision': (1 + 1 / 2) / 3,
    'macro_recall': (2 / 3 + 1 / 2) / 3,
    'macro_f1': (4 / 5 + 1 / 2) / 3,
    'weighted_precision': (3 * 1 + 2 * 1 / 2) / 5,
    'weighted_recall': 3 / 5,
    'weighted_f1': (3 * 4 / 5 + 2 * 1 / 2) / 5,
    'nll': -(3 * np.log(0.7) + 2 * np.log(0.1)) / 5,
    # All in one bin.
    'ece': 0.7 - 3 / 5,
  }
  assert metrics == pytest.approx(expected)
  table = classification_metrics.table(NAMES, TRUTH, PREDICTED)
  assert table == {
    'precision': [1, 1 / 2, 0, 0],
    'recall': pytest.approx([2 / 3, 1 / 2, 0, 0]),
    'f1': pytest.approx([4 / 5, 1 / 2, 0, 0]),
    'support': [3, 2, 0, 0],
  }
  confusion_CC = classification_metrics.confusion(4, TRUTH, PREDICTED)
  assert confusion_CC.tolist() == [
    [2, 1, 0, 0],
    [0, 1, 1, 0],
    [0, 0, 0, 0],
    [0, 0, 0, 0],
  ]


def test_only_what_is_as_confident_as_right_is_calibrated():
  rng = np.random.default_rng(0)
  logits_NC = 2 * rng.normal(size=(20_000, 10))
  truth_N = draw(softmax(logits_NC), rng)
  ece = {
    factor: classification_metrics.metrics(
      range(10), truth_N, softmax(factor * logits_NC), num_bootstrap=0
    )['ece']
    for factor in (0.5, 1.0, 3.0)
  }
  assert ece[1.0] < 0.01
  assert ece[0.5] > 0.15 and ece[3.0] > 0.15


def test_bins_are_open_below_and_closed_above():
  confidences = np.array([0.6, 0.6001, 0.9, 1.0])
  probabilities_NC = np.stack([confidences, 1 - confidences], axis=1)
  bins = classification_metrics.calibration(
    np.array([0, 1, 0, 0]), probabilities_NC, num_bins=5
  )
  np.testing.assert_array_equal(bins.counts_K, [0, 0, 1, 1, 2])
  np.testing.assert_allclose(bins.accuracy_K, [0, 0, 1, 0, 1])
  np.testing.assert_allclose(bins.confidence_K, [0, 0, 0.6, 0.6001, 0.95])
  error = classification_metrics.calibration_error(bins)
  assert error == pytest.approx((0.4 + 0.6001 + 2 * 0.05) / 4)


def test_intervals_hold_the_truth_nearly_always():
  """Of 40 test sets, 95 % intervals of accuracy miss the expected one rarely.

  And they are as wide as those of the binomial.
  """
  rng = np.random.default_rng(0)
  probabilities_NC = softmax(rng.normal(size=(40, 400, 3)).reshape(-1, 3))
  truth_N = draw(probabilities_NC, rng)
  expected = probabilities_NC.max(axis=1).mean()
  num_missed, widths = 0, []
  for truth_n, probabilities_nC in zip(
    truth_N.reshape(40, 400), probabilities_NC.reshape(40, 400, 3), strict=True
  ):
    metrics = classification_metrics.metrics(
      range(3), truth_n, probabilities_nC, num_bootstrap=100
    )
    low, high = metrics['accuracy_low'], metrics['accuracy_high']
    assert low < metrics['accuracy'] < high
    assert metrics['macro_f1_low'] < metrics['macro_f1']
    assert metrics['macro_f1'] < metrics['macro_f1_high']
    num_missed += not low < expected < high
    widths.append(high - low)
  assert num_missed <= 6
  width = 2 * 1.96 * np.sqrt(expected * (1 - expected) / 400)
  assert np.mean(widths) == pytest.approx(width, rel=0.1)


def test_the_statistic_of_a_resample_is_that_of_scikit_learn():
  import sklearn.metrics

  rng = np.random.default_rng(0)
  truth_N, predicted_N = rng.integers(9, size=(2, 12))
  found = classification_metrics._accuracy_and_f1(truth_N, predicted_N, 9)
  f1 = sklearn.metrics.f1_score(
    truth_N, predicted_N, average='macro', zero_division=0
  )
  accuracy = sklearn.metrics.accuracy_score(truth_N, predicted_N)
  assert found == pytest.approx({'accuracy': accuracy, 'macro_f1': f1})


LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]])
LABEL_PROBABILITIES = np.array(
  [[0.9, 0.5, 0.1], [0.2, 0.6, 0.4], [0.3, 0.1, 0]]
)


def test_labels_by_hand():
  metrics = classification_metrics.multilabel_metrics(
    'abc', LABELS, LABEL_PROBABILITIES
  )
  # Predicted: a, b; b; none. Right 2 of 3, of 4 in the truth.
  assert metrics == pytest.approx(
    {
      'micro_f1': 4 / 7,
      'macro_f1': (2 / 3 + 1 / 2) / 3,
      # a: first and third of its order; b: first and third.
      'map': (1 + 2 / 3) / 2,
      'subset_accuracy': 0,
    }
  )
  table = classification_metrics.multilabel_table(
    'abc', LABELS, LABEL_PROBABILITIES
  )
  assert table['support'] == [2, 2, 0]
  assert table['average_precision'] == pytest.approx([5 / 6, 5 / 6, 0])
  right = classification_metrics.multilabel_metrics('abc', LABELS, LABELS)
  # The third label has no F1.
  assert [*right.values()] == pytest.approx([1, 2 / 3, 1, 1])


def test_one_label_and_none():
  metrics = classification_metrics.multilabel_metrics(
    'a', [[1], [0], [1]], [[0.9], [0.9], [0.1]]
  )
  assert metrics['micro_f1'] == metrics['macro_f1'] == pytest.approx(1 / 2)
  none = classification_metrics.multilabel_metrics('ab', [[0, 0]], [[0.1, 0.1]])
  assert np.isnan(none['map']) and none['subset_accuracy'] == 1


def test_numbers_by_hand():
  metrics = classification_metrics.regression_metrics(
    [1.0, 2.0, 3.0, 6.0], [1.0, 2.0, 5.0, 6.0]
  )
  assert metrics['rmse'] == pytest.approx(1)
  assert metrics['mae'] == pytest.approx(1 / 2)
  assert metrics['r2'] == pytest.approx(1 - 4 / 14)
  assert metrics['rmse_low'] == 0 and 1 < metrics['rmse_high'] <= 2
  mean = classification_metrics.regression_metrics([1, 2, 6], [3, 3, 3])
  assert mean['r2'] == pytest.approx(0, abs=1e-12)
  assert np.isnan(classification_metrics.regression_metrics([1], [2])['r2'])


BAD = {
  'too large': ([0, 4], np.full((2, 4), 0.25), 'classes 0 to 4, of 4'),
  'negative': ([0, -1], np.full((2, 4), 0.25), 'classes -1 to 0, of 4'),
  'no number': ([0.0, 1.0], np.full((2, 4), 0.25), 'one class number'),
  'counts': ([0], np.full((2, 4), 0.25), 'of 1 examples'),
  'names': ([0, 1], np.full((2, 3), 1 / 3), 'and 4 names'),
  'none': ([], np.zeros((0, 4)), 'of 0 examples'),
  'logits': ([0, 1], np.full((2, 4), -1.0), 'between 0 and 1'),
  'not finite': ([0, 1], np.full((2, 4), np.nan), 'between 0 and 1'),
  'sigmoids': ([0, 1], np.full((2, 4), 0.5), 'add up to 1'),
}


@pytest.mark.parametrize('case', BAD)
def test_arrays_that_do_not_fit_are_refused(case):
  truth, probabilities_NC, message = BAD[case]
  with pytest.raises(ValueError, match=message):
    classification_metrics.metrics(NAMES, truth, probabilities_NC)


@pytest.mark.parametrize(
  ('truth', 'predicted'), [([1, 2], [1]), ([], []), ([1.0], [np.nan])]
)
def test_numbers_that_do_not_fit_are_refused(truth, predicted):
  with pytest.raises(ValueError, match='numbers'):
    classification_metrics.regression_metrics(truth, predicted)
