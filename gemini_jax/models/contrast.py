"""One vector of each sequence, to compare inputs with targets by cosines.

B batch, S length, D width, C numbers in a vector.
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax.layers import linear

# Cosines are multiplied by a learned scale between 1 and _MAX_SCALE, which
# starts at 1/0.07, as in CLIP (Radford et al. 2021, section 2.5).
_MAX_SCALE = 100.0
_START = math.log(1 / 0.07) / math.log(_MAX_SCALE)
# Initial value of the parameter of `cosine_scale`.
SCALE_INIT = math.log(_START / (1 - _START))


@flax.struct.dataclass
class PairVectors:
  """What is compared of a batch.

  Attributes:
    inputs_BC: of what the encoder reads of each example.
    targets_BC: of what the decoder writes.
    scale: of their cosines.
  """

  inputs_BC: jax.Array
  targets_BC: jax.Array
  scale: jax.Array


class ContrastiveHead(nn.Module):
  """A vector of each sequence: a linear map of the encoder's mean output.

  Inputs and targets share it, as they share the encoder: the targets of one
  task may be the inputs of another.

  Attributes:
    dim: C.
    width: D.
    types: dtype and param_dtype.
  """

  dim: int
  width: int
  types: dict[str, Any]

  def setup(self):
    """The linear map, and the parameter of the scale of cosines."""
    self.project = linear.Einsum(
      (self.width, self.dim), ('embed', None), **self.types
    )
    self.scale = self.param('scale', nn.initializers.constant(SCALE_INIT), ())

  def __call__(
    self, x_BSD: jax.Array, sequence: batch_lib.Sequence
  ) -> jax.Array:
    """Vectors [B, C], not normalised; padding is left out."""
    real_BS1 = (sequence.segments > 0)[..., None]
    count_B1 = jnp.maximum(jnp.sum(real_BS1, axis=1), 1)
    sum_BD = jnp.sum(jnp.where(real_BS1, x_BSD, 0), axis=1)
    return self.project('BD,DC->BC', sum_BD / count_B1.astype(sum_BD.dtype))

  def compare(
    self,
    inputs_BSD: jax.Array,
    inputs: batch_lib.Sequence,
    targets_BTD: jax.Array,
    targets: batch_lib.Sequence,
  ) -> PairVectors:
    """Vectors of two encoded sequences of each example, and their scale."""
    return PairVectors(
      self(inputs_BSD, inputs),
      self(targets_BTD, targets),
      cosine_scale(self.scale.astype(jnp.float32)),
    )


def cosine_scale(parameter: jax.Array) -> jax.Array:
  """Between 1 and 100, of any number; smooth, so that it cannot get stuck."""
  return jnp.exp(math.log(_MAX_SCALE) * jax.nn.sigmoid(parameter))


def pair_tokens(batch: batch_lib.Batch) -> tuple[jax.Array, jax.Array]:
  """Tokens of inputs and of targets, [B, S] each, padded with 0."""
  assert batch.encoder is not None
  inputs_BS = jnp.where(batch.encoder.segments > 0, batch.encoder.tokens, 0)
  targets_BS = jnp.where(batch.weights > 0, batch.targets, 0)
  length = max(inputs_BS.shape[1], targets_BS.shape[1])
  pad = lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1])))
  return pad(inputs_BS), pad(targets_BS)


def alike(
  inputs_BS: jax.Array, targets_BS: jax.Array, placeholders: tuple[int, ...]
) -> jax.Array:
  """Which examples share a text, as inputs or as targets, bool[B, B]."""
  across_BB = same_texts(inputs_BS, targets_BS, placeholders)
  return (
    same_texts(inputs_BS, inputs_BS, placeholders)
    | same_texts(targets_BS, targets_BS, placeholders)
    | across_BB
    | across_BB.T
  )


def same_texts(
  one_BS: jax.Array, other_BS: jax.Array, placeholders: tuple[int, ...]
) -> jax.Array:
  """Which rows are the same text without media, bool[B, B]."""
  same_BB = jnp.all(one_BS[:, None] == other_BS[None], axis=-1)
  media_BS = jnp.isin(one_BS, jnp.array(placeholders, jnp.int32))
  return same_BB & ~jnp.any(media_BS, axis=1)[:, None]
