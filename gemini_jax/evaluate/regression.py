"""How well a model predicts the numbers of held-out examples."""

from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import numbers
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  class_predictions,
  classification_metrics,
  classification_report,
)


def check(config: config_lib.Config):
  """Refuses tasks whose targets are no number.

  Raises:
    ConfigError: they are not, or a library is missing.
  """
  piece = task_lib.head(config.data)
  config_lib.check(
    piece is not None and piece.kind == task_lib.NUMBER,
    'evaluate.evaluators: regression needs tasks whose target is a number, '
    'such as data.tasks=("{text} -> {number:price}",)',
  )
  classification_metrics.check()


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`split/rmse` and others, in the units of the data.

  They are those of `classification_metrics.regression_metrics`. Each split gets
  a report.
  """
  piece = task_lib.head(run.config.data)
  assert piece is not None
  results = {}
  for split, loader in loaders.items():
    predictions = class_predictions.predict(run, params, loader)
    truth_N, predicted_N = (
      numbers.restored(values_N1[:, 0], piece, run.config.data)
      for values_N1 in (predictions.truth_N, predictions.outputs_NC)
    )
    metrics = classification_report.write_numbers(
      run.workdir, split, step, truth_N, predicted_N
    )
    results |= {f'{split}/{name}': value for name, value in metrics.items()}
  return results
