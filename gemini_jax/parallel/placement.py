"""A table of where the tensors of a tree lie on the devices."""

import dataclasses
import math
from typing import Any

import jax

from gemini_jax import config as config_lib


def describe(tree: Any) -> str:
  """Bytes in total, on each device, and replicated, as text.

  On several devices a table follows: for each part of `tree` and each choice of
  mesh axes, the tensors split along them, largest first, with the name of the
  largest tensor.
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
  """Tensors split along the same axes; bytes in total and on one device."""

  count: int = 0
  total: int = 0
  local: int = 0
  largest_size: int = -1
  largest: str = ''

  def add(self, name: str, leaf: Any):
    size = leaf.size * leaf.dtype.itemsize
    shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
    self.count += 1
    self.total += size
    self.local += shard * leaf.dtype.itemsize
    if size > self.largest_size:
      self.largest_size, self.largest = size, name


def _axes(where: Any) -> str:
  """The mesh axes that a sharding splits, such as `fsdp x tensor`."""
  sizes = where.mesh.shape
  names = [
    axis
    for entry in where.spec
    for axis in ((entry,) if isinstance(entry, str) else entry or ())
    if sizes[axis] > 1
  ]
  return ' x '.join(sorted(names, key=config_lib.AXES.index))
