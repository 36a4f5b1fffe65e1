"""The links between the devices of a mesh.

Bandwidths as in jax-ml.github.io/scaling-book (Sharding, section 'How long').
"""

import collections
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gemini_jax.parallel import chip
from gemini_jax.plan import topology


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
    """The mesh axes along which the devices of a group differ."""
    index = np.stack(np.unravel_index(group, self._mesh.devices.shape))
    differs = (index != index[:, :, :1]).any(axis=(1, 2))
    return tuple(
      axis
      for axis, split in zip(self._mesh.axis_names, differs, strict=True)
      if split
    )

  def seconds(self, kind: str, group: np.ndarray, size: float) -> float | None:
    """Lower bound of the time of a collective of `size` bytes a group."""
    known, count = self._chip, group.shape[1]
    if known is None or count == 1:
      return None if known is None else 0.0
    if kind == 'collective-permute':
      return self._permute(group, size)
    # The part of the whole array that a device receives; twice that if it also
    # passes the sums on.
    share = size * (count - 1) / count * (2 if kind == 'all-reduce' else 1)
    if kind.endswith('all-to-all'):
      share = size / count * (count - 1) / count
    if self._places is None and self._hosts is None:
      return share / known.link
    if self._places is None:
      # Some groups may be within one host, others span several.
      return max(
        self._joined(kind, self._hosts[members], share, size)
        for members in group
      )
    across, inside = self._across(kind, self._slices[group[0]], size)
    if inside == 1:
      return across
    return across + self._torus(kind, group[0], share, size)

  def _joined(self, kind, hosts, share, size) -> float:
    """Seconds of a collective in a group of GPUs."""
    assert self._chip is not None
    across, inside = self._across(kind, hosts, size)
    return across + (share / self._chip.link if inside > 1 else 0.0)

  def _across(self, kind, places, size) -> tuple[float, int]:
    """Seconds between slices or hosts, and the number of devices in each."""
    assert self._chip is not None
    parts = len(set(places.tolist()))
    inside = max(1, len(places) // parts)
    if parts == 1:
      return 0.0, inside
    # Reduced within each slice first, so that a device sends its part only.
    sent = size * (parts - 1) / parts / inside
    if kind == 'all-reduce':
      sent *= 2
    if kind.endswith('all-to-all'):
      # To each other slice it sends the data for that slice alone.
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
      # Interleaved groups share the links.
      rate += self._chip.link * (2 if ring else 1) / stride
      # All pairs cross the middle of a line; a ring has two such links.
      slowest = max(slowest, len(at) * stride / (8 if ring else 4))
    if not rate:
      # Two devices of one chip.
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
    """Messages over the busiest link; routes are shortest, dim after dim."""
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
