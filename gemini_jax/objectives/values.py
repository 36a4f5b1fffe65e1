"""Losses of targets that are labels or numbers, one example a row.

B rows, T length, D width, K labels or numbers.
"""

import jax
import jax.numpy as jnp
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy


def scores(
  config: config_lib.Model,
  x_BTD: jax.Array,
  table_KD: jax.Array,
  batch: batch_lib.Batch,
  *,
  label_smoothing: float = 0.0,
) -> tuple[cross_entropy.Sums, cross_entropy.TokenScores]:
  """Sums over the examples, and the scores of each, the same at every position.

  Of labels the loss is the sigmoid cross-entropy, in nats, and of numbers the
  squared error of normalised ones, in the mean over the K of an example.
  `correct` counts the share of labels that are right; of numbers none are.

  Args:
    config: of the model.
    x_BTD: hidden states after each token.
    table_KD: the output table, of `Gemini.output_table`.
    batch: of `values`; an example is predicted where its weight is.
    label_smoothing: share of each label spread evenly over yes and no.
  """
  assert batch.values is not None
  is_answer_BT = (batch.weights > 0).astype(table_KD.dtype)
  x_BD = jnp.einsum('BTD,BT->BD', x_BTD.astype(table_KD.dtype), is_answer_BT)
  outputs_BK = jnp.einsum(
    'BD,KD->BK', x_BD, table_KD, preferred_element_type=jnp.float32
  )
  truth_BK, weights_B = batch.values[:, 0], jnp.sum(batch.weights, axis=1)
  if config.output == 'labels':
    smooth_BK = truth_BK + label_smoothing * (0.5 - truth_BK)
    loss_BK = optax.sigmoid_binary_cross_entropy(outputs_BK, truth_BK)
    objective_BK = optax.sigmoid_binary_cross_entropy(outputs_BK, smooth_BK)
    right_BK = (outputs_BK >= 0) == (truth_BK > 0.5)
  else:
    loss_BK = objective_BK = jnp.square(outputs_BK - truth_BK)
    right_BK = jnp.zeros(truth_BK.shape, bool)
  total = lambda values_BK: jnp.sum(jnp.mean(values_BK, axis=1) * weights_B)
  sums = cross_entropy.Sums(
    loss=total(loss_BK),
    objective=total(objective_BK),
    correct=total(right_BK.astype(jnp.float32)),
    weight=jnp.sum(weights_B),
  )
  spread = lambda values_B: jnp.broadcast_to(
    values_B[:, None], batch.weights.shape
  )
  return sums, cross_entropy.TokenScores(
    spread(-jnp.mean(loss_BK, axis=1)), spread(jnp.all(right_BK, axis=1))
  )
