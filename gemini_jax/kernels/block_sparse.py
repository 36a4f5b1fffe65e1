"""Products with matrices of which only some blocks are stored (block-ELL).

Each column of blocks of the matrix has the same number of blocks; an index says
in which row of blocks each one lies. The same row twice is the sum of both.

XLA gathers the rows' inputs and multiplies column by column, on every platform
and on several devices. The Pallas kernels, of one device, gather nothing: they
walk through a list of blocks that is sorted by output, forward by column, and
backward by row. Sums are in float32.

R rows, D blocks of inputs, F blocks of outputs, K blocks of each output, b size
of a block, N = F * K.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

# Implementations and their platforms, the best of each first. On GPUs that is
# XLA: JAX calls the way that Pallas takes there deprecated.
IMPLEMENTATIONS = {
  'pallas_tpu': ('tpu',),
  'xla': ('cpu', 'tpu', 'gpu', 'cuda', 'rocm'),
  'pallas_gpu': ('gpu', 'cuda'),
}
# Rows of a tile, at most.
_TILE = {'pallas_tpu': 256, 'pallas_gpu': 64}
# Tensor cores need 16 rows; TPUs tile 16 rows of bfloat16.
_LEAST_ROWS = 16


def best(platform: str) -> str:
  """The implementation for a platform."""
  return next(
    name for name, platforms in IMPLEMENTATIONS.items() if platform in platforms
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def product(
  x_RDb: jax.Array,
  blocks_FKbb: jax.Array,
  index_FK: jax.Array,
  implementation: str = 'xla',
  interpret: bool = False,
) -> jax.Array:
  """Rows times the matrix, float32[R, F, b].

  Args:
    x_RDb: rows of inputs, in the type of the computation.
    blocks_FKbb: inputs before outputs, of the same type.
    index_FK: int32, which block of inputs each block multiplies.
    implementation: of IMPLEMENTATIONS.
    interpret: run the Pallas kernels without their hardware, slowly.
  """
  if implementation == 'xla':
    return xla_product(x_RDb, blocks_FKbb, index_FK)
  F, K, b, _ = blocks_FKbb.shape
  x_DRb, num_rows = _padded(x_RDb)
  # Columns follow each other, so the list is sorted by output as it is.
  outputs_N = jnp.repeat(jnp.arange(F, dtype=jnp.int32), K)
  lists = outputs_N, index_FK.reshape(-1), jnp.arange(F * K, dtype=jnp.int32)
  y_FRb = _walk(
    implementation, x_DRb, blocks_FKbb.reshape(-1, b, b), lists, F, False,
    interpret,
  )  # fmt: skip
  return y_FRb.transpose(1, 0, 2)[:num_rows]


def _forward(x_RDb, blocks_FKbb, index_FK, implementation, interpret):
  y_RFb = product(x_RDb, blocks_FKbb, index_FK, implementation, interpret)
  return y_RFb, (x_RDb, blocks_FKbb, index_FK)


def _backward(implementation, interpret, saved, dy_RFb):
  x_RDb, blocks_FKbb, index_FK = saved
  dy_RFb = dy_RFb.astype(x_RDb.dtype)
  if implementation == 'xla':
    dx_RDb = _xla_by_inputs(dy_RFb, blocks_FKbb, index_FK, x_RDb.shape[1])
    dblocks_FKbb = _xla_by_blocks(x_RDb, dy_RFb, index_FK)
  else:
    dx_RDb, dblocks_FKbb = _pallas_gradients(
      implementation, interpret, saved, dy_RFb
    )
  return (
    dx_RDb.astype(x_RDb.dtype),
    dblocks_FKbb.astype(blocks_FKbb.dtype),
    None,
  )


product.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, dims: Any) -> jax.Array:
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _gathered(x_RDb: jax.Array, index_FK: jax.Array) -> jax.Array:
  """[F, R, K b], the inputs of each column of blocks."""
  (R, _, b), (F, K) = x_RDb.shape, index_FK.shape
  x_FKRb = x_RDb.transpose(1, 0, 2)[index_FK]
  return x_FKRb.transpose(0, 2, 1, 3).reshape(F, R, K * b)


def xla_product(
  x_RDb: jax.Array, blocks_FKbb: jax.Array, index_FK: jax.Array
) -> jax.Array:
  """See `product`; also transposed and differentiated by JAX itself."""
  F, K, b, _ = blocks_FKbb.shape
  y_FRb = _dot(
    _gathered(x_RDb, index_FK),
    blocks_FKbb.reshape(F, K * b, b),
    (((2,), (1,)), ((0,), (0,))),
  )
  return y_FRb.transpose(1, 0, 2)


def _xla_by_inputs(dy_RFb, blocks_FKbb, index_FK, num_inputs):
  (F, K, b, _), R = blocks_FKbb.shape, dy_RFb.shape[0]
  parts_FRc = _dot(
    dy_RFb.transpose(1, 0, 2),
    blocks_FKbb.reshape(F, K * b, b),
    (((2,), (2,)), ((0,), (0,))),
  )
  parts_NRb = parts_FRc.reshape(F, R, K, b).transpose(0, 2, 1, 3)
  dx_DRb = jnp.zeros((num_inputs, R, b), jnp.float32)
  dx_DRb = dx_DRb.at[index_FK.reshape(-1)].add(parts_NRb.reshape(-1, R, b))
  return dx_DRb.transpose(1, 0, 2)


def _xla_by_blocks(x_RDb, dy_RFb, index_FK):
  (F, K), b = index_FK.shape, x_RDb.shape[-1]
  dblocks = _dot(
    _gathered(x_RDb, index_FK),
    dy_RFb.transpose(1, 0, 2),
    (((1,), (1,)), ((0,), (0,))),
  )
  return dblocks.reshape(F, K, b, b)


def _padded(x_RDb: jax.Array) -> tuple[jax.Array, int]:
  """[D, R, b] with rows of zeros up to a power of two, or whole tiles."""
  num_rows = x_RDb.shape[0]
  largest = max(_TILE.values())
  size = max(_LEAST_ROWS, 1 << (num_rows - 1).bit_length())
  if num_rows > largest:
    size = -(-num_rows // largest) * largest
  x_RDb = jnp.pad(x_RDb, ((0, size - num_rows), (0, 0), (0, 0)))
  return x_RDb.transpose(1, 0, 2), num_rows


def _pallas_gradients(implementation, interpret, saved, dy_RFb):
  x_RDb, blocks_FKbb, index_FK = saved
  (D, b), (F, K) = x_RDb.shape[1:], index_FK.shape
  (x_DRb, num_rows), (dy_FRb, _) = _padded(x_RDb), _padded(dy_RFb)
  index_N = index_FK.reshape(-1)
  order_N = jnp.argsort(index_N, stable=True).astype(jnp.int32)
  lists = index_N[order_N], order_N // K, order_N
  dx_DRb = _walk(
    implementation, dy_FRb, blocks_FKbb.reshape(-1, b, b), lists, D, True,
    interpret,
  )  # fmt: skip
  dblocks = _BY_BLOCKS[implementation](x_DRb, dy_FRb, index_N, K, interpret)
  return (
    dx_DRb.transpose(1, 0, 2)[:num_rows], dblocks.reshape(F, K, b, b)
  )  # fmt: skip


def _walk(
  implementation: str,
  x_DRb: jax.Array,
  blocks_Nbb: jax.Array,
  lists: tuple[jax.Array, jax.Array, jax.Array],
  num_outputs: int,
  transposed: bool,
  interpret: bool,
) -> jax.Array:
  """Sums of inputs times blocks, float32[outputs, R, b].

  Args:
    implementation: of the Pallas kernels.
    x_DRb: inputs.
    blocks_Nbb: of the matrix.
    lists: of products: output, in ascending order; input; block.
    num_outputs: how many; those in no product are zeros.
    transposed: whether the blocks are to be transposed.
    interpret: as of `product`.
  """
  y_FRb = _WALKS[implementation](
    x_DRb, blocks_Nbb, lists, num_outputs, transposed, interpret
  )
  counts_F = jnp.bincount(lists[0], length=num_outputs)
  return jnp.where((counts_F > 0)[:, None, None], y_FRb, 0.0)


def _tiles(num_rows: int, implementation: str) -> tuple[int, int]:
  """Rows of a tile, and how many tiles."""
  tile = min(num_rows, _TILE[implementation])
  return tile, num_rows // tile


def _in_block(transposed: bool) -> Any:
  return (((1,), (1 if transposed else 0,)), ((), ()))


def _tpu_walk(x_DRb, blocks_Nbb, lists, num_outputs, transposed, interpret):
  (_, R, b), N = x_DRb.shape, blocks_Nbb.shape[0]
  tile, num_tiles = _tiles(R, 'pallas_tpu')

  def kernel(out_N, in_N, block_N, x_ref, block_ref, y_ref):
    del in_N, block_N
    n = pl.program_id(1)
    is_first = (n == 0) | (out_N[n] != out_N[jnp.maximum(n - 1, 0)])

    @pl.when(is_first)
    def _():
      y_ref[...] = jnp.zeros_like(y_ref)

    y_ref[0] += _dot(x_ref[0], block_ref[0], _in_block(transposed))

  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((num_outputs, R, b), jnp.float32),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(num_tiles, N),
      in_specs=[
        pl.BlockSpec((1, tile, b), lambda m, n, o, i, w: (i[n], m, 0)),
        pl.BlockSpec((1, b, b), lambda m, n, o, i, w: (w[n], 0, 0)),
      ],
      out_specs=pl.BlockSpec((1, tile, b), lambda m, n, o, i, w: (o[n], m, 0)),
    ),
    interpret=interpret,
  )(*lists, x_DRb, blocks_Nbb)


def _tpu_by_blocks(x_DRb, dy_FRb, index_N, num_each, interpret):
  (_, R, b), N = x_DRb.shape, index_N.shape[0]
  tile, num_tiles = _tiles(R, 'pallas_tpu')

  def kernel(in_N, x_ref, dy_ref, out_ref):
    del in_N

    @pl.when(pl.program_id(1) == 0)
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)

    out_ref[0] += _dot(x_ref[0], dy_ref[0], (((0,), (0,)), ((), ())))

  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((N, b, b), jnp.float32),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(N, num_tiles),
      in_specs=[
        pl.BlockSpec((1, tile, b), lambda n, m, i: (i[n], m, 0)),
        pl.BlockSpec(
          (1, tile, b), lambda n, m, i: (jax.lax.div(n, num_each), m, 0)
        ),
      ],
      out_specs=pl.BlockSpec((1, b, b), lambda n, m, i: (n, 0, 0)),
    ),
    interpret=interpret,
  )(index_N, x_DRb, dy_FRb)


def _gpu_walk(x_DRb, blocks_Nbb, lists, num_outputs, transposed, interpret):
  _, R, b = x_DRb.shape
  tile, num_tiles = _tiles(R, 'pallas_gpu')
  out_N, in_N, block_N = lists
  # Where the products of each output begin in the lists.
  first_F = jnp.searchsorted(out_N, jnp.arange(num_outputs + 1))
  begin_F, end_F = (a.astype(jnp.int32) for a in (first_F[:-1], first_F[1:]))

  def kernel(begin_ref, end_ref, in_ref, at_ref, x_ref, block_ref, y_ref):
    o, m = pl.program_id(0), pl.program_id(1)
    rows = pl.dslice(m * tile, tile)

    def add(n, total):
      x = x_ref[in_ref[n], rows, :]
      block = block_ref[at_ref[n], :, :]
      return total + _dot(x, block.T if transposed else block, _in_block(False))

    zeros = jnp.zeros((tile, b), jnp.float32)
    y_ref[o, rows, :] = jax.lax.fori_loop(begin_ref[o], end_ref[o], add, zeros)

  return _gpu_call(
    kernel, (num_outputs, num_tiles), (num_outputs, R, b), interpret
  )(begin_F, end_F, in_N, block_N, x_DRb, blocks_Nbb)


def _gpu_by_blocks(x_DRb, dy_FRb, index_N, num_each, interpret):
  (_, R, b), N = x_DRb.shape, index_N.shape[0]
  tile, num_tiles = _tiles(R, 'pallas_gpu')

  def kernel(in_ref, x_ref, dy_ref, out_ref):
    n = pl.program_id(0)

    def add(m, total):
      rows = pl.dslice(m * tile, tile)
      x = x_ref[in_ref[n], rows, :]
      return total + _dot(
        x.T, dy_ref[jax.lax.div(n, num_each), rows, :], _in_block(False)
      )

    zeros = jnp.zeros((b, b), jnp.float32)
    out_ref[n, :, :] = jax.lax.fori_loop(0, num_tiles, add, zeros)

  return _gpu_call(kernel, (N,), (N, b, b), interpret)(index_N, x_DRb, dy_FRb)


def _gpu_call(kernel, grid, shape, interpret):
  """Of a kernel that finds its parts of whole arrays itself."""
  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    grid=grid,
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    interpret=interpret,
  )


_WALKS = {'pallas_tpu': _tpu_walk, 'pallas_gpu': _gpu_walk}
_BY_BLOCKS = {'pallas_tpu': _tpu_by_blocks, 'pallas_gpu': _gpu_by_blocks}
