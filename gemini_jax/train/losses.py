"""Losses, in float32, as sums with their weights beside them.

B batch, T length, V vocabulary.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib


@flax.struct.dataclass
class Sums:
  """Weighted sums over tokens; they add up over batches and devices.

  Attributes:
    loss: of -log p(target), in nats, without smoothing.
    objective: of what is minimised: smoothing and extra terms included.
    correct: of targets that are the likeliest token.
    weight: of the tokens.
  """

  loss: jax.Array
  objective: jax.Array
  correct: jax.Array
  weight: jax.Array


def token_sums(
  logits_BTV: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> Sums:
  """Cross-entropy of next tokens.

  Args:
    logits_BTV: float32 scores.
    targets_BT: int32.
    weights_BT: float32; 0 leaves a token out.
    label_smoothing: share of the target spread evenly over V.
    z_loss: weight of the squared log-partition (PaLM, section 5).
  """
  log_partition_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  target_BT = jnp.take_along_axis(
    logits_BTV, targets_BT[..., None], axis=-1
  ).squeeze(-1)
  loss_BT = log_partition_BT - target_BT
  objective_BT = loss_BT
  if label_smoothing:
    spread_BT = log_partition_BT - jnp.mean(logits_BTV, axis=-1)
    objective_BT += label_smoothing * (spread_BT - loss_BT)
  if z_loss:
    objective_BT += z_loss * jnp.square(log_partition_BT)
  correct_BT = target_BT >= jnp.max(logits_BTV, axis=-1)
  return Sums(
    loss=jnp.sum(loss_BT * weights_BT),
    objective=jnp.sum(objective_BT * weights_BT),
    correct=jnp.sum(correct_BT * weights_BT),
    weight=jnp.sum(weights_BT),
  )


def model_sums(
  model: Any,
  params: Any,
  batch: batch_lib.Batch,
  *,
  dropout_key: jax.Array | None = None,
  label_smoothing: float = 0.0,
  loss_weights: dict[str, float] | None = None,
) -> Sums:
  """The sums of one batch; `dropout_key` None is the evaluation mode.

  What the model returns in `aux` enters the objective by the weight of its
  name, per token; a name without a weight is an error. Without any weights, as
  in evaluation, the objective is the cross-entropy alone.
  """
  weights = dict(loss_weights or {})
  logits_BTV, aux = model.apply(
    {'params': params},
    batch,
    deterministic=dropout_key is None,
    rngs={} if dropout_key is None else {'dropout': dropout_key},
  )
  sums = token_sums(
    logits_BTV,
    batch.targets,
    batch.weights,
    label_smoothing=label_smoothing,
    z_loss=weights.get('z_loss', 0.0),
  )
  extra = 0.0
  if loss_weights is not None:
    extra = sum((weights[name] * value for name, value in aux.items()), 0.0)
  return dataclasses.replace(
    sums, objective=sums.objective + extra * sums.weight
  )
