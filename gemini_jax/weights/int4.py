"""Matrices in 4 bits a number, with a scale for each group of inputs.

D dims in, F dims out, G groups of a row.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.weights import by_output

LARGEST = 7


@flax.struct.dataclass
class Int4(by_output.ByOutput):
  """Integers from -7 to 7, two a byte, times the scale of their group.

  Attributes:
    codes: uint8[*lead, F, ceil(D / 2)], each number plus 8, the first of two
      neighbours in the upper half.
    scale: bfloat16[*lead, F, G].
    inputs: dims of the array that make D.
    outputs: dims of the array that make F.
    is_table: whether the outputs come first in the array.
    group: inputs of a group; the last may have fewer.
  """

  codes: jax.Array
  scale: jax.Array
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  is_table: bool = flax.struct.field(pytree_node=False)
  group: int = flax.struct.field(pytree_node=False)

  def matrix(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """[*lead, F, D]."""
    size = math.prod(self.inputs)
    numbers = unpacked(self.codes, size).astype(dtype)
    scale = jnp.repeat(self.scale.astype(dtype), self.group, axis=-1)
    return numbers * scale[..., :size]


def packed(numbers: jax.Array) -> jax.Array:
  """int8[..., D] from -8 to 7 as uint8[..., ceil(D / 2)]."""
  is_odd = numbers.shape[-1] % 2
  pad = [(0, 0)] * (numbers.ndim - 1) + [(0, is_odd)]
  codes = jnp.pad(numbers + 8, pad).astype(jnp.uint8)
  return codes[..., ::2] << 4 | codes[..., 1::2]


def unpacked(codes: jax.Array, size: int) -> jax.Array:
  """The first `size` numbers, int8; the inverse of `packed`."""
  pairs = jnp.stack([codes >> 4, codes & 15], axis=-1)
  numbers = pairs.reshape(*codes.shape[:-1], -1)[..., :size]
  return numbers.astype(jnp.int8) - 8
