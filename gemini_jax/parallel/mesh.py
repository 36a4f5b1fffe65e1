"""The mesh of all devices, laid out along the links between them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gemini_jax import config as config_lib

# The axes from the least traffic to the most: the last lie closest together.
_BY_TRAFFIC = ('pipeline', 'data', 'fsdp', 'expert', 'sequence', 'tensor')


def make_mesh(
  parallel: config_lib.Parallel, devices: Sequence[Any] | None = None
) -> Mesh:
  """The mesh of all six axes; most have size 1.

  Args:
    parallel: the size of each axis; -1 takes the remaining devices. The outer
      part of `slice_axis` goes across the slices.
    devices: real or topology devices; None: all of jax.devices().

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
  """The devices of each slice: by index on TPUs, otherwise in order."""
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
