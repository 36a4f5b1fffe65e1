"""Matrices of which whole blocks are zero, stored without these (block-ELL).

Memory and time of a product shrink by what is left. Each block of outputs keeps
as many blocks of inputs as the others, in any places.

R rows, D dims in, F blocks of outputs, K blocks of each, b size of a block.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.kernels import block_sparse, native
from gemini_jax.parallel import sharding
from gemini_jax.weights import native_products


@flax.struct.dataclass
class BlockSparse(native_products.NativeWeight):
  """The blocks of a matrix that are kept, as many for each block of outputs.

  Attributes:
    blocks: [*lead, F, K, b, b], inputs before outputs.
    index: int32[*lead, F, K], which block of inputs each one multiplies.
    inputs: dims of the array that make the inputs.
    outputs: dims of the array that make the outputs.
    kernel: of products of few rows on CPUs, 'xla' or 'native'.
    layer: as of `NativeWeight`.
  """

  NUM_DIMS = 4
  blocks: Any
  index: Any
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  kernel: str = flax.struct.field(pytree_node=False, default='xla')
  layer: jax.Array | None = None

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
    return (*self.lead, *self.inputs, *self.outputs)

  @property
  def stacked(self) -> tuple[jax.Array, jax.Array]:
    """See `native_products.NativeWeight`."""
    return self.blocks, self.index

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return self.blocks.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`; blocks of the same place are added up."""
    blocks, index = self.arrays()
    F, _, b, _ = blocks.shape[-4:]
    num_inputs = math.prod(self.inputs) // b

    def one(blocks, index):
      every = jnp.zeros((F, num_inputs, b, b), blocks.dtype)
      every = every.at[jnp.arange(F)[:, None], index].add(blocks)
      return every.transpose(1, 2, 0, 3)

    for _ in self.lead:
      one = jax.vmap(one)
    return one(blocks, index).astype(dtype).reshape(self.shape)

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
    lead = x.shape[: x.ndim - num_contracted]
    x_RD = x.reshape(-1, math.prod(self.inputs))
    is_whole = self.blocks.shape[-1] % native.LANES == 0
    if is_whole and self.is_native(x_RD, native.MOST_BLOCK_ROWS):
      y = native_products.product(
        native.block_product,
        _in_stack,
        x_RD.astype(dtype).astype(jnp.float32),
        *self.stack(),
      )
    else:
      y = self._per_device(x.astype(dtype), len(lead))
    return y.astype(out_dtype or dtype).reshape(*lead, *self.outputs)

  def _per_device(self, x: jax.Array, num_lead: int) -> jax.Array:
    """[*lead, F, b]; XLA cannot split the gather of a dim that is split."""
    blocks, index = self.arrays()
    rows = ('batch', 'length', *(None,) * num_lead)[:num_lead]
    # By this name blocks of outputs are split, as others are over tensors.
    call = sharding.per_device(
      _product,
      ((*rows, None), ('mlp', None, None, None), ('mlp', None)),
      (*rows, 'mlp', None),
    )
    return call(
      x.reshape(*x.shape[:num_lead], -1), blocks.astype(x.dtype), index
    )

  def names(self, names: tuple[str | None, ...]) -> Any:
    """Only the stack is split in memory; blocks are whole on each device."""
    lead = names[: len(names) - len(self.inputs) - len(self.outputs)]
    return dataclasses.replace(
      self, blocks=(*lead, None, None, None, None), index=(*lead, None, None)
    )


def _product(x: jax.Array, blocks_FKbb: Any, index_FK: Any) -> jax.Array:
  """[..., F, b], of x [..., D]."""
  kernel = block_sparse.best(jax.default_backend())
  x_RDb = x.reshape(-1, *_parts(x, blocks_FKbb))
  y_RFb = block_sparse.product(x_RDb, blocks_FKbb, index_FK, kernel)
  return y_RFb.reshape(*x.shape[:-1], *y_RFb.shape[1:])


def _in_stack(x_RD: jax.Array, blocks: Any, index: Any, layer: Any) -> Any:
  """float32[R, F b], of the blocks of a layer in a stack."""
  blocks_FKbb = blocks[layer].astype(x_RD.dtype)
  x_RDb = x_RD.reshape(-1, *_parts(x_RD, blocks_FKbb))
  y_RFb = block_sparse.xla_product(x_RDb, blocks_FKbb, index[layer])
  return y_RFb.reshape(x_RD.shape[0], -1)


def _parts(x: jax.Array, blocks_FKbb: jax.Array) -> tuple[int, int]:
  """How many blocks the last dim of x has, and how large they are."""
  b = blocks_FKbb.shape[-1]
  return x.shape[-1] // b, b


def num_kept(alpha: float, num_blocks: int) -> int:
  """How many of the blocks of inputs a block of outputs keeps; at least one.

  As many as training with `sparsity.block` leaves at the same share.

  Args:
    alpha: share that is pruned.
    num_blocks: of the inputs.
  """
  return max(1, round((1 - alpha) * num_blocks))
