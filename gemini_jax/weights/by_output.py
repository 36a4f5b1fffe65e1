"""Matrices in codes with scales, the outputs before the inputs.

D dims in, F dims out, all of them in one dim each; R rows.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax.layers import matmul


def to_matrix(
  array: jax.Array, num_lead: int, num_in: int, is_table: bool
) -> jax.Array:
  """[*lead, F, D], of an array [*lead, *inputs, *outputs].

  Args:
    array: the matrices; those of a table are [*lead, F, D] already.
    num_lead: how many dims `lead` has, of layers and experts.
    num_in: how many dims `inputs` has.
    is_table: whether the outputs come first.
  """
  lead = array.shape[:num_lead]
  if is_table:
    return array.reshape(*lead, -1, math.prod(array.shape[-num_in:]))
  size = math.prod(array.shape[num_lead : num_lead + num_in])
  return array.reshape(*lead, size, -1).swapaxes(-1, -2)


def to_array(
  matrix: jax.Array,
  inputs: tuple[int, ...],
  outputs: tuple[int, ...],
  is_table: bool,
) -> jax.Array:
  """The inverse of `to_matrix`."""
  lead = matrix.shape[:-2]
  if is_table:
    return matrix.reshape(*lead, *outputs, *inputs)
  return matrix.swapaxes(-1, -2).reshape(*lead, *inputs, *outputs)


class ByOutput(matmul.Weight):
  """A matrix [F, D] in codes.

  A subclass has the attributes `codes` and `scale`, both [*lead, F, ...], and
  the dims `inputs`, `outputs` and `is_table`, as of weights/int8.py.
  """

  codes: Any
  scale: Any
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  is_table: bool

  def matrix(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """[*lead, F, D]."""
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    parts = (self.inputs, self.outputs)
    first, last = parts[::-1] if self.is_table else parts
    return (*self.lead, *first, *last)

  @property
  def lead(self) -> tuple[int, ...]:
    """The dims of layers and experts."""
    return self.codes.shape[:-2]

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return jnp.dtype('float32')

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`."""
    matrix = self.matrix(dtype)
    return to_array(matrix, self.inputs, self.outputs, self.is_table)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot`."""
    types: Any = {'dtype': dtype, 'out_dtype': out_dtype}
    if self.is_table or num_contracted != len(self.inputs):
      return super().dot(x, num_contracted, **types)
    lead = x.shape[: x.ndim - num_contracted]
    x_RD = x.reshape(-1, math.prod(self.inputs))
    y_RF = self.rows_times(x_RD, types).astype(out_dtype or dtype)
    return y_RF.reshape(*lead, *self.outputs)

  def rows_times(self, x_RD: jax.Array, types: dict[str, Any]) -> jax.Array:
    """[R, F]; the types as of `matmul.dot`."""
    return matmul.dot_transposed(x_RD, self.matrix(types['dtype']), **types)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.rows`."""
    if not self.is_table:
      return super().rows(ids, dtype)
    chosen: Any = self.replace(  # pyright: ignore
      codes=jnp.take(self.codes, ids, axis=0),
      scale=jnp.take(self.scale, ids, axis=0),
    )
    return chosen.matrix(dtype)
