"""The numbers that a matrix in codes can hold, and rounding to them.

F dims out, D dims in, G scales of an output.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax.weights import float8, int4, int8, int8_inputs

_LARGEST = {'int8': 127, 'int4': int4.LARGEST, 'float8': float8.LARGEST}


@dataclasses.dataclass(frozen=True)
class Grid:
  """Multiples of a scale, which is one of an output or of a group of inputs.

  Attributes:
    kind: int8, int4 or float8.
    group: inputs that share a scale of int4.
    int8_inputs: whether products by int8 round their inputs too.
  """

  kind: str
  group: int = 128
  int8_inputs: bool = False

  @property
  def has_groups(self) -> bool:
    """Whether an output has a scale for each group of inputs."""
    return self.kind == 'int4'

  def scale(self, w_FD: jax.Array) -> jax.Array:
    """[..., F, G], by which the largest weights have the largest code."""
    if not self.has_groups:
      largest = jnp.max(jnp.abs(w_FD), axis=-1, keepdims=True)
    else:
      D = w_FD.shape[-1]
      pad = [(0, 0)] * (w_FD.ndim - 1) + [(0, -D % self.group)]
      groups = jnp.pad(w_FD, pad).reshape(*w_FD.shape[:-1], -1, self.group)
      largest = jnp.max(jnp.abs(groups), axis=-1)
    scale = jnp.maximum(largest, 1e-30) / _LARGEST[self.kind]
    # As it is stored.
    return scale.astype(jnp.bfloat16 if self.has_groups else jnp.float32)

  def codes(self, w_FD: jax.Array, scale_FG: jax.Array) -> jax.Array:
    """The nearest codes, as numbers: multiples of the scale."""
    scale = scale_FG.astype(jnp.float32)
    if self.has_groups:
      scale = jnp.repeat(scale, self.group, axis=-1)[..., : w_FD.shape[-1]]
    multiples = w_FD / scale
    largest = _LARGEST[self.kind]
    multiples = jnp.clip(multiples, -largest, largest)
    if self.kind == 'float8':
      return multiples.astype(float8.TYPE)
    return jnp.round(multiples).astype(jnp.int8)

  def rounded(self, w_FD: jax.Array, scale_FG: jax.Array) -> jax.Array:
    """The nearest weights that codes stand for."""
    scale = scale_FG.astype(jnp.float32)
    if self.has_groups:
      scale = jnp.repeat(scale, self.group, axis=-1)[..., : w_FD.shape[-1]]
    return self.codes(w_FD, scale_FG).astype(jnp.float32) * scale

  def leaf(
    self,
    w_FD: jax.Array,
    scale_FG: jax.Array,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    is_table: bool,
  ) -> Any:
    """The weight of the nearest codes.

    Args:
      w_FD: float32[*lead, F, D].
      scale_FG: of `scale`.
      inputs: dims of the array that make D.
      outputs: dims of the array that make F.
      is_table: whether the outputs come first in the array.
    """
    codes = self.codes(w_FD, scale_FG)
    dims = (inputs, outputs, is_table)
    if self.kind == 'int4':
      return int4.Int4(int4.packed(codes), scale_FG, *dims, self.group)
    if self.kind == 'float8':
      bits = jax.lax.bitcast_convert_type(codes, jnp.uint8)
      return float8.Float8(bits, scale_FG[..., 0], *dims)
    kind = int8.Int8
    if self.int8_inputs and not is_table:
      kind = int8_inputs.Int8Inputs
    return kind(codes, scale_FG[..., 0], *dims)
