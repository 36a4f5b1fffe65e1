"""Metrics of classes, of several labels at once and of numbers.

The mathematics is scikit-learn's, but for the calibration error.

N examples, C classes or labels, K bins.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.evaluate import bootstrap

# Bins of the calibration error (Guo et al. 2017).
NUM_BINS = 15
# Labels that are at least as probable count as predicted.
THRESHOLD = 0.5
# Columns of `table` and `multilabel_table`.
COLUMNS = ('precision', 'recall', 'f1', 'support')
MULTILABEL_COLUMNS = (*COLUMNS, 'average_precision')


class Bins(NamedTuple):
  """Predictions by their confidence, in bins of equal width.

  Attributes:
    counts_K: predictions in each bin.
    confidence_K: their mean confidence; 0 where there are none.
    accuracy_K: share of them that is right; 0 where there are none.
  """

  counts_K: np.ndarray
  confidence_K: np.ndarray
  accuracy_K: np.ndarray


def check():
  """ConfigError, with the remedy, unless scikit-learn is installed."""
  _sklearn()


def _sklearn() -> Any:
  return config_lib.optional(
    'sklearn.metrics', 'metrics of classes need scikit-learn', 'tasks'
  )


def metrics(
  names: Sequence[str],
  truth_N: np.ndarray,
  probabilities_NC: np.ndarray,
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, float]:
  """Metrics of predictions of one class each: the most probable one.

  `macro_` is the mean over the classes that occur, in the truth or among the
  predictions, and `weighted_` that by their support; what would be 0 / 0 is 0.
  `balanced_accuracy` is the mean recall of the classes of the truth, `nll` is
  in nats, and `ece` is the expected calibration error of 15 bins of equal
  width. `NAME_low` and `NAME_high` are 95 % intervals by the bootstrap.

  Args:
    names: of the classes.
    truth_N: int, the class of each example.
    probabilities_NC: float, of each class; rows add up to 1.
    num_bootstrap: resamples of the intervals; 0: none.
    seed: of the bootstrap.

  Raises:
    ValueError: the arrays do not fit each other or hold other numbers.
  """
  truth_N, probabilities_NC = _checked(names, truth_N, probabilities_NC)
  predicted_N = probabilities_NC.argmax(axis=1)
  sklearn = _sklearn()
  found = {}
  for average in ('macro', 'weighted'):
    scores = sklearn.precision_recall_fscore_support(
      truth_N, predicted_N, average=average, zero_division=0
    )
    for name, value in zip(COLUMNS, scores[:3], strict=False):
      found[f'{average}_{name}'] = float(value)
  balanced = sklearn.recall_score(
    truth_N,
    predicted_N,
    labels=np.unique(truth_N),
    average='macro',
    zero_division=0,
  )
  nll = sklearn.log_loss(
    truth_N, probabilities_NC, labels=np.arange(len(names))
  )
  return {
    'accuracy': float(np.mean(predicted_N == truth_N)),
    'balanced_accuracy': float(balanced),
    **found,
    'nll': float(nll),
    'ece': calibration_error(calibration(truth_N, probabilities_NC)),
    **bootstrap.intervals(
      lambda rows: _accuracy_and_f1(
        truth_N[rows], predicted_N[rows], len(names)
      ),
      len(truth_N),
      num_bootstrap,
      seed,
    ),
  }


def table(
  names: Sequence[str], truth_N: np.ndarray, predicted_N: np.ndarray
) -> dict[str, list[float]]:
  """Precision, recall, F1 and support of each class, in columns of length C."""
  scores = _sklearn().precision_recall_fscore_support(
    truth_N, predicted_N, labels=np.arange(len(names)), zero_division=0
  )
  return {
    name: values.tolist() for name, values in zip(COLUMNS, scores, strict=True)
  }


def confusion(
  num_classes: int, truth_N: np.ndarray, predicted_N: np.ndarray
) -> np.ndarray:
  """int[C, C], examples by their class and by the predicted one."""
  return _sklearn().confusion_matrix(
    truth_N, predicted_N, labels=np.arange(num_classes)
  )


def calibration(
  truth_N: np.ndarray, probabilities_NC: np.ndarray, num_bins: int = NUM_BINS
) -> Bins:
  """Predictions in bins of equal width by their confidence.

  A bin takes what is above its lower edge, up to its upper one.
  """
  confidence_N = probabilities_NC.max(axis=1)
  right_N = probabilities_NC.argmax(axis=1) == truth_N
  bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(int), 1, num_bins) - 1
  counts_K, *sums = (
    np.bincount(bin_N, weights, num_bins)
    for weights in (None, confidence_N, right_N)
  )
  return Bins(counts_K, *(sum_K / np.maximum(counts_K, 1) for sum_K in sums))


def calibration_error(bins: Bins) -> float:
  """Mean distance of accuracy from confidence, over predictions (ECE)."""
  distance_K = np.abs(bins.accuracy_K - bins.confidence_K)
  return float(np.sum(bins.counts_K * distance_K) / np.sum(bins.counts_K))


def multilabel_metrics(
  names: Sequence[str], truth_NC: np.ndarray, probabilities_NC: np.ndarray
) -> dict[str, float]:
  """Metrics of any number of labels for an example.

  F1 of labels that have a probability of at least 0.5; the mean over labels of
  average precision (`map`), of labels that occur in the truth, NaN where none
  does; and the share of examples whose labels are all right.

  Args:
    names: of the labels.
    truth_NC: bool, which labels an example has.
    probabilities_NC: float, of each label by itself.

  Raises:
    ValueError: the arrays do not fit each other or hold other numbers.
  """
  columns = multilabel_table(names, truth_NC, probabilities_NC)
  truth_NC, probabilities_NC = _checked_labels(
    names, truth_NC, probabilities_NC
  )
  predicted_NC = probabilities_NC >= THRESHOLD
  # A mean over all pairs of an example and a label is that of one label.
  micro_f1 = _sklearn().f1_score(
    truth_NC.ravel(), predicted_NC.ravel(), zero_division=0
  )
  precision_C = np.array(columns['average_precision'])
  occurs_C = truth_NC.any(axis=0)
  return {
    'micro_f1': float(micro_f1),
    'macro_f1': float(np.mean(columns['f1'])),
    'map': float(precision_C[occurs_C].mean()) if occurs_C.any() else np.nan,
    'subset_accuracy': float(np.mean((predicted_NC == truth_NC).all(axis=1))),
  }


def multilabel_table(
  names: Sequence[str], truth_NC: np.ndarray, probabilities_NC: np.ndarray
) -> dict[str, list[float]]:
  """`table` of labels at 0.5, with their average precision.

  That is 0 for a label that does not occur.
  """
  truth_NC, probabilities_NC = _checked_labels(
    names, truth_NC, probabilities_NC
  )
  sklearn = _sklearn()
  rows = []
  for truth_N, probabilities_N in zip(
    truth_NC.T, probabilities_NC.T, strict=True
  ):
    *scores, _ = sklearn.precision_recall_fscore_support(
      truth_N, probabilities_N >= THRESHOLD, average='binary', zero_division=0
    )
    support = int(truth_N.sum())
    average = 0.0
    if support:
      average = sklearn.average_precision_score(truth_N, probabilities_N)
    rows.append((*map(float, scores), support, float(average)))
  return {
    name: [*column]
    for name, column in zip(
      MULTILABEL_COLUMNS, zip(*rows, strict=True), strict=True
    )
  }


def regression_metrics(
  truth_N: np.ndarray,
  predicted_N: np.ndarray,
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, float]:
  """RMSE with its 95 % interval, MAE and R2 of predicted numbers.

  R2 is NaN for a single number.

  Args:
    truth_N: float, what is right.
    predicted_N: float.
    num_bootstrap: resamples of the interval; 0: none.
    seed: of the bootstrap.

  Raises:
    ValueError: the arrays do not fit each other or are not finite.
  """
  truth_N, predicted_N = (
    np.asarray(values, np.float64) for values in (truth_N, predicted_N)
  )
  if (
    truth_N.ndim != 1 or truth_N.shape != predicted_N.shape or not truth_N.size
  ):
    raise ValueError(f'{truth_N.shape} numbers for {predicted_N.shape}')
  if not (np.isfinite(truth_N).all() and np.isfinite(predicted_N).all()):
    raise ValueError('numbers must be finite')
  sklearn = _sklearn()
  squares_N = np.square(predicted_N - truth_N)
  r2 = np.nan
  if len(truth_N) > 1:
    r2 = sklearn.r2_score(truth_N, predicted_N)
  return {
    'rmse': float(sklearn.root_mean_squared_error(truth_N, predicted_N)),
    'mae': float(sklearn.mean_absolute_error(truth_N, predicted_N)),
    'r2': float(r2),
    **bootstrap.intervals(
      lambda rows: {'rmse': float(np.sqrt(squares_N[rows].mean()))},
      len(truth_N),
      num_bootstrap,
      seed,
    ),
  }


def _accuracy_and_f1(
  truth_N: np.ndarray, predicted_N: np.ndarray, num_classes: int
) -> dict[str, float]:
  """Both in as few passes as a resample of the bootstrap can take."""
  right_N = truth_N == predicted_N
  right_C, support_C, predicted_C = (
    np.bincount(classes, minlength=num_classes)
    for classes in (truth_N[right_N], truth_N, predicted_N)
  )
  both_C = support_C + predicted_C
  f1_C = 2 * right_C / np.maximum(both_C, 1)
  return {
    'accuracy': float(right_N.mean()),
    'macro_f1': float(f1_C.sum() / np.count_nonzero(both_C)),
  }


def _checked(
  names: Sequence[str], truth_N: np.ndarray, probabilities_NC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Both as arrays of int and float64, the rows adding up to 1."""
  truth_N = np.asarray(truth_N)
  probabilities_NC = _probabilities(names, truth_N, probabilities_NC)
  if not np.issubdtype(truth_N.dtype, np.integer) or truth_N.ndim != 1:
    raise ValueError('the truth must be one class number for each example')
  if truth_N.min() < 0 or truth_N.max() >= len(names):
    raise ValueError(
      f'classes {truth_N.min()} to {truth_N.max()}, of {len(names)} names'
    )
  sums_N1 = probabilities_NC.sum(axis=1, keepdims=True)
  if np.abs(sums_N1 - 1).max() > 1e-2:
    raise ValueError('the probabilities of an example must add up to 1')
  # Of float32 or bfloat16 they do so only nearly.
  return truth_N, probabilities_NC / sums_N1


def _checked_labels(
  names: Sequence[str], truth_NC: np.ndarray, probabilities_NC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Both as arrays of bool and float64."""
  truth_NC = np.asarray(truth_NC)
  probabilities_NC = _probabilities(names, truth_NC, probabilities_NC)
  if truth_NC.shape != probabilities_NC.shape:
    raise ValueError(
      f'{truth_NC.shape} labels for {probabilities_NC.shape} probabilities'
    )
  return truth_NC.astype(bool), probabilities_NC


def _probabilities(
  names: Sequence[str], truth: np.ndarray, probabilities_NC: np.ndarray
) -> np.ndarray:
  probabilities_NC = np.asarray(probabilities_NC, np.float64)
  if not len(truth) or probabilities_NC.shape != (len(truth), len(names)):
    raise ValueError(
      f'probabilities {probabilities_NC.shape} of {len(truth)} examples and '
      f'{len(names)} names'
    )
  if not ((probabilities_NC >= 0) & (probabilities_NC <= 1 + 1e-2)).all():
    raise ValueError('probabilities must be between 0 and 1')
  return probabilities_NC
