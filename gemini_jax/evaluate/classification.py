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
    found = class_predictions.predict(run, params, loader)
    where = run.workdir, split, step
    if piece.kind == task_lib.TAGS:
      predicted_N = tags.likeliest(names, found.outputs_NC, found.examples_N)
      truth, predicted = (
        sequences(names, classes_N, found.examples_N)
        for classes_N in (found.truth_N, predicted_N)
      )
      metrics = classification_report.write_spans(*where, truth, predicted)
    else:
      is_labels = piece.kind == task_lib.LABELS
      write = (
        classification_report.write_labels
        if is_labels
        else classification_report.write
      )
      metrics = write(*where, names, found.truth_N, found.outputs_NC)
    results |= {f'{split}/{name}': value for name, value in metrics.items()}
  return results


def sequences(
  names: tuple[str, ...], classes_N: np.ndarray, examples_N: np.ndarray
) -> list[list[str]]:
  """The names of the classes of each example, in order."""
  bounds = np.flatnonzero(np.diff(examples_N)) + 1
  return [[names[i] for i in part] for part in np.split(classes_N, bounds)]
