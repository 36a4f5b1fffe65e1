"""The parameters of a compressed run: which are pruned and how all are stored.

`config.compress` says it. A checkpoint holds what `stored` makes of the
parameters, without zeros where that is smaller; `opened` is its inverse.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax.config import compress as compress_config
from gemini_jax.layers import matmul
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.weights import block_ell, by_output, grids, nf4, packed


@dataclasses.dataclass(frozen=True)
class Target:
  """A parameter that is compressed.

  Attributes:
    weights: how it is stored, as `compress.weights`.
    is_table: whether it is a table of vectors, or a head, and so not pruned.
    dims: that hold layers and experts, inputs and outputs.
    rows_first: whether its outputs come before its inputs.
    block: of a `BlockSparse`; 0: it is none.
  """

  weights: str
  is_table: bool
  dims: parameter_groups.MatrixDims
  rows_first: bool
  block: int = 0

  def matrix(self, array: jax.Array) -> jax.Array:
    """float32[*stack, F, D]."""
    return by_output.to_matrix(
      array.astype(jnp.float32),
      len(self.dims.stack),
      len(self.dims.inputs),
      self.rows_first,
    )

  def sizes(
    self, shape: tuple[int, ...]
  ) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dims of inputs and of outputs of an array of this shape."""
    of = lambda dims: tuple(shape[dim] for dim in dims)
    return of(self.dims.inputs), of(self.dims.outputs)


def is_weight(leaf: Any) -> bool:
  """Whether a leaf of parameters is no plain array."""
  return isinstance(leaf, matmul.Weight)


def targets(compress: config_lib.Compress, params: Any) -> dict[str, Target]:
  """What is compressed, by path.

  Raises:
    ConfigError: `compress.pattern` matches no matrix, or a matrix cannot be
      stored or pruned so.
  """
  flat = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)[0]
  leaves = {name_of(path): leaf for path, leaf in flat}
  kinds = ('matrix', 'expert')
  matrices = {
    name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
    for name, leaf in leaves.items()
    # What routes rows to experts stays exact.
    if parameter_groups.kind(name) in kinds and '/router/' not in name
  }
  chosen = parameter_groups.Selection(
    'compress.pattern',
    compress.pattern or parameter_groups.LAYER_MATRICES,
    empty='all matrices of layers',
  )
  parameter_groups.check([chosen], matrices, log=False)
  is_chosen = parameter_groups.matching(chosen.pattern, matrices)
  found = {
    name: _target(name, leaf.shape, compress.weights, False, compress.block)
    for name, leaf in matrices.items()
    if is_chosen[name]
  }
  tables = {name: leaf for name, leaf in leaves.items() if name not in found}
  in_table = parameter_groups.matching(
    parameter_groups.TABLES, dict.fromkeys(tables, 0)
  )
  for name, leaf in tables.items():
    if in_table[name] and compress.weights != 'float':
      found[name] = _target(name, leaf.shape, compress.tables, True)
  for name, target in found.items():
    _check(compress, name, target, leaves[name].shape)
  return found


def _target(
  name: str,
  shape: tuple[int, ...],
  weights: str,
  is_table: bool,
  block: int = 0,
) -> Target:
  rows_first = parameter_groups.kind(name) == 'embedding'
  dims = parameter_groups.matrix_dims(name, len(shape))
  if rows_first:
    dims = parameter_groups.MatrixDims((), (1,), (0,))
  if weights != 'float':
    block = 0
  return Target(weights, is_table, dims, rows_first, block)


def _check(
  compress: config_lib.Compress,
  name: str,
  target: Target,
  shape: tuple[int, ...],
):
  num_in, num_out = map(math.prod, target.sizes(shape))
  for part, size in (('inputs', num_in), ('outputs', num_out)):
    config_lib.check(
      not compress.block or target.is_table or size % compress.block == 0,
      f'compress.block={compress.block} does not divide the {size} {part} of '
      f'{name}; choose another, or other matrices by compress.pattern',
    )
  m = compress.kept_of[1]
  config_lib.check(
    not m or target.is_table or num_in % m == 0,
    f'compress.n_m={compress.n_m!r}: {m} does not divide the {num_in} inputs '
    f'of {name}; choose others by compress.pattern',
  )
  config_lib.check(
    target.weights != 'nf4' or shape[-1] % 2 == 0,
    f"compress.weights='nf4' needs an even last dim, and {name} is "
    f'{list(shape)}; choose others by compress.pattern',
  )


def name_of(path: Any) -> str:
  """The path of a parameter."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def grid(compress: config_lib.Compress, weights: str) -> grids.Grid | None:
  """Of the matrices that are stored so; None of float and nf4."""
  if weights in ('float', 'nf4'):
    return None
  return grids.Grid(weights, compress.group, compress.int8_inputs)


def rounded(compress: config_lib.Compress, target: Target, array: Any) -> Any:
  """An array stored as its target says, by the nearest codes."""
  if target.block:
    return block_ell.BlockSparse.from_array(
      array,
      target.block,
      compress.alpha,
      len(target.dims.stack),
      len(target.dims.inputs),
    )
  if target.weights == 'float':
    return array
  if target.weights == 'nf4':
    return nf4.quantised(array)
  matrix = target.matrix(array)
  into = grid(compress, target.weights)
  assert into is not None
  return into.leaf(
    matrix,
    into.scale(matrix),
    *target.sizes(array.shape),
    target.rows_first,
  )


def map_targets(function: Any, found: dict[str, Target], params: Any) -> Any:
  """`function(target, leaf)` of what is compressed; the rest as it is."""

  def one(path, leaf):
    target = found.get(name_of(path))
    return leaf if target is None else function(target, leaf)

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_weight)


def stored(compress: config_lib.Compress, params: Any) -> Any:
  """Compressed parameters as a checkpoint holds them."""
  found = targets(compress, params)
  pruned = [name for name, target in sorted(found.items()) if _packs(target)]
  known = dict(zip(pruned, compress.num_kept, strict=False))

  def one(path, leaf):
    name = name_of(path)
    if name not in pruned:
      return leaf
    target = found[name]
    size = math.prod(math.prod(dims) for dims in target.sizes(leaf.shape))
    bits = compress_config.BITS.get(
      target.weights, 8 * jnp.dtype(leaf.dtype).itemsize
    )
    # A bit for each number tells where the zeros are.
    if name in known:
      kept = known[name]
      is_smaller = kept * bits + size < size * bits
    else:
      # As an earlier version did it, by the share that was asked for.
      kept = _num_kept(compress, target, leaf.shape)
      is_smaller = compress.share * bits > 1
    if not is_smaller:
      return leaf
    return _pack(leaf, len(target.dims.stack), kept)

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_weight)


def num_kept(compress: config_lib.Compress, params: Any) -> tuple[int, ...]:
  """What `compress.num_kept` is for compressed parameters."""
  found = targets(compress, params)
  flat = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)[0]
  leaves = {name_of(path): leaf for path, leaf in flat}
  return tuple(
    int(_most(leaves[name], len(target.dims.stack)))
    for name, target in sorted(found.items())
    if _packs(target)
  )


def _packs(target: Target) -> bool:
  """Whether its zeros can be left out of a checkpoint."""
  return not (target.block or target.is_table or target.weights == 'nf4')


_pack = jax.jit(packed.pack, static_argnums=(1, 2))
_most = jax.jit(packed.num_kept, static_argnums=1)


def _num_kept(
  compress: config_lib.Compress, target: Target, shape: tuple[int, ...]
) -> int:
  """How many weights of a matrix are kept at most, by the config alone."""
  num_in, num_out = map(math.prod, target.sizes(shape))
  n, m = compress.kept_of
  if compress.block:
    num_blocks = num_in // compress.block
    kept = block_ell.num_kept(compress.alpha, num_blocks)
    return compress.block * kept * num_out
  kept = num_in * n // m if m else num_in - int(compress.alpha * num_in)
  return kept * num_out


def abstract_stored(
  config: config_lib.Config, model: gemini.Gemini, mesh: Mesh
) -> Any:
  """Shapes, types and shardings of what a checkpoint holds.

  Raises:
    ConfigError: see `targets`.
  """
  compress = config.compress

  def put(params):
    round_one = functools.partial(rounded, compress)
    found = targets(compress, params)
    return stored(compress, map_targets(round_one, found, params))

  return build.abstract_params(model, mesh, put)


def opened(params: Any, plain: Any) -> Any:
  """Parameters to compute with, of what a checkpoint holds.

  Args:
    params: as of `abstract_stored`.
    plain: shapes, types and shardings of plain parameters.
  """

  def one(leaf, like):
    if not isinstance(leaf, packed.Packed):
      return leaf
    where = like.sharding if leaf.rest is None else None
    return jax.jit(packed.unpack, out_shardings=where)(leaf)

  return jax.tree.map(one, params, plain, is_leaf=is_weight)


def to_plain(params: Any, plain: Any) -> Any:
  """Arrays of the same numbers, in the types of plain parameters."""
  return jax.tree.map(
    lambda leaf, like: matmul.to_array(leaf, like.dtype),
    params,
    plain,
    is_leaf=is_weight,
  )
