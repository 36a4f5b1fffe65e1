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


def pair_tokens(batch: batch_lib.Batch) -> tuple[jax.Array, jax.Array]:
  """Tokens of what is read and of what is written, [B, S] each; then 0."""
  assert batch.encoder is not None
  read_BS = jnp.where(batch.encoder.segments > 0, batch.encoder.tokens, 0)
  written_BS = jnp.where(batch.weights > 0, batch.targets, 0)
  length = max(read_BS.shape[1], written_BS.shape[1])
  pad = lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1])))
  return pad(read_BS), pad(written_BS)


def alike(
  read_BS: jax.Array, written_BS: jax.Array, placeholders: tuple[int, ...]
) -> jax.Array:
  """Which examples share a text, on whichever side it stands, bool[B, B]."""
  across_BB = equal(read_BS, written_BS, placeholders)
  return (
    equal(read_BS, read_BS, placeholders)
    | equal(written_BS, written_BS, placeholders)
    | across_BB
    | across_BB.T
  )


def equal(
  one_BS: jax.Array, other_BS: jax.Array, placeholders: tuple[int, ...]
) -> jax.Array:
  """Which rows hold the same text and nothing else, bool[B, B]."""
  same_BB = jnp.all(one_BS[:, None] == other_BS[None], axis=-1)
  media_BS = jnp.isin(one_BS, jnp.array(placeholders, jnp.int32))
  return same_BB & ~jnp.any(media_BS, axis=1)[:, None]
