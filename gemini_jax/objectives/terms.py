"""What an objective adds to the cross-entropy of a batch.

B rows, T length.
"""

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib


@flax.struct.dataclass
class Terms:
  """The losses of one objective, without their weights.

  Attributes:
    losses: by the field of `config.loss_weights` that weights each, as nats for
      each token of the batch.
    sums: what is reported, by metric: float32[2], a sum and what it is divided
      by for the mean. They add up over batches.
  """

  losses: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  sums: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


def num_examples(batch: batch_lib.Batch) -> jax.Array:
  """Examples of each row that have targets with a weight, float32[B]."""
  segments_BT = jnp.where(batch.weights > 0, batch.decoder.segments, 0)
  return jnp.max(segments_BT, axis=1).astype(jnp.float32)
