"""Matrices of which whole blocks are zero, stored without these (block-ELL).

`convert` puts a `BlockSparse` in the place of the matrices of a model that was
pruned in blocks (`sparsity.block`). Memory and time shrink by what is left. A
matrix whose zeros are single weights keeps all its blocks, and gains nothing.
"""

import dataclasses
import logging
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.kernels import block_sparse
from gemini_jax.layers import matmul
from gemini_jax.models import parameter_groups

# Matrices of layers.
PATTERN = '/layers/(?!.*router).*@matrix$'


@flax.struct.dataclass
class BlockSparse(matmul.Weight):
  """The blocks of a matrix that are kept, as many for each block of outputs.

  Attributes:
    blocks: [*lead, F, K, b, b], inputs before outputs.
    index: int32[*lead, F, K], which block of inputs each one multiplies.
    inputs: dims of the array that make the inputs.
    outputs: dims of the array that make the outputs.
    kernel: of kernels/block_sparse.IMPLEMENTATIONS.
  """

  blocks: Any
  index: Any
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  kernel: str = flax.struct.field(pytree_node=False, default='xla')

  @classmethod
  def from_mask(
    cls, array: jax.Array, kept: np.ndarray, num_lead: int, num_in: int
  ) -> 'BlockSparse':
    """The blocks of an array that are kept.

    Columns with fewer than the fullest get blocks of zeros.

    Args:
      array: [*lead, *inputs, *outputs].
      kept: bool[*lead, blocks of inputs, blocks of outputs].
      num_lead: how many dims `lead` has.
      num_in: how many dims `inputs` has.
    """
    lead, shape = array.shape[:num_lead], array.shape[num_lead:]
    inputs, outputs = shape[:num_in], shape[num_in:]
    D, F = kept.shape[-2:]
    b = math.prod(inputs) // D
    kept_FD = np.swapaxes(kept, -1, -2)
    K = max(1, int(kept_FD.sum(-1).max()))
    # Kept blocks first, in the order of inputs.
    index = np.argsort(~kept_FD, axis=-1, kind='stable')[..., :K]
    used = np.take_along_axis(kept_FD, index, axis=-1)
    every = array.reshape(*lead, D, b, F, b)
    every = jnp.moveaxis(every, -2, -4)  # [*lead, F, D, b, b]
    blocks = jnp.take_along_axis(every, index[..., None, None], axis=-3)
    blocks = jnp.where(used[..., None, None], blocks, 0)
    return cls(blocks, jnp.asarray(index, jnp.int32), inputs, outputs)

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
    """See `matmul.dot`."""
    if num_contracted != len(self.inputs):
      return super().dot(x, num_contracted, dtype=dtype, out_dtype=out_dtype)
    lead, b = x.shape[: x.ndim - num_contracted], self.blocks.shape[-1]
    x_RDb = x.astype(dtype).reshape(-1, math.prod(self.inputs) // b, b)
    # A Pallas kernel is a program of one device.
    kernel = self.kernel if matmul.on_one_device() else 'xla'
    y_RFb = block_sparse.product(
      x_RDb, self.blocks.astype(dtype), self.index, kernel
    )
    return y_RFb.astype(out_dtype or dtype).reshape(*lead, *self.outputs)

  def names(self, names: tuple[str | None, ...]) -> Any:
    """Only the stack is split; blocks are whole on each device."""
    lead = names[: len(names) - len(self.inputs) - len(self.outputs)]
    return dataclasses.replace(
      self, blocks=(*lead, None, None, None, None), index=(*lead, None, None)
    )


def convert(
  params: Any, block: int, *, kernel: str = 'auto', pattern: str = PATTERN
) -> Any:
  """Parameters with a `BlockSparse` in place of matrices with zero blocks.

  A matrix of which no block is zero stays as it is.

  Args:
    params: of a model, arrays.
    block: inputs and outputs of a block.
    kernel: as of `kernels/block_sparse.choose`.
    pattern: of paths and kinds, see `models/parameter_groups.py`; matrices.

  Raises:
    ConfigError: the pattern matches nothing, a block does not divide a matrix,
      or there is no such kernel here.
  """
  selection = parameter_groups.Selection('block-sparse weights', pattern)
  parameter_groups.check([selection], params)
  platform = jax.default_backend()
  implementation = block_sparse.choose(kernel, platform, 'kernel')
  before = after = count = 0

  def one(path: Any, is_chosen: bool, leaf: jax.Array) -> Any:
    nonlocal before, after, count
    if not is_chosen:
      return leaf
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    dims = parameter_groups.matrix_dims(name, leaf.ndim)
    kept = nonzero_blocks(name, leaf, block)
    if kept.sum(-2).max() == kept.shape[-2]:
      return leaf
    weight = BlockSparse.from_mask(
      leaf, kept, len(dims.stack), len(dims.inputs)
    )
    weight = dataclasses.replace(weight, kernel=implementation)
    before, count = before + leaf.nbytes, count + 1
    after += weight.blocks.nbytes + weight.index.nbytes
    return weight

  converted = jax.tree_util.tree_map_with_path(
    one, parameter_groups.matching(pattern, params), params
  )
  logging.info(
    'block-sparse: %d matrices, %.1f MB in place of %.1f MB; products by %s',
    count,
    after / 1e6,
    before / 1e6,
    implementation,
  )
  return converted


def nonzero_blocks(name: str, leaf: jax.Array, block: int) -> np.ndarray:
  """bool[*stack, blocks of inputs, blocks of outputs].

  Raises:
    ConfigError: a block does not divide the matrix.
  """
  dims = parameter_groups.matrix_dims(name, leaf.ndim)
  fans = [
    math.prod(leaf.shape[dim] for dim in part)
    for part in (dims.inputs, dims.outputs)
  ]
  for part, size in zip(('inputs', 'outputs'), fans, strict=True):
    config_lib.check(
      block > 0 and size % block == 0,
      f'a block of {block} does not divide the {size} {part} of {name}; choose '
      'another size, or leave it out',
    )
  stack = [leaf.shape[dim] for dim in dims.stack]
  fan_in, fan_out = fans
  parts = (*stack, fan_in // block, block, fan_out // block, block)
  return np.asarray(jnp.any(leaf.reshape(parts) != 0, axis=(-3, -1)))
