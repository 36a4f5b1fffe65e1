"""Devices that are not present, to compile programs for."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from gemini_jax import config as config_lib
from gemini_jax.parallel import chip
from gemini_jax.plan import gpu_targets

# libtpu reads these when it is loaded: no queries of cloud metadata, any host
# name, no log files, several plans at the same time.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_LOG_DIR': 'disabled',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
# Slices on offer besides those whose dims are all multiples of 4.
_SMALL_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_SHAPES_2D = (
  (1, 1),
  (2, 2),
  (2, 4),
  (4, 4),
  (4, 8),
  (8, 8),
  (8, 16),
  (16, 16),
)
# Most hosts of GPUs, and numbers of GPUs in a host.
_MAX_HOSTS, _GPUS = 1024, (1, 2, 4, 8)
# The share of a GPU's memory that JAX preallocates, and the environment
# variable that overrides it
# (docs.jax.dev/en/latest/gpu_memory_allocation.html).
_FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
_PREALLOCATED = 0.75


def parse(name: str) -> tuple[chip.Chip, tuple[int, ...]]:
  """The chip and the shape of `v5p:8x8x8`, or of `h100:2x8`.

  Raises:
    ConfigError: the chip is unknown, or has no slice of this shape.
  """
  kind, _, spelled = name.partition(':')
  slices = ', '.join(
    f'{known.name}:{"x".join("4" * known.dims)}' for known in chip.TPUS.values()
  )
  hosts = ', '.join(f'{gpu}:1x8' for gpu in chip.GPUS)
  known = (chip.TPUS | chip.GPUS).get(kind)
  config_lib.check(
    known is not None and bool(re.fullmatch(r'\d+(x\d+)+', spelled)),
    f'plan.topology={name} must be a chip and the shape of its slice, such as '
    f'{slices}; or hosts x GPUs of each, such as {hosts}; '
    "or '' for this machine",
  )
  assert known is not None
  shape = tuple(int(size) for size in spelled.split('x'))
  if not known.dims:
    config_lib.check(
      len(shape) == 2 and 1 <= shape[0] <= _MAX_HOSTS and shape[1] in _GPUS,
      f'plan.topology={name} must be hosts x GPUs of each: '
      f'1 to {_MAX_HOSTS} hosts of {", ".join(map(str, _GPUS))}',
    )
    return known, shape
  config_lib.check(
    shape in shapes(known),
    f'plan.topology={name} is not a slice on offer: {_offered(known)}',
  )
  return known, shape


def shapes(known: chip.Chip) -> list[tuple[int, ...]]:
  """All slices of a chip, in order of size."""
  if not known.dims:
    full = _GPUS[-1]
    parts = [(1, count) for count in _GPUS[:-1]]
    return parts + [(hosts, full) for hosts in range(1, _MAX_HOSTS + 1)]
  if known.dims == 2:
    return list(_SHAPES_2D)
  a, b, c = known.max_slice
  large = [
    (x, y, z)
    for x in range(4, a + 1, 4)
    for y in range(x, b + 1, 4)
    for z in range(y, c + 1, 4)
  ]
  return sorted([*_SMALL_3D, *large], key=math.prod)


def _offered(known: chip.Chip) -> str:
  if known.dims == 2:
    return ', '.join('x'.join(map(str, shape)) for shape in _SHAPES_2D)
  small = ', '.join('x'.join(map(str, shape)) for shape in _SMALL_3D)
  largest = 'x'.join(map(str, known.max_slice))
  return f'{small}, or ascending multiples of 4 up to {largest}'


def wraps(known: chip.Chip, shape: Sequence[int]) -> tuple[bool, ...]:
  """Along which dims the last chip is connected to the first."""
  if known.dims == 2:
    return tuple(size == 16 for size in shape)
  return (all(size % 4 == 0 for size in shape),) * 3


def devices(name: str, slices: int = 1) -> list[Any]:
  """The devices of `slices` slices, for compilation only.

  Raises:
    ConfigError: the name is wrong, or the compiler is not installed.
  """
  known, shape = parse(name)
  if not known.dims:
    return _gpus(name, known, (shape[0] * slices, shape[1]))
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  options: dict[str, Any] = {'num_slices': slices} if slices > 1 else {}
  if known.name == 'v4':
    # One device per chip, as on real hosts.
    options['chip_config_name'] = 'megacore'
  if any(size % 2 for size in shape[:2]):
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    topology = topologies.get_topology_desc(
      platform='tpu',
      topology_name=name,
      wrap=(*wraps(known, shape), False)[:3],
      **options,
    )
  except (RuntimeError, NotImplementedError) as error:
    message = str(error)
    if 'TPU support not installed' in message or 'libtpu.so' in message:
      raise config_lib.ConfigError(
        f'plan.topology={name} needs libtpu, which is not installed or not for '
        "this machine (Linux on x86-64): pip install 'gemini_jax[tpu]'"
      ) from error
    raise
  return list(topology.devices)


def _gpus(name: str, known: chip.Chip, shape: Sequence[int]) -> list[Any]:
  try:
    topology = topologies.get_topology_desc(
      platform='cuda',
      target_config=gpu_targets.describe(known),
      # One partition.
      topology='x'.join(map(str, (1, *shape))),
    )
  except NotImplementedError as error:
    # JAX raises this if no plug-in knows the platform.
    raise config_lib.ConfigError(
      f'plan.topology={name} needs the CUDA plug-in of JAX, which is not '
      'installed (no GPU, no driver): pip install '
      f'jax-cuda12-plugin=={jax.__version__} '
      f'jax-cuda12-pjrt=={jax.__version__}'
    ) from error
  return list(topology.devices)


def coordinates(devices: Sequence[Any]) -> np.ndarray:
  """int[N, 1 + dims], the slice and the torus coordinates of each device."""
  return np.array(
    [(getattr(d, 'slice_index', None) or 0, *d.coords) for d in devices]
  )


def hosts(devices: Sequence[Any]) -> np.ndarray:
  """int[N], the host of each GPU."""
  if is_here(devices):
    # A process may have a single GPU, so the host follows from the device id.
    return np.array([device.id // _GPUS[-1] for device in devices])
  return np.array([device.process_index for device in devices])


def is_here(devices: Sequence[Any]) -> bool:
  """Whether the devices are present, not for compilation only."""
  return devices[0].client.runtime_type != 'compile_only_runtime'


def preallocated() -> float:
  """The share of a GPU's memory that JAX preallocates for programs.

  Raises:
    ConfigError: the environment variable for it is not a share.
  """
  spelled = os.environ.get(_FRACTION, '')
  try:
    share = float(spelled or _PREALLOCATED)
  except ValueError:
    share = 0.0
  config_lib.check(
    0 < share <= 1, f'{_FRACTION}={spelled} must be above 0 and at most 1'
  )
  return share


def memory(device: Any) -> int | None:
  """Bytes that programs can use on a device; None if unknown."""
  known = chip.find(device)
  if known is not None and known.dims:
    return known.memory
  if known is not None and not is_here([device]):
    return int(known.memory * preallocated())
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit']
  if device.platform == 'cpu':
    # Simulated devices share the memory of the machine.
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return total // jax.local_device_count()
  return known.memory if known is not None else None
