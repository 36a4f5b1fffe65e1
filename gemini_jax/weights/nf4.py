"""Matrices in 4 bits a number: NormalFloat (QLoRA, Dettmers et al. 2023).

A number is one of 16 levels, at quantiles of a normal distribution, times the
largest magnitude of its block. Blocks lie along the last dim.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.layers import matmul

# Numbers of a block, where the last dim is a multiple of it.
BLOCK = 64
# Appendix E of the paper.
LEVELS = np.array(
  [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
  ],
  np.float32,
)


@flax.struct.dataclass
class NF4(matmul.Weight):
  """A matrix that is frozen, in 4 bits a number and a scale for each block.

  Attributes:
    codes: uint8[..., F / 2], the levels of two neighbours each, the first in
      the upper half.
    scales: [..., F / block], of the type that the matrix had.
  """

  codes: Any
  scales: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the matrix."""
    return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

  @property
  def dtype(self) -> Any:
    """That the matrix had."""
    return self.scales.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The levels times the scales."""
    pairs = jnp.stack([self.codes >> 4, self.codes & 15], axis=-1)
    blocks = (*self.scales.shape, -1)
    values = jnp.take(jnp.asarray(LEVELS), pairs.reshape(blocks), axis=0)
    values = values * self.scales.astype(jnp.float32)[..., None]
    return values.reshape(self.shape).astype(dtype)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """As of the matrix, which is made again for the gradient."""
    types: Any = {'dtype': dtype, 'out_dtype': out_dtype}
    return _recomputed(
      lambda x, array: matmul.dot(x, array, num_contracted, **types),
      x,
      self,
      dtype,
    )

  def dot_transposed(
    self,
    x: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """As of the matrix, which is made again for the gradient."""
    types: Any = {'dtype': dtype, 'out_dtype': out_dtype}
    function = functools.partial(matmul.dot_transposed, **types)
    return _recomputed(function, x, self, dtype)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Only these are made."""
    return NF4(self.codes[ids], self.scales[ids]).to_array(dtype)

  def grouped_dot(self, x_RD: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """As of the matrices, which are made again for the gradient."""
    function = lambda x_RD, array: matmul.grouped_dot(x_RD, array, sizes_E)
    return _recomputed(function, x_RD, self, x_RD.dtype)

  def names(self, names: tuple[str | None, ...]) -> Any:
    """All dims but the last, in which bytes and scales are fewer."""
    return NF4((*names[:-1], None), (*names[:-1], None))


def _recomputed(
  function: Any, x: jax.Array, weight: NF4, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """`function(x, array)`; the array is not kept for the backward pass."""
  call = lambda x, weight: function(x, weight.to_array(dtype))
  return jax.checkpoint(call)(x, weight)


def quantised(array: jax.Array) -> NF4:
  """The nearest levels of each block.

  Raises:
    ConfigError: the last dim is odd.
  """
  block = math.gcd(array.shape[-1], BLOCK)
  config_lib.check(
    block % 2 == 0,
    f"tune.base='nf4' needs matrices whose last dim is even, not "
    f'{list(array.shape)}; choose others by tune.pattern',
  )
  blocks = array.astype(jnp.float32).reshape(*array.shape[:-1], -1, block)
  scales = jnp.max(jnp.abs(blocks), axis=-1).astype(array.dtype)
  size = scales.astype(jnp.float32)[..., None]
  between = (LEVELS[1:] + LEVELS[:-1]) / 2
  codes = jnp.searchsorted(
    jnp.asarray(between), blocks / jnp.where(size > 0, size, 1)
  ).astype(jnp.uint8)
  pairs = codes.reshape(*array.shape[:-1], -1, 2)
  return NF4(pairs[..., 0] << 4 | pairs[..., 1], scales)
