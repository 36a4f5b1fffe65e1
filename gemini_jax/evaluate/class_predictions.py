"""What a model with an output of its own says of examples.

B rows, T length, K targets of a row, D width, C classes, labels or numbers, N
targets in all.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import views
from gemini_jax.models import gemini
from gemini_jax.parallel import compilation, processes


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Predictions of targets, in the order of the examples.

  Attributes:
    truth_N: int64, the class of each; or float32[N, C], 1 for each label that
      it has, or normalised numbers.
    outputs_NC: float32, probabilities of all classes, or of each label, or
      normalised numbers.
    examples_N: int64, the number of the example that each belongs to, from 0:
      several are the words of one.
  """

  truth_N: np.ndarray
  outputs_NC: np.ndarray
  examples_N: np.ndarray


def predict(
  run: run_lib.Run, params: Any, loader: loader_lib.Loader
) -> Predictions:
  """Predictions of a held-out split."""
  batches = run_lib.device_batches(run, loader, loader_lib.iterate(loader))
  parts, count = [], 0
  for part in of_batches(run, params, batches):
    parts.append((part.truth_N, part.outputs_NC, count + part.examples_N))
    count += int(part.examples_N.max(initial=-1)) + 1
  columns = zip(*parts, strict=True)
  return Predictions(*(np.concatenate(column) for column in columns))


def of_batches(
  run: run_lib.Run, params: Any, batches: Iterable[batch_lib.Batch]
) -> Iterator[Predictions]:
  """Predictions of each device batch; rows of padding have none."""
  step = None
  for batch in batches:
    if step is None:
      step = compilation.timed('predict', make_step(run), params, batch)
    outputs_BKC, truth_BK, segments_BK = processes.fetch(step(params, batch))
    is_target_BK = segments_BK > 0
    rows, _ = np.nonzero(is_target_BK)
    # Numbers that differ from one example to the next, then those in order.
    keys = rows * (segments_BK.max() + 1) + segments_BK[is_target_BK]
    _, examples = np.unique(keys, return_inverse=True)
    yield Predictions(
      truth_BK[is_target_BK], outputs_BKC[is_target_BK], examples
    )


def make_step(run: run_lib.Run) -> Any:
  """A jitted function of (params, batch).

  It gives outputs as of `Predictions`, float32[B, K, C], means over
  `evaluate.test_time_views`; the true classes, int32[B, K], or `Batch.values`
  where it has them; and the example in its row that each target belongs to,
  from 1; 0: no target. K is 1 where a row holds one example of one target.
  """
  piece = task_lib.head(run.config.data)
  assert piece is not None
  is_one = piece.kind != task_lib.TAGS and not run.config.data.pack
  num_views = run.config.evaluate.test_time_views

  def step(params, batch):
    outputs, truth, segments = zip(
      *(
        _scores(run.model, is_one, params, view)
        for view in views.of(batch, num_views)
      ),
      strict=True,
    )
    return sum(outputs) / num_views, truth[0], segments[0]

  return jax.jit(step)


def _scores(
  model: gemini.Gemini, is_one: bool, params: Any, batch: batch_lib.Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  output = gemini.apply(model, params, batch, True, method='forward')
  segments_BT = jnp.where(batch.weights > 0, batch.decoder.segments, 0)
  x_BKD, truth_BK, segments_BK = output.x_BTD, batch.targets, segments_BT
  if is_one:
    place_B1 = jnp.argmax(segments_BT > 0, axis=1)[:, None]
    truth_BK, segments_BK = (
      jnp.take_along_axis(values_BT, place_B1, axis=1)
      for values_BT in (truth_BK, segments_BK)
    )
    x_BKD = jnp.take_along_axis(x_BKD, place_B1[..., None], axis=1)
  if batch.values is not None:
    truth_BK = batch.values
  logits_BKC = gemini.apply(model, params, x_BKD, method='logits')
  of_logits = {
    'classes': jax.nn.softmax,
    'labels': jax.nn.sigmoid,
    'numbers': lambda logits_BKC: logits_BKC,
  }[model.config.output]
  return of_logits(logits_BKC), truth_BK, segments_BK
