"""What a run that is tuned adds to the parameters of another run.

Its parameters are those of the other run, its base, with leaf types in the
place of some matrices (`config.tune`). They have the base's parameters inside;
what is not in a leaf type is the base's too, or trained itself (a head).
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax.layers import matmul
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.weights import bottleneck, lora, nf4

# What the methods are about where `tune.pattern` is empty.
_LAYERS = (
  r'/layers/\w*attention/.*@matrix$|'
  r'/layers/feedforward/(?!router/).*@(matrix|expert)$'
)
_OUTPUTS = (
  r'/layers/\w*attention/output/kernel$|'
  r'/layers/feedforward/(shared/)?down/kernel$'
)
# AdaLoRA's factors at first (Zhang et al. 2023).
_FACTOR_SCALE = 0.02


def abstract_params(
  config: config_lib.Config, model: gemini.Gemini, mesh: Mesh
) -> Any:
  """Shapes, types and shardings of the parameters of a run, tuned or not.

  Raises:
    ConfigError: an axis of the mesh does not divide a parameter, or
      `tune.pattern` matches no matrix that the method can be used on.
  """
  put = functools.partial(wrapped, config.tune)
  return build.abstract_params(model, mesh, put)


def wrapped(
  tune: config_lib.Tune, params: Any, key: jax.Array | None = None
) -> Any:
  """Parameters with what is added to them, by which they compute the same.

  Args:
    tune: the method.
    params: of the base.
    key: of what is drawn; None: any.

  Raises:
    ConfigError: `tune.pattern` matches no matrix that the method can be used
      on.
  """
  if tune.method in ('full', 'head'):
    return params
  make = _METHODS[tune.method]
  key = jax.random.key(0) if key is None else key
  targets = _targets(tune, params)

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name not in targets:
      return leaf
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    dims = parameter_groups.matrix_dims(name, leaf.ndim)
    return _with_base(tune, make(tune, leaf, dims, own_key), leaf)

  return jax.tree_util.tree_map_with_path(one, params)


def _targets(tune: config_lib.Tune, params: Any) -> set[str]:
  """The paths of the matrices that are tuned."""
  kinds, default = {'matrix', 'expert', 'embedding'}, _LAYERS
  if tune.method == 'adapter':
    kinds, default = {'matrix'}, _OUTPUTS
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  matrices = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in flat
  }
  matrices = {
    name: leaf
    for name, leaf in matrices.items()
    if parameter_groups.kind(name) in kinds
  }
  pattern = tune.pattern or default
  selection = parameter_groups.Selection(
    'tune.pattern', pattern, empty='a usual one'
  )
  parameter_groups.check([selection], matrices, log=False)
  chosen = parameter_groups.matching(pattern, matrices)
  names = {name for name, is_chosen in chosen.items() if is_chosen}
  for name in sorted(names) if tune.method == 'adapter' else ():
    dims = parameter_groups.matrix_dims(name, matrices[name].ndim)
    config_lib.check(
      len(dims.outputs) == 1,
      f'tune.pattern={pattern!r} matches {name}, whose output has several '
      'dims; an adapter can stand behind an output of one',
    )
  return names


def _low_rank(
  tune: config_lib.Tune,
  base: jax.Array,
  dims: parameter_groups.MatrixDims,
  key: jax.Array,
) -> lora.LowRank:
  stack, inputs, outputs = _sizes(base, dims)
  draw = jax.random.normal(key, (*stack, *inputs, tune.rank))
  b = jnp.zeros((*stack, tune.rank, *outputs))
  a = draw * math.prod(inputs) ** -0.5
  return lora.LowRank(base, a, b, scale=tune.scale, dropout=tune.dropout)


def _budgeted(
  tune: config_lib.Tune,
  base: jax.Array,
  dims: parameter_groups.MatrixDims,
  key: jax.Array,
) -> lora.LowRank:
  stack, inputs, outputs = _sizes(base, dims)
  rank = tune.adalora.first(tune.rank)
  a_key, b_key = jax.random.split(key)
  a = jax.random.normal(a_key, (*stack, *inputs, rank)) * _FACTOR_SCALE
  b = jax.random.normal(b_key, (*stack, rank, *outputs)) * _FACTOR_SCALE
  gains = jnp.zeros((*stack, rank))
  return lora.LowRank(base, a, b, gains, tune.scale, tune.dropout)


def _adapter(
  tune: config_lib.Tune,
  base: jax.Array,
  dims: parameter_groups.MatrixDims,
  key: jax.Array,
) -> bottleneck.Bottleneck:
  stack, _, outputs = _sizes(base, dims)
  (width,) = outputs
  down = jax.random.normal(key, (*stack, width, tune.width)) * width**-0.5
  return bottleneck.Bottleneck(
    base, down, jnp.zeros((*stack, tune.width, width))
  )


_METHODS: dict[str, Callable[..., Any]] = {
  'lora': _low_rank,
  'adalora': _budgeted,
  'adapter': _adapter,
}


def _sizes(leaf: Any, dims: parameter_groups.MatrixDims) -> list[list[int]]:
  return [
    [leaf.shape[dim] for dim in part]
    for part in (dims.stack, dims.inputs, dims.outputs)
  ]


def drawn(config: config_lib.Config, abstract: Any, base: Any) -> Any:
  """What a run begins to train beside its base, drawn where it belongs.

  Args:
    config: of the run.
    abstract: of `abstract_params`.
    base: the parameters of the base; a head begins as theirs.

  Returns:
    As of `parameter_groups.own`; classes begin as in `base`.
  """
  own = functools.partial(parameter_groups.own, config.tune)
  if config.tune.method in ('full', 'head'):
    return own(base)
  where = jax.tree.map(lambda leaf: leaf.sharding, own(abstract))
  shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(base)]

  def draw(key):
    # Not the base itself, which would be an argument, and copied.
    zeros = [jnp.zeros(*shape) for shape in shapes]
    params = jax.tree.unflatten(jax.tree.structure(base), zeros)
    return own(wrapped(config.tune, params, key))

  key = jax.random.key(config.train.seed)
  made = jax.jit(draw, out_shardings=where)(key)
  name = parameter_groups.CLASSES
  return made | {name: base[name]} if name in base else made


def _with_base(tune: config_lib.Tune, leaf: Any, base: jax.Array) -> Any:
  """A leaf beside its base, which is stored as `tune.base` says."""
  if tune.base == 'nf4':
    base = _quantised(base)
  return dataclasses.replace(leaf, base=base)


# One after the other, so that only one matrix is there in both forms.
_quantised = jax.jit(nf4.quantised)


def attached(tune: config_lib.Tune, own: Any, base: Any, abstract: Any) -> Any:
  """All parameters, of what a run has itself and those of its base.

  No array is copied.

  Args:
    tune: the method.
    own: as of `parameter_groups.own`.
    base: plain arrays.
    abstract: of `abstract_params`.
  """

  def one(leaf, of_base):
    if parameter_groups.is_masked(leaf):
      return of_base
    if isinstance(leaf, matmul.Weight):
      return _with_base(tune, leaf, of_base)
    return leaf

  params = jax.tree.map(
    one,
    own,
    base,
    is_leaf=lambda leaf: is_weight(leaf) or parameter_groups.is_masked(leaf),
  )
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.device_put(params, where)


def with_dropout(params: Any, key: jax.Array) -> Any:
  """Parameters by which inputs of updates are left out (`tune.dropout`).

  Args:
    params: of a run; without updates that have dropout, they are returned.
    key: of what is left out.
  """

  def one(path, leaf):
    if not isinstance(leaf, lora.LowRank) or not leaf.dropout:
      return leaf
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    stack = leaf.shape[: leaf.num_stacked]
    seed = jax.random.bits(own_key, stack, jnp.uint32)
    return dataclasses.replace(leaf, seed=seed)

  return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_weight)


def merged(params: Any) -> Any:
  """Plain arrays that compute the same; sums are made, and are, in float32.

  Raises:
    ConfigError: adapters cannot be merged.
  """
  return jax.tree.map(
    lambda leaf: (
      matmul.to_array(leaf, jnp.float32) if is_weight(leaf) else leaf
    ),
    params,
    is_leaf=is_weight,
  )


def without(params: Any) -> Any:
  """Parameters without what leaf types add: the inverse of merging them.

  They are the base's, and no copies, but for a head that was trained.
  """
  return jax.tree.map(
    lambda leaf: leaf.base if is_weight(leaf) else leaf,
    params,
    is_leaf=is_weight,
  )


def is_weight(leaf: Any) -> bool:
  """Whether a leaf of parameters is no plain array."""
  return isinstance(leaf, matmul.Weight)
