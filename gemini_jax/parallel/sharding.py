"""Shardings by one table from the names of tensor dims to mesh axes.

A new parallelism changes RULES and nothing else. Layers name their dims; this
module turns the names into shardings and checks that they fit.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import config as config_lib

# Logical dim -> mesh axes. Parameters are split over fsdp along their width
# and over tensor along heads, hidden units or vocabulary; a batch is split
# over data, fsdp and expert alike, and its length over sequence.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
  ('batch', ('data', 'fsdp', 'expert')),
  ('length', ('sequence',)),
  ('embed', ('fsdp',)),
  ('heads', ('tensor',)),
  ('kv_heads', ('tensor',)),
  ('mlp', ('tensor',)),
  ('vocab', ('tensor',)),
  ('expert', ('expert',)),
  ('layers', ('pipeline',)),
)


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
  """Programs traced inside use this mesh, and RULES for the layers' names."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
  """Computations on numpy arrays inside run on one device of this process.

  Inside `use`, every device would do the whole computation.
  """
  with jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ('one',))):
    yield


def spec(
  mesh: Mesh, names: Sequence[str | None], shape: Sequence[int], path: str
) -> PartitionSpec:
  """The partition of one tensor whose dims are called `names`.

  Raises:
    ConfigError: an axis would be used twice, or does not divide its dim.
  """
  rules = dict(RULES)
  used: dict[str, str] = {}
  entries = []
  for name, size in zip(names, shape, strict=True):
    axes = tuple(
      axis for axis in rules.get(name or '', ()) if mesh.shape[axis] > 1
    )
    for axis in axes:
      config_lib.check(
        axis not in used,
        f'parallel.{axis}={mesh.shape[axis]} would split both '
        f'{used.get(axis)!r} and {name!r} of {path}',
      )
      used[axis] = name or ''
    count = math.prod(mesh.shape[axis] for axis in axes)
    if size % count:
      fitting = [str(n) for n in range(1, count + 1) if size % n == 0]
      raise config_lib.ConfigError(
        f'{" * ".join(f"parallel.{axis}" for axis in axes)}={count} does not '
        f'divide {name}={size} ({path}); use {", ".join(fitting)}'
      )
    entries.append(axes[0] if len(axes) == 1 else axes or None)
  return PartitionSpec(*entries)


def per_device(
  function: Callable[..., Any], inputs: Sequence[Any], outputs: Any
) -> Callable[..., Any]:
  """`function`, run by each device on its part; collectives by axis name.

  Args:
    function: takes local arrays; a dim without a name is whole.
    inputs: the logical names of each argument's dims, as a tuple, or a tree
      of such tuples for an argument that is a tree.
    outputs: likewise for what it returns.

  If the axes of a name do not divide all dims of that name, these are whole on
  every device.
  Without a mesh, or with one device, this is `function` itself.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function

  def call(*args):
    axes = _fitting_axes(mesh, inputs, args)
    to_spec = lambda names: PartitionSpec(*(axes.get(name) for name in names))
    return jax.shard_map(
      function,
      in_specs=jax.tree.map(to_spec, tuple(inputs), is_leaf=is_names),
      out_specs=jax.tree.map(to_spec, outputs, is_leaf=is_names),
      check_vma=False,
    )(*args)

  return call


def constrain(array: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """`array` laid out by RULES, the dims called `names` first.

  A dim that the axes of its name do not divide is left whole. Without a mesh,
  or with one device, this is `array` itself.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return array
  rules, entries = dict(RULES), []
  for name, size in zip(names, array.shape, strict=False):
    axes = tuple(
      axis for axis in rules.get(name or '', ()) if mesh.shape[axis] > 1
    )
    count = math.prod(mesh.shape[axis] for axis in axes)
    entries.append(axes if axes and size % count == 0 else None)
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*entries))


def is_names(leaf: Any) -> bool:
  """Whether it is the names of the dims of one array."""
  return isinstance(leaf, tuple) and all(
    name is None or isinstance(name, str) for name in leaf
  )


def _fitting_axes(
  mesh: Any, names: Sequence[Any], args: Sequence[Any]
) -> dict[str | None, tuple[str, ...] | None]:
  """The axes of each logical name, if they divide all dims of that name."""
  sizes: dict[str, set[int]] = {}

  def record(names, leaf):
    for name, size in zip(names, leaf.shape, strict=True):
      if name is not None:
        sizes.setdefault(name, set()).add(size)

  jax.tree.map(record, tuple(names), tuple(args), is_leaf=is_names)
  axes = {}
  for name, dims in sizes.items():
    split = tuple(a for a in dict(RULES)[name] if mesh.shape[a] > 1)
    count = math.prod(mesh.shape[axis] for axis in split)
    if split and all(size % count == 0 for size in dims):
      axes[name] = split
  return axes


def param_shardings(mesh: Mesh, boxed: Any) -> Any:
  """Shardings of a tree of parameters boxed with their logical names."""

  def one(path, leaf):
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return NamedSharding(mesh, spec(mesh, leaf.names, leaf.value.shape, name))

  return jax.tree_util.tree_map_with_path(
    one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
  )


def batch_sharding(mesh: Mesh, num_dims: int = 2) -> NamedSharding:
  """Sharding of the [B, T] tensors of a batch, and of media of more dims."""
  rules = dict(RULES)
  names = ('batch', 'length') if num_dims == 2 else ('batch',)
  return NamedSharding(mesh, PartitionSpec(*(rules[name] for name in names)))


def check_batch(mesh: Mesh, batch_size: int, field: str):
  """ConfigError unless the axes that split a batch divide its size."""
  axes = [axis for axis in dict(RULES)['batch'] if mesh.shape[axis] > 1]
  count = math.prod(mesh.shape[axis] for axis in axes)
  config_lib.check(
    batch_size % count == 0,
    f'{field}={batch_size} must be a multiple of '
    f'{" * ".join(f"parallel.{axis}" for axis in axes)} = {count}',
  )


def local_rows(
  mesh: Mesh, batch_size: int, process: int | None = None
) -> np.ndarray:
  """The rows of a global batch that the devices of one process hold.

  Args:
    mesh: if no axis splits the batch between processes, each holds all of it.
    batch_size: rows of the global batch.
    process: index of the process; None: this one.
  """
  process = jax.process_index() if process is None else process
  axes = [config_lib.AXES.index(axis) for axis in dict(RULES)['batch']]
  count = math.prod(mesh.devices.shape[axis] for axis in axes)
  parts = np.moveaxis(mesh.devices, axes, range(len(axes))).reshape(count, -1)
  holds = [
    any(device.process_index == process for device in part) for part in parts
  ]
  return np.flatnonzero(np.repeat(holds, batch_size // count))


def put_batch(mesh: Mesh, batch: Any, rows: np.ndarray, batch_size: int) -> Any:
  """Global [B, ...] arrays from the `rows` of them that this process has."""

  def put(leaf):
    def part(index):
      first, last, _ = index[0].indices(batch_size)
      begin = np.searchsorted(rows, first)
      return leaf[(slice(begin, begin + last - first), *index[1:])]

    shape = (batch_size, *leaf.shape[1:])
    sharding = batch_sharding(mesh, leaf.ndim)
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(put, batch)
