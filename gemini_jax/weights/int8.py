"""Matrices as int8 with a scale for each output, for faster decoding.

`quantize` puts an `Int8` in the place of matrices and tables in a tree of
parameters. A product on a CPU quantises its input too, with a scale for each
row, and multiplies integers; on other devices the matrix is brought to the type
of the computation inside the product. There is no gradient by the matrix, and
on a CPU none by the input: this is for inference.

R rows, D dims in, F dims out, V rows of a table.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.layers import matmul
from gemini_jax.models import parameter_groups

# Rows that a product on a CPU has at least: XLA has no fast kernel for one.
_MIN_ROWS = 2
_LARGEST = 127


@flax.struct.dataclass
class Int8(matmul.Weight):
  """`values * scale`.

  Attributes:
    values: int8, of the shape of the matrix.
    scale: float32, of as many dims; 1 where the dims are contracted.
  """

  values: jax.Array
  scale: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    return self.values.shape

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return self.scale.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`."""
    return (self.values * self.scale).astype(dtype)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot`."""
    if math.prod(self.scale.shape[:num_contracted]) > 1:
      return super().dot(x, num_contracted, dtype=dtype, out_dtype=out_dtype)

    def product(x, dtype, out_dtype):
      return matmul.dot(
        x, self.values, num_contracted, dtype=dtype, out_dtype=out_dtype
      )

    scale = self.scale.reshape(self.shape[num_contracted:])
    return _scaled(product, x, num_contracted, scale, dtype, out_dtype)

  def dot_transposed(
    self,
    x: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot_transposed`."""
    if self.scale.shape[-1] > 1:
      return super().dot_transposed(x, dtype=dtype, out_dtype=out_dtype)

    def product(x, dtype, out_dtype):
      return matmul.dot_transposed(
        x, self.values, dtype=dtype, out_dtype=out_dtype
      )

    return _scaled(product, x, 1, self.scale[:, 0], dtype, out_dtype)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.rows`."""
    values = jnp.take(self.values, ids, axis=0)
    of_row = ids if self.scale.shape[0] > 1 else jnp.zeros_like(ids)
    scale = jnp.take(self.scale, of_row, axis=0)
    return (values * scale).astype(dtype)

  def names(self, names: tuple[str | None, ...]) -> 'Int8':
    """See `matmul.Weight.names`."""
    sizes = self.scale.shape[-len(names) :]
    kept = (name if size > 1 else None for name, size in zip(names, sizes))
    return Int8(names, tuple(kept))  # pyright: ignore
