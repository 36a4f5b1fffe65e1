"""Tokens and positions as vectors.

B batch, T length, D width, V vocabulary, H head width, F rotary frequencies
(H / 2), A coordinates of a position in a picture or sound.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax.layers import matmul


class Embedding(nn.Module):
  """A table of vectors, which embeds token ids and scores tokens.

  Attributes:
    num_embeddings: rows V.
    width: columns D.
    axes: logical axes of (rows, columns).
    dtype: of the vectors that come out.
    param_dtype: of the table.
    init_scale: standard deviation of the initial table.
  """

  num_embeddings: int
  width: int
  axes: tuple[str | None, str | None] = ('vocab', 'embed')
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float = 0.02

  def setup(self):
    """The table."""
    self.embedding = matmul.param(
      self,
      'embedding',
      nn.initializers.normal(self.init_scale),
      self.axes,
      (self.num_embeddings, self.width),
      self.param_dtype,
    )

  def __call__(self, ids_BT: jax.Array) -> jax.Array:
    """Rows of the table, [B, T, D]."""
    return matmul.rows(self.embedding, ids_BT, self.dtype)

  def attend(self, x_BTD: jax.Array) -> jax.Array:
    """Scores of every row, [B, T, V] in float32."""
    return matmul.dot_transposed(
      x_BTD, self.embedding, dtype=self.dtype, out_dtype=jnp.float32
    )


def rotary_frequencies(
  head_dim: int,
  base: float,
  *,
  scale: float = 1.0,
  llama3_context: int = 0,
  llama3_factors: tuple[float, float, float] = (8.0, 1.0, 4.0),
) -> np.ndarray:
  """Radians per position of each rotated pair, float32[F] (RoFormer).

  Args:
    head_dim: H, even.
    base: wavelengths run from 2 pi to 2 pi base.
    scale: positions are divided by it (linear interpolation, Gemma 3).
    llama3_context: original context of Llama 3.1's rescaling; 0: off.
    llama3_factors: (factor, low, high): wavelengths above context / low are
      stretched by factor, those below context / high are kept, and between
      the two the frequency is blended linearly.
  """
  exponents_F = np.arange(0, head_dim, 2) / head_dim
  frequencies_F = 1.0 / base**exponents_F / scale
  if llama3_context:
    factor, low, high = llama3_factors
    turns_F = llama3_context * frequencies_F / (2 * math.pi)
    blend_F = np.clip((turns_F - low) / (high - low), 0, 1)
    frequencies_F = frequencies_F * (blend_F + (1 - blend_F) / factor)
  return frequencies_F.astype(np.float32)


def rotary_angles(
  positions_BT: jax.Array, frequencies_F: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """(sin, cos) for `rotate`, each float32[B, T, H].

  The two numbers of a pair lie F apart; the sine of the first is negative.
  """
  return rotation(
    positions_BT[..., None].astype(jnp.float32) * frequencies_F[None, None]
  )


def rotation(angles_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sin, cos) for `rotate`, from the angle of each pair."""
  sin_BTF, cos_BTF = jnp.sin(angles_BTF), jnp.cos(angles_BTF)
  return (
    jnp.concatenate([-sin_BTF, sin_BTF], axis=-1),
    jnp.concatenate([cos_BTF, cos_BTF], axis=-1),
  )


def place_angles(
  places_BTA: jax.Array, num_pairs: int, base: float
) -> jax.Array:
  """Rotary angles of positions with A coordinates, float32[B, T, F].

  The pairs are divided among the coordinates, each with all wavelengths
  from 2 pi to 2 pi base (axial rotary positions, Heo et al. 2024).
  """
  A = places_BTA.shape[-1]
  counts = [len(part) for part in np.array_split(np.arange(num_pairs), A)]
  frequencies = [rotary_frequencies(2 * count, base) for count in counts]
  return jnp.concatenate(
    [
      places_BTA[..., a : a + 1].astype(jnp.float32)
      * frequencies[a][None, None]
      for a in range(A)
    ],
    axis=-1,
  )


def sinusoids(places_BTA: jax.Array, width: int, base: float) -> jax.Array:
  """Sines and cosines of the coordinates of positions, float32[B, T, D].

  For one coordinate as in Vaswani et al. 2017, for two as in MAE (He et al.
  2022); the mean square is 1/2.
  """
  angles_BTF = place_angles(places_BTA, -(-width // 2), base)
  waves = jnp.concatenate([jnp.sin(angles_BTF), jnp.cos(angles_BTF)], axis=-1)
  return waves[..., :width]


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the pairs (x[i], x[i + H/2]) of every head by its angle."""
  sin_BT1H, cos_BT1H = (part[:, :, None, :] for part in angles)
  x = x_BTNH.astype(jnp.float32)
  # Rolled, not split: the split halves would be copied once more.
  rotated = x * cos_BT1H + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin_BT1H
  return rotated.astype(x_BTNH.dtype)
