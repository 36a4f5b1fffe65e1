"""A matrix and an update of low rank beside it (LoRA, Hu et al. 2021).

R rank, B rows of a batch.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.layers import matmul


@flax.struct.dataclass
class LowRank(matmul.Weight):
  """`base + scale * a diag(gains) b`, which no product ever adds up.

  Attributes:
    base: [*stack, *in, *out], an array or another `Weight`; `stack` are dims of
      layers and of experts.
    a: [*stack, *in, R].
    b: [*stack, R, *out].
    gains: [*stack, R], AdaLoRA's singular values; [*stack, B, R]: other ones
      for each row of a batch; None: ones.
    scale: of the update.
    dropout: probability that an input of the update is left out in training.
    seed: uint32[*stack], of what is left out in this pass; None: nothing is.
  """

  base: Any
  a: Any
  b: Any
  gains: Any = None
  scale: float = flax.struct.field(pytree_node=False, default=1.0)
  dropout: float = flax.struct.field(pytree_node=False, default=0.0)
  seed: Any = None

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the base."""
    return tuple(self.base.shape)

  @property
  def dtype(self) -> Any:
    """Of the base."""
    return self.base.dtype

  @property
  def num_stacked(self) -> int:
    """How many dims `stack` has."""
    return self.a.ndim + self.b.ndim - 2 - len(self.shape)

  @property
  def by_row(self) -> bool:
    """Whether each row of a batch has gains of its own."""
    return self.gains is not None and self.gains.ndim == self.num_stacked + 2

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The sum, made in float32."""
    base = matmul.to_array(self.base, jnp.float32)
    stack = self.shape[: self.num_stacked]
    rank = self.a.shape[-1]
    update = jnp.matmul(
      self.a.astype(jnp.float32).reshape(*stack, -1, rank),
      self.scaled_b().reshape(*stack, rank, -1),
      precision='highest',
    )
    return (base + update.reshape(self.shape)).astype(dtype)

  def scaled_b(self) -> jax.Array:
    """The factor b with gains and scale, in float32."""
    if self.by_row:
      raise ValueError('updates that differ from row to row are no one matrix')
    b = self.b.astype(jnp.float32) * self.scale
    if self.gains is None:
      return b
    dims = (1,) * (b.ndim - self.gains.ndim)
    return b * self.gains.reshape(*self.gains.shape, *dims)

  def _weighed(self, low: jax.Array) -> jax.Array:
    """[..., R] times gains and scale; the first dim is of rows."""
    if self.gains is None:
      return low * self.scale
    gains = self.gains * self.scale
    lead = [1] * (low.ndim - 1)
    if gains.ndim == 2:
      if gains.shape[0] != low.shape[0]:
        raise ValueError(
          f'updates of {gains.shape[0]} rows in a batch of {low.shape[0]}'
        )
      lead[0] = gains.shape[0]
    return low * gains.reshape(*lead, -1).astype(low.dtype)

  def _dropped(self, x: jax.Array) -> jax.Array:
    """Inputs of the update, some of them 0 and the others larger."""
    if self.seed is None:
      return x
    key = jax.random.key(self.seed.reshape(-1)[0])
    kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
    return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """Two thin products beside the base's."""
    types: Any = {'dtype': dtype, 'out_dtype': out_dtype}
    y = matmul.dot(x, self.base, num_contracted, **types)
    x = self._dropped(x)
    low = self._weighed(matmul.dot(x, self.a, num_contracted, dtype=dtype))
    return y + matmul.dot(low, self.b, 1, **types)

  def dot_transposed(
    self,
    x: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """Two thin products beside the base's."""
    types: Any = {'dtype': dtype, 'out_dtype': out_dtype}
    y = matmul.dot_transposed(x, self.base, **types)
    low = self._weighed(matmul.dot_transposed(x, self.b, dtype=dtype))
    return y + matmul.dot_transposed(low, self.a, **types)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Rows of `a`, and a thin product, beside the base's rows."""
    low = self._weighed(matmul.rows(self.a, ids, dtype))
    update = matmul.dot(low, self.b, 1, dtype=dtype)
    return matmul.rows(self.base, ids, dtype) + update

  def grouped_dot(self, x_RD: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Two thin products beside the base's."""
    low = matmul.grouped_dot(self._dropped(x_RD), self.a, sizes_E)
    update = matmul.grouped_dot(low, self.scaled_b(), sizes_E)
    return matmul.grouped_dot(x_RD, self.base, sizes_E) + update

  def names(self, names: tuple[str | None, ...]) -> Any:
    """Dims of inputs and outputs are split as the base's; ranks are whole."""
    base: Any = names
    if isinstance(self.base, matmul.Weight):
      base = self.base.names(names)
    if base is None:
      return None
    stacked = self.num_stacked
    split = self.a.ndim - 1
    gains = None
    if self.gains is not None:
      gains = (*names[:stacked], *(None,) * (self.gains.ndim - stacked))
    return dataclasses.replace(
      self,
      base=base,
      a=(*names[:split], None),
      b=(*names[:stacked], None, *names[split:]),
      gains=gains,
      seed=None if self.seed is None else names[:stacked],
    )
