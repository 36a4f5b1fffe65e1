"""Reports of what heads predict: classes, labels, spans and numbers.

Each writes into reports/ of the run and returns the metrics.

N examples, C classes or labels.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemini_jax.evaluate import (
  classification_metrics,
  classification_pictures,
  report_files,
  span_metrics,
)

# Classes of which all pairs are counted.
_MAX_CONFUSED = 1000


def write(
  workdir: pathlib.Path,
  split: str,
  step: int,
  names: Sequence[str],
  truth_N: np.ndarray,
  probabilities_NC: np.ndarray,
  task: str = '',
) -> dict[str, float]:
  """Reports predictions of one class each, with a table and two pictures.

  Args:
    workdir: of the run.
    split: held out.
    step: that the parameters are of.
    names: of the classes.
    truth_N: int, the class of each example.
    probabilities_NC: float, of each class.
    task: its name; '' for the only one.

  Returns:
    `classification_metrics.metrics`.
  """
  metrics = classification_metrics.metrics(names, truth_N, probabilities_NC)
  truth_N, probabilities_NC = np.asarray(truth_N), np.asarray(probabilities_NC)
  predicted_N = probabilities_NC.argmax(axis=1)
  bins = classification_metrics.calibration(truth_N, probabilities_NC)
  report = report_files.Report(
    step,
    split,
    task,
    'classes',
    metrics,
    [*map(str, names)],
    classification_metrics.table(names, truth_N, predicted_N),
    details={
      'bins': {
        name.removesuffix('_K'): values.tolist()
        for name, values in bins._asdict().items()
      },
    },
  )
  pictures = {'reliability': classification_pictures.reliability(bins)}
  if len(names) <= _MAX_CONFUSED:
    confusion_CC = classification_metrics.confusion(
      len(names), truth_N, predicted_N
    )
    report.details['confusion'] = confusion_CC.tolist()
    picture = classification_pictures.confusion(names, confusion_CC)
    pictures = {'confusion': picture} | pictures
  report_files.write(workdir, report, pictures)
  return metrics


def write_labels(
  workdir: pathlib.Path,
  split: str,
  step: int,
  names: Sequence[str],
  truth_NC: np.ndarray,
  probabilities_NC: np.ndarray,
  task: str = '',
) -> dict[str, float]:
  """As `write`, of any number of labels for an example, without pictures."""
  arrays = names, truth_NC, probabilities_NC
  metrics = classification_metrics.multilabel_metrics(*arrays)
  columns = classification_metrics.multilabel_table(*arrays)
  _write(workdir, split, step, task, 'labels', metrics, names, columns)
  return metrics


def write_spans(
  workdir: pathlib.Path,
  split: str,
  step: int,
  truth: span_metrics.Sequences,
  predicted: span_metrics.Sequences,
  task: str = '',
) -> dict[str, float]:
  """As `write`, of BIO tags of sequences, with a table of types of spans."""
  metrics, names, columns = span_metrics.report(truth, predicted)
  _write(workdir, split, step, task, 'spans', metrics, names, columns)
  return metrics


def write_numbers(
  workdir: pathlib.Path,
  split: str,
  step: int,
  truth_N: np.ndarray,
  predicted_N: np.ndarray,
  task: str = '',
) -> dict[str, float]:
  """As `write`, of predicted numbers, without a table."""
  metrics = classification_metrics.regression_metrics(truth_N, predicted_N)
  _write(workdir, split, step, task, 'numbers', metrics, (), {})
  return metrics


def _write(
  workdir: pathlib.Path,
  split: str,
  step: int,
  task: str,
  kind: str,
  metrics: dict[str, float],
  names: Sequence[str],
  columns: dict[str, Any],
):
  report = report_files.Report(
    step, split, task, kind, metrics, [*map(str, names)], columns
  )
  report_files.write(workdir, report, {})
