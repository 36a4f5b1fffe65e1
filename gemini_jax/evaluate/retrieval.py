"""Retrieval: how well vectors of inputs find those of targets, and the reverse.

N examples of one kind, M of the other, D width of the vectors, Q a chunk of N,
S tokens of a side.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.models import contrast, gemini
from gemini_jax.parallel import processes, sharding

# Scores that are held in memory at a time.
_MAX_SCORES = 2**24


def check(config: config_lib.Config):
  """ConfigError unless the model has vectors of both sides."""
  config_lib.check(
    bool(config.model.contrast_dim),
    'evaluate.evaluators: retrieval needs vectors of both sides; set '
    'model.contrast_dim',
  )


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`split/TASK_read_to_written_recall_at_1` and others, of the last split."""
  del step
  split, model, results = list(loaders)[-1], run.config.model, {}
  pair_step = jax.jit(
    functools.partial(gemini.apply, run.model, method='pair_vectors')
  )
  for name, number in (loaders[split].task_names or {'': None}).items():
    loader = loaders[split]
    if number is not None:
      loader = loader.of_task(number)
    metrics = measure(
      pair_step,
      params,
      run_lib.device_batches(run, loader, loader_lib.iterate(loader)),
      tuple(model.placeholder(kind) for kind in model.kinds),
      run.config.evaluate.retrieval.num_examples,
    )
    prefix = f'{split}/{name}_' if name else f'{split}/'
    results |= {prefix + key: value for key, value in metrics.items()}
  return results


def measure(
  step: Any,
  params: Any,
  batches: Iterable[batch_lib.Batch],
  placeholders: tuple[int, ...],
  num_examples: int,
) -> dict[str, float]:
  """How well inputs find their targets, and the reverse.

  Examples that share a text are positives of each other. See `report`.

  Args:
    step: compiled, of (params, batch): the vectors [B, D] of both sides and
      their tokens [B, S].
    params: of the model.
    batches: device batches of held-out examples.
    placeholders: tokens that stand for media.
    num_examples: the first ones, at most.
  """
  parts, count = [], 0
  for batch in batches:
    outputs = processes.fetch(step(params, batch))
    real_B = outputs[-1].any(axis=1)
    parts.append([values[real_B] for values in outputs])
    count += np.sum(real_B)
    if count >= num_examples:
      break
  inputs_ND, targets_ND, input_ids_NS, target_ids_NS = (
    np.concatenate(column)[:num_examples] for column in zip(*parts, strict=True)
  )
  with sharding.on_one_device():
    alike_NN = jax.jit(contrast.alike, static_argnums=2)(
      input_ids_NS, target_ids_NS, placeholders
    )
  positives_NN = np.asarray(alike_NN) | np.eye(len(inputs_ND), dtype=bool)
  return report(inputs_ND, targets_ND, positives_NN, names=('read', 'written'))


def report(
  one_ND: np.ndarray,
  other_MD: np.ndarray,
  positives_NM: np.ndarray,
  *,
  names: tuple[str, str] = ('one', 'other'),
  ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
  """Recall at k in both directions, and the recall of a random order.

  Args:
    one_ND: vectors, such as of pictures; compared by cosine.
    other_MD: vectors, such as of captions.
    positives_NM: bool, which pairs belong together: any number in a row or a
      column.
    names: of the two kinds.
    ks: how many of the nearest are looked at.

  Returns:
    {name}_to_{name}_recall_at_{k}, and with _chance at the end.
  """
  positives_NM = np.asarray(positives_NM, bool)
  directions = (
    (names, one_ND, other_MD, positives_NM),
    (names[::-1], other_MD, one_ND, positives_NM.T),
  )
  metrics = {}
  for (name, other), from_ND, to_MD, right_NM in directions:
    recalls = recall(from_ND, to_MD, right_NM, ks)
    by_chance = chance(right_NM, ks)
    for k in ks:
      key = f'{name}_to_{other}_recall_at_{k}'
      metrics |= {key: recalls[k], f'{key}_chance': by_chance[k]}
  return metrics


def recall(
  one_ND: np.ndarray,
  other_MD: np.ndarray,
  positives_NM: np.ndarray,
  ks: Sequence[int],
) -> dict[int, float]:
  """Share of the rows of `one_ND` with a positive among their k nearest.

  Ties count as in a random order, so that vectors which are all equal reach no
  more than chance. Rows without a positive are left out; NaN if there are none
  with one.
  """
  one_ND, other_MD = _unit(one_ND), _unit(other_MD)
  has_positive_N = positives_NM.any(axis=1)
  one_ND, positives_NM = one_ND[has_positive_N], positives_NM[has_positive_N]
  size = max(1, _MAX_SCORES // len(other_MD))
  totals = dict.fromkeys(ks, 0.0)
  for first in range(0, len(one_ND), size):
    positives_QM = positives_NM[first : first + size]
    scores_QM = one_ND[first : first + size] @ other_MD.T
    best_Q = np.where(positives_QM, scores_QM, -np.inf).max(axis=1)
    num_above_Q = np.sum(scores_QM > best_Q[:, None], axis=1)
    tied_QM = scores_QM == best_Q[:, None]
    num_right_Q = np.sum(tied_QM & positives_QM, axis=1)
    num_tied_Q = np.sum(tied_QM, axis=1)
    for k in ks:
      totals[k] += _hit_rate(num_right_Q, num_tied_Q, k - num_above_Q).sum()
  count = len(one_ND)
  return {
    k: float(total / count) if count else float('nan')
    for k, total in totals.items()
  }


def chance(positives_NM: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
  """Recall at k of a random order."""
  num_right_N = np.sum(positives_NM, axis=1)
  num_right_N = num_right_N[num_right_N > 0]
  if not len(num_right_N):
    return dict.fromkeys(ks, float('nan'))
  total_N = np.full_like(num_right_N, positives_NM.shape[1])
  return {
    k: float(np.mean(_hit_rate(num_right_N, total_N, np.full_like(total_N, k))))
    for k in ks
  }


def _hit_rate(
  num_right_N: np.ndarray, total_N: np.ndarray, k_N: np.ndarray
) -> np.ndarray:
  """Probability that k of `total`, drawn without replacement, hit a right one.

  Of which there are `num_right`.
  """
  miss_N = np.ones(len(total_N))
  for i in range(max(0, k_N.max(initial=0))):
    left_N = np.maximum(total_N - i, 1)
    missed_N = np.clip((total_N - num_right_N - i) / left_N, 0, 1)
    miss_N *= np.where(i < k_N, missed_N, 1)
  return 1 - miss_N


def _unit(x_ND: np.ndarray) -> np.ndarray:
  x_ND = np.asarray(x_ND, np.float32)
  norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
  return x_ND / np.maximum(norms_N1, 1e-12)
