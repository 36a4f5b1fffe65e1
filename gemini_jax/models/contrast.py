"""Vectors of sequences, near to those of what they belong to.

B batch, S length, D width, C numbers in a vector.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax.kernels import contrastive
from gemini_jax.layers import linear


class Contrast(nn.Module):
  """One vector for each sequence, by the mean of what an encoder says.

  Both sides of an example share it, as they share the encoder: what is text in
  one task may be read in another.

  Attributes:
    dim: C.
    width: D.
    types: dtype and param_dtype.
  """

  dim: int
  width: int
  types: dict[str, Any]

  def setup(self):
    """A linear map, and the scale of cosines."""
    self.project = linear.Einsum(
      (self.width, self.dim), ('embed', None), **self.types
    )
    self.scale = self.param(
      'scale', nn.initializers.constant(contrastive.SCALE_INIT), ()
    )

  def __call__(
    self, x_BSD: jax.Array, sequence: batch_lib.Sequence
  ) -> jax.Array:
    """Vectors [B, C] of any length; padding has no say."""
    real_BS1 = (sequence.segments > 0)[..., None]
    count_B1 = jnp.maximum(jnp.sum(real_BS1, axis=1), 1)
    sum_BD = jnp.sum(jnp.where(real_BS1, x_BSD, 0), axis=1)
    return self.project('BD,DC->BC', sum_BD / count_B1.astype(sum_BD.dtype))

  def loss(
    self,
    one_BC: jax.Array,
    other_BC: jax.Array,
    same_BB: jax.Array,
    weights_B: jax.Array,
  ) -> contrastive.Contrast:
    """How well each finds its own; see kernels/contrastive.py."""
    return contrastive.contrast(
      one_BC, other_BC, self.scale, same_BB=same_BB, weights_B=weights_B
    )


def alike(
  read_BS: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  placeholders: tuple[int, ...],
) -> jax.Array:
  """Which examples read or write the same text, bool[B, B]."""
  written_BT = jnp.where(weights_BT > 0, targets_BT, 0)
  return equal(read_BS, placeholders) | equal(written_BT, placeholders)


def equal(tokens_BT: jax.Array, placeholders: tuple[int, ...]) -> jax.Array:
  """Which rows hold the same text and nothing else, bool[B, B]."""
  media_BT = jnp.isin(tokens_BT, jnp.array(placeholders, jnp.int32))
  text_B = ~jnp.any(media_BT, axis=1)
  same_BB = jnp.all(tokens_BT[:, None] == tokens_BT[None], axis=-1)
  return same_BB & text_B[:, None] & text_B[None]
