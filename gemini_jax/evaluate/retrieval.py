"""How well the vectors of one kind find those of another.

N examples of one kind, M of the other, D width of the vectors, Q some of N.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax.models import contrast
from gemini_jax.parallel import processes, sharding

# Scores that are held at one time.
_SCORES = 2**24


def measure(
  step: Any,
  params: Any,
  batches: Iterable[batch_lib.Batch],
  placeholders: tuple[int, ...],
  most: int,
) -> dict[str, float]:
  """How well what is read finds what is written, and the reverse.

  Examples that share a text belong together. See `report`.

  Args:
    step: compiled, of (params, batch) the vectors [B, C] of both sides and
      their tokens [B, S].
    params: of the model.
    batches: device batches of held-out examples.
    placeholders: tokens that stand for media.
    most: examples at most.
  """
  examples, num = [], 0
  for batch in batches:
    found = processes.fetch(step(params, batch))
    there_B = found[-1].any(axis=1)
    examples.append([own[there_B] for own in found])
    num += np.sum(there_B)
    if num >= most:
      break
  columns = (np.concatenate(own)[:most] for own in zip(*examples, strict=True))
  one_ND, other_ND, read_NS, written_NS = columns
  with sharding.on_one_device():
    alike_NN = jax.jit(contrast.alike, static_argnums=2)(
      read_NS, written_NS, placeholders
    )
  positives_NN = np.asarray(alike_NN) | np.eye(len(one_ND), dtype=bool)
  return report(one_ND, other_ND, positives_NN, names=('read', 'written'))


def report(
  one_ND: np.ndarray,
  other_MD: np.ndarray,
  positives_NM: np.ndarray,
  *,
  names: tuple[str, str] = ('one', 'other'),
  ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
  """Recall at k, both ways, and beside it what chance gives.

  Args:
    one_ND: for example of pictures; compared by cosine.
    other_MD: for example of captions.
    positives_NM: bool, which belong together: any number in a row or column.
    names: of the kinds.
    ks: how many are looked at.

  Returns:
    {name}_to_{name}_recall_at_{k}, and with _chance at the end.
  """
  positives_NM = np.asarray(positives_NM, bool)
  ways = (
    (names, one_ND, other_MD, positives_NM),
    (names[::-1], other_MD, one_ND, positives_NM.T),
  )
  values = {}
  for (name, other), from_ND, to_MD, right_NM in ways:
    found, by_chance = (
      recall(from_ND, to_MD, right_NM, ks),
      chance(right_NM, ks),
    )
    for k in ks:
      key = f'{name}_to_{other}_recall_at_{k}'
      values |= {key: found[k], f'{key}_chance': by_chance[k]}
  return values


def recall(
  one_ND: np.ndarray,
  other_MD: np.ndarray,
  positives_NM: np.ndarray,
  ks: Sequence[int],
) -> dict[int, float]:
  """Share of one that has a positive among the k nearest of the other.

  What is equally near counts as in a random order, so that vectors which are
  all the same find nothing beyond chance. Who has no positive is left out; NaN
  if nobody has one.
  """
  one_ND, other_MD = _unit(one_ND), _unit(other_MD)
  there_N = positives_NM.any(axis=1)
  one_ND, positives_NM = one_ND[there_N], positives_NM[there_N]
  size = max(1, _SCORES // len(other_MD))
  totals = dict.fromkeys(ks, 0.0)
  for first in range(0, len(one_ND), size):
    positives_QM = positives_NM[first : first + size]
    scores_QM = one_ND[first : first + size] @ other_MD.T
    best_Q = np.where(positives_QM, scores_QM, -np.inf).max(axis=1)
    above_Q = np.sum(scores_QM > best_Q[:, None], axis=1)
    level_QM = scores_QM == best_Q[:, None]
    right_Q = np.sum(level_QM & positives_QM, axis=1)
    level_Q = np.sum(level_QM, axis=1)
    for k in ks:
      totals[k] += _drawn(right_Q, level_Q, k - above_Q).sum()
  num = len(one_ND)
  return {k: float(v / num) if num else float('nan') for k, v in totals.items()}


def chance(positives_NM: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
  """Recall at k of a random order."""
  right_N = np.sum(positives_NM, axis=1)
  right_N = right_N[right_N > 0]
  if not len(right_N):
    return dict.fromkeys(ks, float('nan'))
  num_N = np.full_like(right_N, positives_NM.shape[1])
  return {
    k: float(np.mean(_drawn(right_N, num_N, np.full_like(num_N, k))))
    for k in ks
  }


def _drawn(right_N: np.ndarray, num_N: np.ndarray, k_N: np.ndarray):
  """Probability that k of num, without replacement, hold one of the right."""
  none_N = np.ones(len(num_N))
  for i in range(max(0, k_N.max(initial=0))):
    left_N = np.maximum(num_N - i, 1)
    missed_N = np.clip((num_N - right_N - i) / left_N, 0, 1)
    none_N *= np.where(i < k_N, missed_N, 1)
  return 1 - none_N


def _unit(x_ND: np.ndarray) -> np.ndarray:
  x_ND = np.asarray(x_ND, np.float32)
  norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
  return x_ND / np.maximum(norms_N1, 1e-12)
