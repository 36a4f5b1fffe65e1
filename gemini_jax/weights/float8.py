"""Matrices of 8-bit floats (e4m3) with a scale for each output.

D dims in, F dims out.
"""

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.weights import by_output

TYPE = jnp.float8_e4m3fn
LARGEST = 448


@flax.struct.dataclass
class Float8(by_output.ByOutput):
  """Small floats times the scale of their output.

  Attributes:
    codes: uint8[*lead, F, D], their bits, which all files can hold.
    scale: float32[*lead, F].
    inputs: dims of the array that make D.
    outputs: dims of the array that make F.
    is_table: whether the outputs come first in the array.
  """

  codes: jax.Array
  scale: jax.Array
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  is_table: bool = flax.struct.field(pytree_node=False)

  def matrix(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """[*lead, F, D]."""
    numbers = jax.lax.bitcast_convert_type(self.codes, TYPE)
    return numbers.astype(dtype) * self.scale[..., None].astype(dtype)
