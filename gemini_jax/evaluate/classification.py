"""How well a model names classes of held-out examples or words, or labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  class_predictions,
  classification_metrics,
  classification_report,
  span_metrics,
  tags,
)


def check(config: config_lib.Config):
  """Refuses tasks that name neither classes nor labels.

  Raises:
    ConfigError: they do not, or a library is missing.
  """
  piece = task_lib.head(config.data)
  config_lib.check(
    piece is not None and piece.kind != task_lib.NUMBER,
    'evaluate.evaluators: classification needs tasks that name classes, such '
    'as data.tasks=("{text} -> {class:label}",)',
  )
  assert piece is not None
  library = span_metrics if piece.kind == task_lib.TAGS else None
  (library or classification_metrics).check()


def check_run(run: run_lib.Run):
  """ConfigError unless tags are BIO."""
  piece = task_lib.classes(run.config.data)
  if piece is not None and piece.kind == task_lib.TAGS:
    tags.check(run.config.data.label_names)


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`split/accuracy`, `split/macro_f1` and others; of tags `split/span_f1`.

  Of labels those of `classification_metrics.multilabel_metrics`. Each split
  gets a report with tables and pictures.
  """
  piece, names = task_lib.head(run.config.data), run.config.data.label_names
  assert piece is not None
  results = {}
  for split, loader in loaders.items():
    predictions = class_predictions.predict(run, params, loader)
    where = run.workdir, split, step
    if piece.kind == task_lib.TAGS:
      truth, predicted = (
        [[names[i] for i in classes_W] for classes_W in sequences]
        for sequences in tag_sequences(names, predictions)
      )
      metrics = classification_report.write_spans(*where, truth, predicted)
    else:
      is_labels = piece.kind == task_lib.LABELS
      write = (
        classification_report.write_labels
        if is_labels
        else classification_report.write
      )
      metrics = write(
        *where, names, predictions.truth_N, predictions.outputs_NC
      )
    results |= {f'{split}/{name}': value for name, value in metrics.items()}
  return results


def tag_sequences(
  names: tuple[str, ...], predictions: class_predictions.Predictions
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """The true tags of the words of each example, in order, and the likeliest."""
  bounds = np.flatnonzero(np.diff(predictions.examples_N)) + 1
  truth, probabilities = (
    np.split(values, bounds)
    for values in (predictions.truth_N, predictions.outputs_NC)
  )
  return truth, [tags.likeliest(names, part_WC) for part_WC in probabilities]
