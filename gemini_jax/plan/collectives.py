"""Collectives of a partitioned program, and lower bounds of their times."""

import dataclasses
import re
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemini_jax.parallel import chip
from gemini_jax.plan import execution, hlo
from gemini_jax.plan import network as network_lib


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same mesh axes, in one step.

  Attributes:
    kind: XLA's name of it.
    axes: mesh axes along which it communicates.
    count: number of executions.
    bytes: of the whole arrays of a group of devices.
    seconds: lower bound; None if the network is unknown.
    largest: the operation in the model that accounts for most bytes.
  """

  kind: str
  axes: tuple[str, ...]
  count: float
  bytes: float
  seconds: float | None
  largest: str


def find(
  program: hlo.Program, mesh: Mesh, known: chip.Chip | None
) -> list[Collective]:
  """The collectives of a partitioned program, the slowest first."""
  network = network_lib.Network(mesh, known)
  grouped: dict[Any, list[tuple[float, float, float | None, str]]] = {}
  for operation, computation, times in execution.walk(program):
    kind = re.sub(r'-start$', '', operation.opcode)
    if kind not in hlo.COLLECTIVES:
      continue
    group = groups(operation.attributes, mesh.devices.size)
    if group.shape[1] == 1:
      continue
    size = _bytes(operation, kind, group.shape[1])
    if kind == 'all-reduce' and _is_scattered(operation, computation):
      kind = 'reduce-scatter'
    # All groups run at the same time; the slowest one counts.
    axes = network.axes(group)
    seconds = network.seconds(kind, group, size)
    grouped.setdefault((kind, axes), []).append(
      (times, size, seconds, operation.source)
    )
  result = []
  for (kind, axes), calls in grouped.items():
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
  """Bytes of the whole array in a group of `size` devices."""
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
  """Whether each device uses only its own part of an all-reduce's result.

  A later pass turns such an all-reduce into a reduce-scatter.
  """
  users = [o for o in computation.values() if operation.name in o.operands]
  return bool(users) and all(user.opcode == 'dynamic-slice' for user in users)


def groups(attributes: str, num_devices: int) -> np.ndarray:
  """int[groups, size], device indices; pairs for a permutation."""
  match = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?',
    attributes,
  )
  if match:
    ids = np.arange(num_devices).reshape([int(n) for n in match[3].split(',')])
    if match[4]:
      ids = ids.transpose([int(n) for n in match[4].split(',')])
    return ids.reshape(int(match[1]), int(match[2]))
  match = re.search(
    r'replica_groups=mesh\[([^\]]*)\]\s*(?:\([^)]*\)\s*)?\{([^}]*)\}',
    attributes,
  )
  if match:
    axes = re.findall(r"'([^']+)'=(\d+)", match[1])
    used = set(re.findall(r"'([^']+)'", match[2]))
    ids = np.arange(num_devices).reshape([int(size) for _, size in axes])
    inner = [i for i, (name, _) in enumerate(axes) if name in used]
    outer = [i for i in range(len(axes)) if i not in inner]
    size = int(np.prod([ids.shape[i] for i in inner]))
    return ids.transpose(outer + inner).reshape(-1, size)
  match = re.search(
    r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}',
    attributes,
  )
  rows = re.findall(r'\{([\d,]+)\}', match[1]) if match else []
  if not rows:
    return np.arange(num_devices)[None]
  return np.array([[int(n) for n in row.split(',')] for row in rows])
