"""Peak compute, memory and bandwidth of accelerators, in one table.

Makers' data sheets unless a comment says otherwise. TPU: cloud.google.com/tpu
/docs/{v5e,v5p,v6e,tpu7x} and jax/_src/pallas/mosaic/tpu_info.py; a link's
bandwidth is the one that jax-ml.github.io/scaling-book measures, nine tenths
of the sheet's. GPU: openxla/xla, xla/backends/gpu/target_config/specs.
"""

import dataclasses
from typing import Any

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device of a kind. Bandwidths in bytes/s, one way.

  Attributes:
    name: as in `plan.topology`.
    kinds: prefixes of `device_kind`.
    flops: dense bfloat16 products, FLOP/s.
    memory: bytes that programs can use (TPU), or all bytes (GPU).
    memory_bandwidth: of this memory.
    link: of one link to a neighbour (TPU), or of all links together (GPU).
    network: between slices, or between hosts (GPU), for each device.
    dims: of the torus of links; 0: all devices of a host reach each other.
    max_slice: chips along each dim of the largest slice on offer.
    cores: devices of one chip; they share its links.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  memory: int
  memory_bandwidth: float
  link: float
  network: float
  dims: int = 0
  max_slice: tuple[int, ...] = ()
  cores: int = 1


# Longer prefixes first: 'TPU v5 lite' starts with 'TPU v5'. Usable memory of
# TPUs is the limit that libtpu 0.0.42 states when a program does not fit.
CHIPS = (
  # Its network: the general figure of the scaling book; no sheet found.
  Chip(
    'v4',
    ('TPU v4',),
    flops=275e12,
    memory=int(30.75 * _GIB),
    memory_bandwidth=1228e9,
    link=45e9,
    network=6.25e9,
    dims=3,
    max_slice=(16, 16, 16),
  ),
  Chip(
    'v5e',
    ('TPU v5 lite', 'TPU v5e'),
    flops=197e12,
    memory=int(15.75 * _GIB),
    memory_bandwidth=819e9,
    link=45e9,
    network=3.125e9,
    dims=2,
    max_slice=(16, 16),
  ),
  Chip(
    'v5p',
    ('TPU v5p', 'TPU v5'),
    flops=459e12,
    memory=int(95.74 * _GIB),
    memory_bandwidth=2765e9,
    link=90e9,
    network=6.25e9,
    dims=3,
    max_slice=(16, 16, 24),
  ),
  Chip(
    'v6e',
    ('TPU v6 lite', 'TPU v6e'),
    flops=918e12,
    memory=int(31.25 * _GIB),
    memory_bandwidth=1638e9,
    link=90e9,
    network=12.5e9,
    dims=2,
    max_slice=(16, 16),
  ),
  # A chip is two devices, each with half of its compute, memory and links. The
  # link's nine tenths are assumed, not measured.
  Chip(
    'tpu7x',
    ('TPU7x',),
    flops=1153.5e12,
    memory=int(94.75 * _GIB),
    memory_bandwidth=3690e9,
    link=45e9,
    network=6.25e9,
    dims=3,
    max_slice=(16, 16, 36),
    cores=2,
  ),
  # Networks of GPUs: a NIC of 200 (A100) or 400 Gb/s for each, as in DGX.
  Chip('a100', ('NVIDIA A100',), 312e12, 85_100_068_864, 2039e9, 300e9, 25e9),
  Chip(
    'h100-pcie',
    ('NVIDIA H100 PCIe',),
    756e12,
    84_942_979_072,
    2039e9,
    64e9,
    50e9,
  ),
  Chip('h100', ('NVIDIA H100',), 989e12, 84_942_979_072, 3352e9, 450e9, 50e9),
  Chip('h200', ('NVIDIA H200',), 989e12, 151_397_597_184, 4800e9, 450e9, 50e9),
  Chip('b200', ('NVIDIA B200',), 2250e12, 191_514_411_008, 7672e9, 900e9, 50e9),
)
TPUS = {chip.name: chip for chip in CHIPS if chip.dims}
GPUS = {chip.name: chip for chip in CHIPS if not chip.dims}


def find(device: Any) -> Chip | None:
  """The chip of a device; None if it is not in the table."""
  for chip in CHIPS:
    if device.device_kind.startswith(chip.kinds):
      return chip
  return None
