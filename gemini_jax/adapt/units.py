"""What of a matrix is kept or pruned as one, and how much of it is kept.

Single weights, of which some share of a matrix is kept; N of every M inputs; or
blocks, an equal number for every block of outputs. Scores of units compete
along some dims, and for each index of the others there is a choice of its own:
each layer of a stack keeps as many as the others.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups

_KINDS = ('matrix', 'expert', 'convolution', 'embedding', 'positions')


@dataclasses.dataclass(frozen=True)
class Units:
  """The units of a parameter; by default single weights.

  Attributes:
    path: of the parameter.
    matrix_shape: of its array.
    group: M of N:M; 0: off.
    block: inputs and outputs of a block; 0: off.
    kept: units that are kept in a choice, when no more are to go.
  """

  path: str
  matrix_shape: tuple[int, ...]
  group: int = 0
  block: int = 0
  kept: int = 0

  @property
  def matrix_dims(self) -> parameter_groups.MatrixDims:
    """Of a table the rows are outputs, as in a head that is tied to it."""
    num_dims = len(self.matrix_shape)
    if self._is_table:
      stack = tuple(range(num_dims - 2))
      return parameter_groups.MatrixDims(
        stack, (num_dims - 1,), (num_dims - 2,)
      )
    return parameter_groups.matrix_dims(self.path, num_dims)

  @property
  def _is_table(self) -> bool:
    return parameter_groups.kind(self.path) in ('embedding', 'positions')

  @property
  def fans(self) -> tuple[int, int]:
    """Numbers of inputs and of outputs."""
    dims = self.matrix_dims
    fan_in, fan_out = (
      math.prod(self.matrix_shape[dim] for dim in part)
      for part in (dims.inputs, dims.outputs)
    )
    return fan_in, fan_out

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array of units."""
    return jax.eval_shape(
      self.scores, jax.ShapeDtypeStruct(self.matrix_shape, jnp.float32)
    ).shape

  @property
  def dims(self) -> tuple[int, ...]:
    """Those of `shape` along which units compete."""
    dims = self.matrix_dims
    if self.group:
      return (dims.inputs[-1] + 1,)
    if self.block:
      return (len(dims.stack),)
    return tuple(sorted(dims.inputs + dims.outputs))

  @property
  def matrix_unit_dims(self) -> tuple[int, ...]:
    """Those of `shape` over which the units of one matrix lie."""
    return tuple(range(len(self.matrix_dims.stack), len(self.shape)))

  @property
  def competing(self) -> int:
    """How many units compete in one choice."""
    return math.prod(self.shape[dim] for dim in self.dims)

  def magnitude(self, array: jax.Array) -> jax.Array:
    """Norm of the numbers of each unit, or its square; float32."""
    array = array.astype(jnp.float32)
    return self.scores(jnp.square(array) if self.block else jnp.abs(array))

  def scores(self, array: jax.Array) -> jax.Array:
    """Sum of the numbers of each unit."""
    if self.group:
      dim = self.matrix_dims.inputs[-1]
      size = array.shape[dim] // self.group
      parts = (*array.shape[:dim], size, self.group, *array.shape[dim + 1 :])
      return array.reshape(parts)
    if self.block:
      stack = [array.shape[dim] for dim in self.matrix_dims.stack]
      if self._is_table:
        array = array.swapaxes(-1, -2)
      (fan_in, fan_out), b = self.fans, self.block
      blocks = array.reshape(*stack, fan_in // b, b, fan_out // b, b)
      return jnp.sum(blocks, axis=(-3, -1))
    return array

  def expand(self, units: jax.Array) -> jax.Array:
    """The array of the matrix's shape in which each weight has its unit's."""
    if self.block:
      units = jnp.repeat(units, self.block, axis=-2)
      units = jnp.repeat(units, self.block, axis=-1)
      if self._is_table:
        units = units.swapaxes(-1, -2)
    return units.reshape(self.matrix_shape)

  def contract(self, mask: jax.Array) -> jax.Array:
    """The inverse of `expand`, of bools."""
    if self.block:
      return self.scores(mask.astype(jnp.float32)) > 0
    return self.scores(mask)


def chosen(config: config_lib.Config, params: Any) -> Any:
  """A tree of the Units of each parameter that is pruned.

  A MaskedNode stands in the place of what is not: what the pattern does not
  match, or is frozen.
  """
  sparsity = config.sparsity
  n, m = sparsity.kept_of_group
  frozen = parameter_groups.frozen(config.optimizer, config.tune, params)

  def one(path, is_matched, is_frozen, leaf):
    if not is_matched or is_frozen:
      return optax.MaskedNode()
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return Units(name, tuple(leaf.shape), m, sparsity.block, n)

  matching = parameter_groups.matching(sparsity.pattern, params)
  tree = jax.tree_util.tree_map_with_path(one, matching, frozen, params)
  items = jax.tree.leaves(tree)
  # One that matches nothing is told with the nearest names, by the caller of
  # `selections`.
  config_lib.check(
    bool(items) or not any(jax.tree.leaves(matching)),
    f'sparsity.pattern={sparsity.pattern!r} matches only what optimizer.frozen='
    f'{config.optimizer.frozen!r} keeps as it is; choose others',
  )
  _check(config, items)
  if n:
    return tree
  shares = iter(densities(sparsity, items))

  def with_kept(item):
    kept = round(next(shares) * item.competing)
    return dataclasses.replace(item, kept=min(max(kept, 1), item.competing))

  return jax.tree.map(with_kept, tree)


def _check(config: config_lib.Config, items: list[Units]):
  """Refuses what cannot be pruned so."""
  sparsity = config.sparsity
  pattern = f'sparsity.pattern={sparsity.pattern!r}'
  _, m = sparsity.kept_of_group
  for item in items:
    config_lib.check(
      parameter_groups.kind(item.path) in _KINDS,
      f'{pattern} matches {item.path}, which is no matrix; add '
      '@(matrix|expert)$',
    )
    inputs = item.matrix_shape[item.matrix_dims.inputs[-1]]
    config_lib.check(
      not m or inputs % m == 0,
      f'sparsity.n_m={sparsity.n_m!r}: {m} does not divide the {inputs} '
      f'inputs of {item.path}; choose another or leave it out by '
      'sparsity.pattern',
    )
    for name, size in zip(('inputs', 'outputs'), item.fans, strict=True):
      config_lib.check(
        not item.block or size % item.block == 0,
        f'sparsity.block={item.block} does not divide the {size} {name} of '
        f'{item.path}; choose another or leave it out by sparsity.pattern',
      )


def densities(sparsity: config_lib.Sparsity, items: list[Units]) -> list[float]:
  """The share of each matrix that is kept.

  All keep the same, or by ERK a multiple of (inputs + outputs) / (inputs *
  outputs), at most 1, such that the mean is the same. `global` asks for none.
  """
  share = 1 - sparsity.sparsity
  if sparsity.distribution != 'erk':
    return [share] * len(items)
  sizes = [math.prod(item.matrix_shape) for item in items]
  raw = [_erk(item) for item in items]
  whole: set[int] = set()
  while True:
    rest = [i for i in range(len(items)) if i not in whole]
    if not rest:
      return [1.0] * len(items)
    budget = share * sum(sizes) - sum(sizes[i] for i in whole)
    factor = budget / sum(raw[i] * sizes[i] for i in rest)
    beyond = {i for i in rest if factor * raw[i] > 1}
    if not beyond:
      return [1.0 if i in whole else factor * raw[i] for i in range(len(items))]
    whole |= beyond


def _erk(item: Units) -> float:
  if parameter_groups.kind(item.path) == 'convolution':
    stacked = len(item.matrix_dims.stack)
    sizes = item.matrix_shape[stacked:]
  else:
    sizes = item.fans
  return sum(sizes) / math.prod(sizes)
