"""The mesh, and one table that says which tensor dim lies along which axis.

A new parallelism edits RULES and nothing else. Layers name their dims; this
module turns the names into shardings and checks that they fit.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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

# The axes from the least traffic to the most: the last lie closest together.
_BY_TRAFFIC = ('pipeline', 'data', 'fsdp', 'expert', 'sequence', 'tensor')


def make_mesh(
  parallel: config_lib.Parallel, devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh of all six axes; most have size 1.

  Args:
    parallel: the size of each axis; -1 takes the devices that are left. The
      outer part of `slice_axis` goes across the slices.
    devices: real or topology devices; None: all there are.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices, or
      the slices are not those of the devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = parallel.sizes
  fixed = math.prod(size for size in sizes.values() if size != -1)
  free = [name for name, size in sizes.items() if size == -1]
  spelled = ', '.join(
    f'parallel.{name}={size}' for name, size in sizes.items() if size != 1
  )
  if free:
    config_lib.check(
      len(devices) % fixed == 0,
      f'{spelled}: {fixed} does not divide the {len(devices)} devices',
    )
    sizes[free[0]] = len(devices) // fixed
  config_lib.check(
    math.prod(sizes.values()) == len(devices),
    f'{spelled or "parallel"} is a mesh of {fixed} devices; there are '
    f'{len(devices)}; set one axis to -1 to take them all',
  )
  slices = _slices(devices, parallel.slices)
  across = parallel.slice_axis
  config_lib.check(
    sizes[across] % len(slices) == 0,
    f'parallel.slices={len(slices)} must divide parallel.{across}='
    f'{sizes[across]}, the axis across them',
  )
  inside = sizes | {across: sizes[across] // len(slices)}
  return Mesh(
    np.concatenate(
      [_arrange(part, inside) for part in slices], config_lib.AXES.index(across)
    ),
    config_lib.AXES,
    axis_types=(AxisType.Auto,) * len(config_lib.AXES),
  )


def _slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
  """The devices of each slice: TPUs know theirs, others follow in order."""
  if devices[0].platform != 'tpu':
    config_lib.check(
      len(devices) % count == 0,
      f'parallel.slices={count} does not divide the {len(devices)} devices',
    )
    size = len(devices) // count
    return [list(devices[i * size : (i + 1) * size]) for i in range(count)]
  slices: dict[int, list[Any]] = {}
  for device in devices:
    slices.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  config_lib.check(
    len(slices) == count,
    f'parallel.slices={count}, but the devices are in {len(slices)} slices',
  )
  return [slices[index] for index in sorted(slices)]


def _arrange(devices: Sequence[Any], sizes: dict[str, int]) -> np.ndarray:
  """The devices of one slice along AXES; on a TPU axes follow its torus."""
  grid = mesh_utils.create_device_mesh(
    [sizes[axis] for axis in _BY_TRAFFIC],
    devices,
    allow_split_physical_axes=True,
  )
  return grid.transpose([_BY_TRAFFIC.index(axis) for axis in config_lib.AXES])


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[None]:
  """Traces inside see this mesh, and the layers' names through RULES."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    yield


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
  """What starts inside from numpy arrays runs on one device of this process.

  Inside `use`, every device would do all of it.
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
  """`function` run by each device on its own part, collectives by axis name.

  Args:
    function: of local arrays; a dim without a name is whole.
    inputs: the logical names of each argument's dims, as a tuple, or a tree
      of such tuples for an argument that is a tree.
    outputs: likewise for what it returns.

  A dim that the axes of its name do not divide is left whole everywhere.
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
      in_specs=jax.tree.map(to_spec, tuple(inputs), is_leaf=_is_names),
      out_specs=jax.tree.map(to_spec, outputs, is_leaf=_is_names),
      check_vma=False,
    )(*args)

  return call


def _is_names(leaf: Any) -> bool:
  return isinstance(leaf, tuple) and all(
    name is None or isinstance(name, str) for name in leaf
  )


def _fitting_axes(
  mesh: Any, names: Sequence[Any], args: Sequence[Any]
) -> dict[str | None, tuple[str, ...] | None]:
  """The axes of each logical name, where they divide all dims called so."""
  sizes: dict[str, set[int]] = {}

  def note(names, leaf):
    for name, size in zip(names, leaf.shape, strict=True):
      if name is not None:
        sizes.setdefault(name, set()).add(size)

  jax.tree.map(note, tuple(names), tuple(args), is_leaf=_is_names)
  axes = {}
  for name, found in sizes.items():
    split = tuple(a for a in dict(RULES)[name] if mesh.shape[a] > 1)
    count = math.prod(mesh.shape[axis] for axis in split)
    if split and all(size % count == 0 for size in found):
      axes[name] = split
  return axes


def of_params(mesh: Mesh, boxed: Any) -> Any:
  """Shardings of a tree of parameters boxed with their logical names."""

  def one(path, leaf):
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    where = '/'.join(str(key.key) for key in path)
    return NamedSharding(mesh, spec(mesh, leaf.names, leaf.value.shape, where))

  return jax.tree_util.tree_map_with_path(
    one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
  )


def of_batch(mesh: Mesh, num_dims: int = 2) -> NamedSharding:
  """Sharding of every [B, T] tensor of a batch, and of media of more dims."""
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
    mesh: any; where no axis splits the batch between processes, each of them
      holds all of it.
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
    where = of_batch(mesh, leaf.ndim)
    return jax.make_array_from_callback(shape, where, part)

  return jax.tree.map(put, batch)


def describe(tree: Any) -> str:
  """Bytes in all, on one device, and the same on all.

  On several devices a table follows: of each part of `tree`, what lies along
  which axes of the mesh, largest first, with the largest tensor by name.
  """
  groups: dict[tuple[str, str], _Group] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    part, _, rest = name.partition('/')
    where = _axes(leaf.sharding)
    group = groups.setdefault((part, where), _Group())
    group.add(rest, leaf)
  total = sum(group.total for group in groups.values())
  local = sum(group.local for group in groups.values())
  same = sum(g.total for (_, where), g in groups.items() if not where)
  lines = [
    f'{total / 2**20:,.1f} MiB in all, {local / 2**20:,.1f} MiB on each '
    f'device, {same / 2**20:,.1f} MiB the same on all'
  ]
  if len(jax.tree.leaves(tree)[0].sharding.device_set) > 1:
    order = sorted(groups.items(), key=lambda item: -item[1].total)
    lines += [
      f'  {part:10} {where or "the same on all":28} {group.count:4} tensors '
      f'{group.total / 2**20:12,.1f} MiB {group.local / 2**20:10,.1f} a device'
      f'  {group.largest}'
      for (part, where), group in order
    ]
  return '\n'.join(lines)


@dataclasses.dataclass
class _Group:
  """Tensors that lie alike; bytes in all and on one device."""

  count: int = 0
  total: int = 0
  local: int = 0
  most: int = -1
  largest: str = ''

  def add(self, name: str, leaf: Any):
    size = leaf.size * leaf.dtype.itemsize
    shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
    self.count += 1
    self.total += size
    self.local += shard * leaf.dtype.itemsize
    if size > self.most:
      self.most, self.largest = size, name


def _axes(where: Any) -> str:
  """The mesh axes that split something, such as `fsdp x tensor`."""
  sizes = where.mesh.shape
  names = [
    axis
    for entry in where.spec
    for axis in ((entry,) if isinstance(entry, str) else entry or ())
    if sizes[axis] > 1
  ]
  return ' x '.join(sorted(names, key=config_lib.AXES.index))
