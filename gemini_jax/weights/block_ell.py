"""Matrices of which whole blocks are zero, stored without these (block-ELL).

Memory and time of a product shrink by what is left. Each block of outputs keeps
as many blocks of inputs as the others, in any places.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.kernels import block_sparse
from gemini_jax.layers import matmul
from gemini_jax.parallel import sharding


@flax.struct.dataclass
class BlockSparse(matmul.Weight):
  """The blocks of a matrix that are kept, as many for each block of outputs.

  Attributes:
    blocks: [*lead, F, K, b, b], inputs before outputs.
    index: int32[*lead, F, K], which block of inputs each one multiplies.
    inputs: dims of the array that make the inputs.
    outputs: dims of the array that make the outputs.
    kernel: as of `kernels/block_sparse.choose`.
  """

  blocks: Any
  index: Any
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  kernel: str = flax.struct.field(pytree_node=False, default='auto')

  @classmethod
  def from_array(
    cls,
    array: jax.Array,
    block: int,
    alpha: float,
    num_lead: int,
    num_in: int,
  ) -> 'BlockSparse':
    """The blocks of an array that are not zero, then some that are.

    Of each block of outputs no more than `num_kept` may be other than zero.

    Args:
      array: [*lead, *inputs, *outputs].
      block: inputs and outputs of a block, which divides both.
      alpha: share of the blocks that is pruned.
      num_lead: how many dims `lead` has, of layers and experts.
      num_in: how many dims `inputs` has.
    """
    lead, shape = array.shape[:num_lead], array.shape[num_lead:]
    inputs, outputs = shape[:num_in], shape[num_in:]
    D, F = (math.prod(dims) // block for dims in (inputs, outputs))
    every = array.reshape(*lead, D, block, F, block)
    every = jnp.moveaxis(every, -2, -4)  # [*lead, F, D, b, b]
    is_zero = jnp.all(every == 0, axis=(-2, -1))
    order = jnp.argsort(is_zero, axis=-1, stable=True)
    index = order[..., : num_kept(alpha, D)].astype(jnp.int32)
    blocks = jnp.take_along_axis(every, index[..., None, None], axis=-3)
    return cls(blocks, index, inputs, outputs)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    return (*self.index.shape[:-2], *self.inputs, *self.outputs)

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return self.blocks.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`; blocks of the same place are added up."""
    *lead, F, _, b, _ = self.blocks.shape
    num_inputs = math.prod(self.inputs) // b

    def one(blocks, index):
      every = jnp.zeros((F, num_inputs, b, b), blocks.dtype)
      every = every.at[jnp.arange(F)[:, None], index].add(blocks)
      return every.transpose(1, 2, 0, 3)

    for _ in lead:
      one = jax.vmap(one)
    return one(self.blocks, self.index).astype(dtype).reshape(self.shape)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot`; each device multiplies its rows and outputs."""
    if num_contracted != len(self.inputs):
      return super().dot(x, num_contracted, dtype=dtype, out_dtype=out_dtype)
    num_lead = x.ndim - num_contracted
    lead, b = x.shape[:num_lead], self.blocks.shape[-1]
    kernel = block_sparse.choose(self.kernel, jax.default_backend(), 'kernel')

    def product(x, blocks, index):
      x_RDb = x.reshape(-1, math.prod(self.inputs) // b, b)
      y_RFb = block_sparse.product(x_RDb, blocks, index, kernel)
      return y_RFb.reshape(*x.shape[:num_lead], *y_RFb.shape[1:])

    # XLA cannot split the gather of a dim that is split. The name of a dim that
    # is split over tensors stands for blocks of outputs here.
    rows = ('batch', 'length', *(None,) * num_lead)[:num_lead]
    y = sharding.per_device(
      product,
      (
        (*rows, *(None,) * num_contracted),
        ('mlp', None, None, None),
        ('mlp', None),
      ),
      (*rows, 'mlp', None),
    )(x.astype(dtype), self.blocks.astype(dtype), self.index)
    return y.astype(out_dtype or dtype).reshape(*lead, *self.outputs)

  def names(self, names: tuple[str | None, ...]) -> Any:
    """Only the stack is split in memory; blocks are whole on each device."""
    lead = names[: len(names) - len(self.inputs) - len(self.outputs)]
    return dataclasses.replace(
      self, blocks=(*lead, None, None, None, None), index=(*lead, None, None)
    )


def num_kept(alpha: float, num_blocks: int) -> int:
  """How many of the blocks of inputs a block of outputs keeps; at least one.

  As many as training with `sparsity.block` leaves at the same share.

  Args:
    alpha: share that is pruned.
    num_blocks: of the inputs.
  """
  return max(1, round((1 - alpha) * num_blocks))
