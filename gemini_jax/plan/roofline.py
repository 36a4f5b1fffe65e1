"""Collectives and memory traffic of a program, and the least time they take.

Bandwidths as in jax-ml.github.io/scaling-book (Sharding, section 'How long').
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemini_jax.parallel import chip
from gemini_jax.plan import hlo, topology


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same axes, in one step.

  Attributes:
    kind: as XLA calls it.
    axes: of the mesh, along which the devices differ.
    count: executions.
    bytes: of the whole arrays that groups of devices share.
    seconds: at the least; None without a known network.
    largest: where in the model most of the bytes come from.
  """

  kind: str
  axes: tuple[str, ...]
  count: float
  bytes: float
  seconds: float | None
  largest: str


def collectives(
  program: hlo.Program, mesh: Mesh, known: chip.Chip | None
) -> list[Collective]:
  """The collectives of a partitioned program, the slowest first."""
  network = Network(mesh, known)
  found: dict[Any, list[tuple[float, float, float | None, str]]] = {}
  for operation, computation, times in program.walk():
    kind = re.sub(r'-start$', '', operation.opcode)
    if kind not in hlo.COLLECTIVES:
      continue
    group = groups(operation.attributes, mesh.devices.size)
    if group.shape[1] == 1:
      continue
    size = _bytes(operation, kind, group.shape[1])
    if kind == 'all-reduce' and _is_scattered(operation, computation):
      kind = 'reduce-scatter'
    # The group that reaches farthest: all of them run at the same time.
    axes = network.axes(group)
    seconds = network.seconds(kind, group, size)
    found.setdefault((kind, axes), []).append(
      (times, size, seconds, operation.source)
    )
  result = []
  for (kind, axes), calls in found.items():
    seconds = None
    if known is not None:
      seconds = sum(times * (one or 0) for times, _, one, _ in calls)
    largest = max(calls, key=lambda call: call[0] * call[1])
    result.append(
      Collective(
        kind,
        axes,
        sum(call[0] for call in calls),
        sum(call[0] * call[1] for call in calls),
        seconds,
        largest[3],
      )
    )
  return sorted(result, key=lambda c: (-(c.seconds or 0), -c.bytes))


def _bytes(operation: hlo.Operation, kind: str, size: int) -> float:
  """Bytes of the whole array of a group of `size` devices."""
  shapes = operation.shapes
  if operation.opcode in ('all-gather-start', 'reduce-scatter-start'):
    # (operands, results)
    shapes = shapes[len(shapes) // 2 :]
  if operation.opcode == 'collective-permute-start':
    shapes = shapes[:1]
  total = sum(shape.bytes for shape in shapes)
  parts = kind in ('reduce-scatter', 'all-to-all', 'ragged-all-to-all')
  return total * size if parts else total


def _is_scattered(
  operation: hlo.Operation, computation: hlo.Computation
) -> bool:
  """Whether each device goes on with its own part of an all-reduce's result.

  The partitioner writes it so; a later pass makes one reduce-scatter of it.
  """
  users = [o for o in computation.values() if operation.name in o.operands]
  return bool(users) and all(user.opcode == 'dynamic-slice' for user in users)


def groups(attributes: str, num_devices: int) -> np.ndarray:
  """int[groups, size]: places in the mesh; pairs, for a permutation."""
  found = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?',
    attributes,
  )
  if found:
    ids = np.arange(num_devices).reshape([int(n) for n in found[3].split(',')])
    if found[4]:
      ids = ids.transpose([int(n) for n in found[4].split(',')])
    return ids.reshape(int(found[1]), int(found[2]))
  found = re.search(
    r'replica_groups=mesh\[([^\]]*)\]\s*(?:\([^)]*\)\s*)?\{([^}]*)\}',
    attributes,
  )
  if found:
    axes = re.findall(r"'([^']+)'=(\d+)", found[1])
    used = set(re.findall(r"'([^']+)'", found[2]))
    ids = np.arange(num_devices).reshape([int(size) for _, size in axes])
    inner = [i for i, (name, _) in enumerate(axes) if name in used]
    outer = [i for i in range(len(axes)) if i not in inner]
    size = int(np.prod([ids.shape[i] for i in inner]))
    return ids.transpose(outer + inner).reshape(-1, size)
  found = re.search(
    r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}',
    attributes,
  )
  rows = re.findall(r'\{([\d,]+)\}', found[1]) if found else []
  if not rows:
    return np.arange(num_devices)[None]
  return np.array([[int(n) for n in row.split(',')] for row in rows])


class Network:
  """The links between the devices of a mesh."""

  def __init__(self, mesh: Mesh, known: chip.Chip | None):
    self._mesh = mesh
    self._chip = known
    self._places: Any = None
    self._hosts: Any = None
    self._loads: dict[bytes, int] = {}
    if (
      known is not None
      and known.dims
      and hasattr(mesh.devices.flat[0], 'coords')
    ):
      places = topology.coordinates(list(mesh.devices.flat))
      self._slices, self._places = places[:, 0], places[:, 1 : 1 + known.dims]
      self._shape = self._places.max(axis=0) + 1
      self._wraps = topology.wraps(known, self._shape)
    elif known is not None and not known.dims:
      self._hosts = topology.hosts(list(mesh.devices.flat))

  def axes(self, group: np.ndarray) -> tuple[str, ...]:
    """The axes along which the members of a group differ."""
    index = np.stack(np.unravel_index(group, self._mesh.devices.shape))
    differs = (index != index[:, :, :1]).any(axis=(1, 2))
    return tuple(
      axis
      for axis, split in zip(self._mesh.axis_names, differs, strict=True)
      if split
    )

  def seconds(self, kind: str, group: np.ndarray, size: float) -> float | None:
    """The least time of a collective on arrays of `size` bytes a group."""
    known, count = self._chip, group.shape[1]
    if known is None or count == 1:
      return None if known is None else 0.0
    if kind == 'collective-permute':
      return self._permute(group, size)
    # Of the whole array, what a device receives; twice, where it also sends
    # the sums on.
    share = size * (count - 1) / count * (2 if kind == 'all-reduce' else 1)
    if kind.endswith('all-to-all'):
      share = size / count * (count - 1) / count
    if self._places is None and self._hosts is None:
      return share / known.link
    if self._places is None:
      # Each group by itself: some may lie in one host, some in several.
      return max(
        self._joined(kind, self._hosts[members], share, size)
        for members in group
      )
    across, inside = self._across(kind, self._slices[group[0]], size)
    if inside == 1:
      return across
    return across + self._torus(kind, group[0], share, size)

  def _joined(self, kind, hosts, share, size) -> float:
    """Seconds of a group of GPUs."""
    assert self._chip is not None
    across, inside = self._across(kind, hosts, size)
    return across + (share / self._chip.link if inside > 1 else 0.0)

  def _across(self, kind, places, size) -> tuple[float, int]:
    """Seconds between slices or hosts, and how many members are in each."""
    assert self._chip is not None
    parts = len(set(places.tolist()))
    inside = max(1, len(places) // parts)
    if parts == 1:
      return 0.0, inside
    # First inside each slice; across, a device has its own part only.
    sent = size * (parts - 1) / parts / inside
    if kind == 'all-reduce':
      sent *= 2
    if kind.endswith('all-to-all'):
      # Of which it sends each other part what is for that one.
      sent /= parts
    return sent / self._chip.network, inside

  def _torus(self, kind, members, share, size) -> float:
    assert self._chip is not None and self._places is not None
    places = self._places[members]
    rate, slowest = 0.0, 0.0
    for dim, (length, wraps) in enumerate(
      zip(self._shape, self._wraps, strict=True)
    ):
      at = np.unique(places[:, dim])
      if len(at) == 1:
        continue
      stride = int(np.diff(at).min())
      ring = wraps and len(at) * stride == length
      # Groups that lie between each other's members share the links.
      rate += self._chip.link * (2 if ring else 1) / stride
      # All pairs cross the middle of a line, both ways round of a ring.
      slowest = max(slowest, len(at) * stride / (8 if ring else 4))
    if not rate:
      # The two devices of one chip.
      return share / (2 * self._chip.dims * self._chip.link)
    if kind.endswith('all-to-all'):
      return size / len(members) * slowest / self._chip.link
    return share / rate

  def _permute(self, pairs, size) -> float:
    assert self._chip is not None
    if self._places is None:
      near = True
      if self._hosts is not None:
        near = (self._hosts[pairs[:, 0]] == self._hosts[pairs[:, 1]]).all()
      return size / (self._chip.link if near else self._chip.network)
    if (self._slices[pairs[:, 0]] != self._slices[pairs[:, 1]]).any():
      return size / self._chip.network
    return size * self._busiest(pairs) / self._chip.link

  def _busiest(self, pairs) -> int:
    """Messages over the busiest link, each routed dim by dim the short way."""
    key = pairs.tobytes()
    if key not in self._loads:
      load = collections.Counter()
      for source, target in self._places[pairs]:
        at = list(source)
        for dim, length in enumerate(self._shape):
          way = int(target[dim] - at[dim])
          if self._wraps[dim] and abs(way) > length / 2:
            way = -way
          step = 1 if way > 0 else -1
          while at[dim] != target[dim]:
            load[*at, dim, step] += 1
            at[dim] = (at[dim] + step) % length
      self._loads[key] = max(load.values(), default=1)
    return self._loads[key]


# Operations that move nothing, or are part of another one.
_FREE = (
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'opt-barrier',
)


def traffic(program: hlo.Program) -> float:
  """Bytes that the operations of an optimised program read and write.

  A fusion reads its operands and writes its results once; of an operand that
  it only slices, it reads the slices. What lies in on-chip memory (S(1) in a
  layout) is free.
  """
  total = 0.0
  for operation, computation, times in program.walk():
    opcode = operation.opcode
    if opcode in _FREE or opcode.endswith(('-done', '-update')):
      continue
    if opcode in ('call-start', 'async-start'):
      continue
    inner = None
    if opcode == 'fusion':
      inner = program.computations.get(operation.called['calls'][0])
    read = 0.0
    for i, name in enumerate(operation.operands):
      operand = computation.get(name)
      if operand is not None:
        read += _read(operation, inner, i, operand)
    total += times * (read + _written(operation, inner, computation))
  return total


def _off_chip(shapes: Sequence[hlo.Shape]) -> int:
  return sum(shape.bytes for shape in shapes if 'S(1)' not in shape.layout)


def _read(operation, inner, index, operand) -> float:
  whole = _off_chip(operand.shapes)
  if operation.opcode in ('dynamic-slice', 'gather', 'slice'):
    return min(whole, operation.bytes)
  if operation.opcode in ('dynamic-update-slice', 'scatter'):
    return 0 if index == 0 else whole
  if inner is None or not whole:
    return whole
  parameter = next(
    (
      o
      for o in inner.values()
      if o.opcode == 'parameter' and o.arguments == str(index)
    ),
    None,
  )
  if parameter is None:
    return whole
  names, parts = {parameter.name}, 0.0
  for user in inner.values():
    if not names.intersection(user.operands):
      continue
    if user.opcode == 'bitcast':
      names.add(user.name)
    elif user.opcode in ('dynamic-slice', 'slice', 'gather'):
      parts += user.bytes
    elif user.opcode == 'dynamic-update-slice' and user.operands[0] in names:
      continue
    else:
      return whole
  return min(whole, parts)


def _written(operation, inner, computation) -> float:
  whole = _off_chip(operation.shapes)
  scope = computation if inner is None else inner
  end = operation if inner is None else hlo.root(inner)
  while end is not None and end.opcode in ('bitcast', 'copy') and inner:
    end = inner.get(end.operands[0])
  if end is not None and end.opcode == 'dynamic-update-slice':
    update = scope.get(end.operands[1])
    return min(whole, update.bytes if update else whole)
  return whole


def largest(program: hlo.Program, count: int = 8) -> list[dict[str, Any]]:
  """The largest arrays that operations make, one of each shape."""
  found: dict[Any, dict[str, Any]] = {}
  for operation, _, _ in program.walk():
    if operation.opcode in _FREE:
      continue
    for shape in operation.shapes:
      spelled = f'{shape.kind}[{",".join(map(str, shape.dims))}]'
      if 'S(' not in shape.layout:
        entry = {'bytes': shape.bytes, 'source': operation.source}
        found.setdefault(spelled, {'shape': spelled} | entry)
  return sorted(found.values(), key=lambda entry: -entry['bytes'])[:count]
