"""The gradient of a batch, part after part."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.objectives import losses


def accumulated_gradient(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  batch: batch_lib.Batch,
  key: jax.Array,
  loss_weights: dict[str, Any],
  reference: Any = None,
) -> tuple[Any, cross_entropy.Sums]:
  """Gradient of the summed objective, and the sums, part after part.

  The gradient is float32: so are then its sums over tokens and parts. It has
  no array for a frozen parameter.
  """
  trained = parameter_groups.to_float32(
    parameter_groups.trained(config, params)
  )

  def gradient(batch, key):
    def objective(trained):
      sums = losses.model_sums(
        model,
        parameter_groups.merged(trained, params),
        batch,
        key=key,
        config=config.train,
        loss_weights=loss_weights,
        reference=reference,
      )
      return sums.objective, sums

    return jax.grad(objective, has_aux=True)(trained)

  parts = config.optimizer.accumulation_steps
  if parts == 1:
    return gradient(batch, key)

  def body(total, part):
    batch, index = part
    new = gradient(batch, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, new), None

  split_batch = split(batch, parts)
  first = jax.eval_shape(
    gradient, jax.tree.map(lambda leaf: leaf[0], split_batch), key
  )
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
  return jax.lax.scan(body, zeros, (split_batch, jnp.arange(parts)))[0]


def split(batch: batch_lib.Batch, parts: int) -> batch_lib.Batch:
  """A batch in parts, one after the other: [parts, B / parts, ...]."""
  return jax.tree.map(
    # Every part takes rows from every device: part is the inner dim.
    lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1),
    batch,
  )


def microbatches(
  config: config_lib.Config, batch: batch_lib.Batch, key: jax.Array
) -> Iterator[tuple[batch_lib.Batch, jax.Array]]:
  """What `accumulated_gradient` reads, part after part, with its randomness."""
  parts = config.optimizer.accumulation_steps
  if parts == 1:
    yield batch, key
    return
  split_batch = split(batch, parts)
  for index in range(parts):
    part = jax.tree.map(lambda leaf, index=index: leaf[index], split_batch)
    yield part, jax.random.fold_in(key, index)
