"""A matrix with a bottleneck behind its product (Houlsby et al. 2019).

D outputs, W hidden width.
"""

import dataclasses
from typing import Any

import flax.struct
import jax

from gemini_jax import config as config_lib
from gemini_jax.layers import matmul


@flax.struct.dataclass
class Bottleneck(matmul.Weight):
  """y = x base; y + up(gelu(down(y))): no matrix, but it stands for one.

  A bias of the projection is added after it.

  Attributes:
    base: [*stack, *in, D], an array or another `Weight`; `stack` are dims of
      layers.
    down: [*stack, D, W].
    up: [*stack, W, D].
  """

  base: Any
  down: Any
  up: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the base."""
    return tuple(self.base.shape)

  @property
  def dtype(self) -> Any:
    """Of the base."""
    return self.base.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """ConfigError: it is not linear."""
    raise config_lib.ConfigError(
      'tune.method=adapter: adapters are not linear and cannot be merged into '
      'matrices; tune with lora for that'
    )

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """The product of the base, and the bottleneck's update of it."""
    y = matmul.dot(
      x, self.base, num_contracted, dtype=dtype, out_dtype=out_dtype
    )
    hidden = jax.nn.gelu(matmul.dot(y, self.down, 1, dtype=dtype))
    return y + matmul.dot(hidden, self.up, 1, dtype=dtype, out_dtype=out_dtype)

  def names(self, names: tuple[str | None, ...]) -> Any:
    """The dim of outputs is split as the base's; the hidden one is whole."""
    base: Any = names
    if isinstance(self.base, matmul.Weight):
      base = self.base.names(names)
    if base is None:
      return None
    stack = names[: self.down.ndim - 2]
    return dataclasses.replace(
      self,
      base=base,
      down=(*stack, names[-1], None),
      up=(*stack, None, names[-1]),
    )
