"""How well a model names the classes of held-out examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import class_predictions


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  results = {}
  for split, loader in loaders.items():
    found = class_predictions.predict(run, params, loader)
    right = found.probabilities_NC.argmax(1) == found.truth_N
    results[f'{split}/class_accuracy'] = float(np.mean(right))
  return results
