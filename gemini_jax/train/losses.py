"""What is minimised, as sums with their weights beside them."""

import dataclasses
from typing import Any

import jax

from gemini_jax import batch as batch_lib
from gemini_jax.kernels import cross_entropy


def model_sums(
  model: Any,
  params: Any,
  batch: batch_lib.Batch,
  *,
  dropout_key: jax.Array | None = None,
  label_smoothing: float = 0.0,
  loss_weights: dict[str, float] | None = None,
) -> cross_entropy.Sums:
  """The sums of one batch; `dropout_key` None is the evaluation mode.

  What the model returns in `aux` enters the objective by the weight of its
  name, per token; a name without a weight is an error. Without any weights, as
  in evaluation, the objective is the cross-entropy alone.
  """
  weights = dict(loss_weights or {})
  sums, aux = model.apply(
    {'params': params},
    batch,
    deterministic=dropout_key is None,
    label_smoothing=label_smoothing,
    z_loss=weights.get('z_loss', 0.0),
    rngs={} if dropout_key is None else {'dropout': dropout_key},
    method='sums',
  )
  extra = 0.0
  if loss_weights is not None:
    extra = sum((weights[name] * value for name, value in aux.items()), 0.0)
  return dataclasses.replace(
    sums, objective=sums.objective + extra * sums.weight
  )
