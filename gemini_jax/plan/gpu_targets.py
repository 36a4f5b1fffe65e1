"""Descriptions of GPUs for XLA's compiler, to compile without a GPU.

Figures from openxla/xla, xla/backends/gpu/target_config/specs; figures that all
of these GPUs share are in the template below.
"""

import dataclasses

from gemini_jax.parallel import chip


@dataclasses.dataclass(frozen=True)
class Target:
  """Figures of a GPU that the table of chips lacks.

  Attributes:
    name: the name that the device reports.
    capability: CUDA compute capability, major and minor.
    clock: of the multiprocessors, in GHz.
    cores: number of multiprocessors.
    lanes: float32 units of a multiprocessor.
    cache: bytes of the level-2 cache.
    shared: bytes of shared memory of a multiprocessor, 1 KiB of which is not
      available to a block.
  """

  name: str
  capability: tuple[int, int]
  clock: float
  cores: int
  lanes: int
  cache: int
  shared: int


_HOPPER = {'capability': (9, 0), 'lanes': 128, 'shared': 233_472}
TARGETS = {
  'a100': Target(
    'NVIDIA A100-SXM4-80GB', (8, 0), 1.41, 108, 64, 41_943_040, 167_936
  ),
  'h100-pcie': Target(
    'NVIDIA H100 PCIe', clock=1.755, cores=114, cache=52_428_800, **_HOPPER
  ),
  'h100': Target(
    'NVIDIA H100 80GB HBM3', clock=1.98, cores=132, cache=52_428_800, **_HOPPER
  ),
  'h200': Target(
    'NVIDIA H200', clock=1.98, cores=132, cache=52_428_800, **_HOPPER
  ),
  'b200': Target('NVIDIA B200', (10, 0), 1.965, 148, 128, 132_644_864, 233_472),
}


def describe(known: chip.Chip) -> str:
  """The GpuTargetConfigProto of a chip, as text."""
  target = TARGETS[known.name]
  major, minor = target.capability
  # From Hopper on, tensor cores need code for exactly this GPU (sm_90a).
  features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
  return f"""
gpu_device_info {{
  name: "{target.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {features}
  }}
  device_memory_size: {known.memory}
  memory_bandwidth: {known.memory_bandwidth:.0f}
  clock_rate_ghz: {target.clock}
  core_count: {target.cores}
  fpus_per_core: {target.lanes}
  l2_cache_size: {target.cache}
  shared_memory_per_core: {target.shared}
  shared_memory_per_block_optin: {target.shared - 1024}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{target.name}"
"""
