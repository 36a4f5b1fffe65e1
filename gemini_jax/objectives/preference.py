"""Direct preference optimisation (Rafailov et al. 2023).

A reward is beta times the log-probability of a target relative to that under
the reference. The loss of a pair is -log sigmoid of the margin between its two
rewards: log 2 where the parameters are the reference.

B rows, T length, P pairs of a row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.objectives import terms as terms_lib


def all_rows(batch: batch_lib.Batch) -> batch_lib.Batch:
  """Preferred and rejected rows in turn, to be read in one pass: [2B, T].

  Only preferred targets have a weight, so that sums over tokens are theirs.
  """
  assert batch.rejected is not None
  chosen = dataclasses.replace(batch, rejected=None)
  rejected = dataclasses.replace(
    batch.rejected, weights=jnp.zeros_like(batch.rejected.weights)
  )
  # A row stays on the device that has it.
  return jax.tree.map(
    lambda *sides: jnp.stack(sides, axis=1).reshape(-1, *sides[0].shape[1:]),
    chosen,
    rejected,
  )


def terms(
  options: config_lib.DPO,
  batch: batch_lib.Batch,
  log_prob_BT: jax.Array,
  reference_BT: jax.Array,
) -> terms_lib.Terms:
  """`dpo`, the mean over pairs, and `chosen_nll`, the mean over tokens.

  Reports also the margin, and the accuracy: the share of pairs whose margin is
  above 0. A part of an accumulated batch counts by its tokens.

  Args:
    options: of the objective.
    batch: of preferences, B rows.
    log_prob_BT: of the targets in `all_rows`, float32[2B, T].
    reference_BT: under the reference.
  """
  assert batch.rejected is not None
  ratios, counts = [], []
  sides = (batch, batch.rejected)
  for side, ratio_BT in zip(
    sides, _sides(log_prob_BT - reference_BT), strict=True
  ):
    ratio_BP = _of_segments(ratio_BT * side.weights, side)
    count_BP = _of_segments(side.weights, side)
    if options.length_normalized:
      ratio_BP = ratio_BP / jnp.maximum(count_BP, 1)
    ratios.append(ratio_BP)
    counts.append(count_BP)
  margin_BP = options.beta * (ratios[0] - ratios[1])
  smooth = options.label_smoothing
  loss_BP = -(1 - smooth) * jax.nn.log_sigmoid(margin_BP)
  loss_BP -= smooth * jax.nn.log_sigmoid(-margin_BP)
  is_pair_BP = (counts[0] > 0) & (counts[1] > 0)
  num_pairs = jnp.sum(is_pair_BP).astype(jnp.float32)
  total = lambda values_BP: jnp.sum(jnp.where(is_pair_BP, values_BP, 0.0))
  chosen_BT, _ = _sides(log_prob_BT)
  nll = -jnp.sum(chosen_BT * batch.weights)
  return terms_lib.Terms(
    losses={
      'dpo': total(loss_BP) / jnp.maximum(num_pairs, 1),
      'chosen_nll': nll / jnp.maximum(jnp.sum(batch.weights), 1e-9),
    },
    sums={
      name: jnp.stack([total(values_BP), num_pairs])
      for name, values_BP in (
        ('dpo', loss_BP),
        ('dpo_margin', margin_BP),
        ('dpo_accuracy', (margin_BP > 0).astype(jnp.float32)),
      )
    },
  )


def _sides(values_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of the preferred and of the rejected rows, [B, T] each."""
  values_B2T = values_BT.reshape(-1, 2, values_BT.shape[-1])
  return values_B2T[:, 0], values_B2T[:, 1]


def _of_segments(values_BT: jax.Array, batch: batch_lib.Batch) -> jax.Array:
  """The sum of each segment of a row, [B, P]; at index 0 that of padding."""
  num_rows, length = values_BT.shape
  rows_B1 = jnp.arange(num_rows)[:, None]
  sums_BP = jnp.zeros((num_rows, length + 1), values_BT.dtype)
  return sums_BP.at[rows_B1, batch.decoder.segments].add(values_BT)
