"""Matrices in 4 bits a number, with a scale for each group of inputs.

D dims in, F dims out, G groups of a row.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.kernels import native
from gemini_jax.layers import matmul
from gemini_jax.weights import by_output, native_products

LARGEST = 7


@flax.struct.dataclass
class Int4(native_products.NativeWeight, by_output.ByOutput):
  """Integers from -7 to 7, two a byte, times the scale of their group.

  Attributes:
    codes: uint8[*lead, F, ceil(D / 2)], each number plus 8, the first of two
      neighbours in the upper half.
    scale: bfloat16[*lead, F, G].
    inputs: dims of the array that make D.
    outputs: dims of the array that make F.
    is_table: whether the outputs come first in the array.
    group: inputs of a group; the last may have fewer.
    kernel: see weights/native_products.py.
    layer: see weights/native_products.py.
  """

  codes: jax.Array
  scale: jax.Array
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  is_table: bool = flax.struct.field(pytree_node=False)
  group: int = flax.struct.field(pytree_node=False)
  kernel: str = flax.struct.field(pytree_node=False, default='xla')
  layer: jax.Array | None = None

  @property
  def stacked(self) -> tuple[jax.Array, jax.Array]:
    """See `native_products.NativeWeight`."""
    return self.codes, self.scale

  def matrix(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """[*lead, F, D]."""
    size = math.prod(self.inputs)
    return numbers(self.group, size, dtype, *self.arrays())

  def rows_times(self, x_RD: jax.Array, types: dict[str, Any]) -> jax.Array:
    """See `by_output.ByOutput`."""
    if self.group % 2 or not self.is_native(x_RD, native.MOST_INT4_ROWS):
      return super().rows_times(x_RD, types)
    return native_products.product(
      functools.partial(native.int4_product, self.group),
      functools.partial(_plain_product, self.group, types['dtype']),
      x_RD.astype(jnp.float32),
      *self.stack(),
    )


def numbers(
  group: int,
  size: int,
  dtype: jax.typing.DTypeLike,
  codes: jax.Array,
  scale: jax.Array,
) -> jax.Array:
  """[..., F, D], what codes and scales stand for; D is `size`."""
  scale = jnp.repeat(scale.astype(dtype), group, axis=-1)
  return unpacked(codes, size).astype(dtype) * scale[..., :size]


def _plain_product(
  group: int,
  dtype: jax.typing.DTypeLike,
  x_RD: jax.Array,
  codes: jax.Array,
  scale: jax.Array,
  layer: jax.Array,
) -> jax.Array:
  """float32[R, F]."""
  size = x_RD.shape[-1]
  matrix_FD = numbers(group, size, dtype, codes[layer], scale[layer])
  return matmul.dot_transposed(
    x_RD, matrix_FD, dtype=dtype, out_dtype=jnp.float32
  )


def packed(whole: jax.Array) -> jax.Array:
  """int8[..., D] from -8 to 7 as uint8[..., ceil(D / 2)]."""
  is_odd = whole.shape[-1] % 2
  pad = [(0, 0)] * (whole.ndim - 1) + [(0, is_odd)]
  codes = jnp.pad(whole + 8, pad).astype(jnp.uint8)
  return codes[..., ::2] << 4 | codes[..., 1::2]


def unpacked(codes: jax.Array, size: int) -> jax.Array:
  """The first `size` numbers, int8; the inverse of `packed`."""
  pairs = jnp.stack([codes >> 4, codes & 15], axis=-1)
  whole = pairs.reshape(*codes.shape[:-1], -1)[..., :size]
  return whole.astype(jnp.int8) - 8
