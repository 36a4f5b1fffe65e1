"""The figures of a plan."""

import dataclasses
from typing import Any

import jax

from gemini_jax.models import gemini
from gemini_jax.parallel import chip
from gemini_jax.plan import abstract, topology
from gemini_jax.plan import compile as compile_lib
from gemini_jax.train import flops as flops_lib
from gemini_jax.train import progress as progress_lib

_GIB = 2**30


def build(
  measured: compile_lib.Measured, assumptions: list[str]
) -> dict[str, Any]:
  """All figures of a plan; None for those that are unknown for the device."""
  config, train = measured.config, measured.train
  device = measured.devices[0]
  known = chip.find(device)
  num_devices = len(measured.devices)
  model_flops = flops_lib.step_flops(config)
  # The products inside attention kernels are not visible in the program.
  executed = max(train.flops, model_flops / num_devices)
  times = seconds(dataclasses.replace(train, flops=executed), known)
  bound = max(times.values()) if times else None
  tokens = config.data.batch_size * config.data.sequence_length
  memory = measured.memory
  return {
    'topology': config.plan.topology or progress_lib.devices_line(),
    'device_kind': device.device_kind,
    'num_devices': num_devices,
    'mesh': {k: v for k, v in measured.mesh.shape.items() if v > 1},
    'num_params': gemini.param_count(measured.state.params),
    'fits': measured.fits(train),
    'bytes_per_device': train.peak,
    'device_memory_bytes': memory,
    'memory_to_spare': 1 - train.peak / memory
    if memory and train.peak is not None
    else None,
    'breakdown': train.arguments
    | {'activations_and_temporaries': train.temporaries},
    'host_bytes_per_device': train.host,
    'largest_tensors': [
      *_arguments(measured.state),
      *train.largest,
    ],
    'tokens_per_step': tokens,
    'flops_per_step': model_flops,
    'executed_flops_per_step': None
    if train.problem
    else executed * num_devices,
    'memory_traffic_per_device': None if train.problem else train.traffic,
    'collectives': [dataclasses.asdict(c) for c in train.collectives],
    'step_seconds_bound': bound,
    'step_seconds': times,
    'step_seconds_without_overlap': sum(times.values()) if times else None,
    'mfu_bound': model_flops / bound / known.flops / num_devices
    if bound and known
    else None,
    'tokens_per_second_bound': tokens / bound if bound else None,
    'compile_seconds': train.seconds,
    'problem': train.problem,
    'decode': _decode(measured, known),
    'assumptions': [*assumptions, *_assumptions(measured, known)],
  }


def seconds(
  part: compile_lib.Compiled, known: chip.Chip | None
) -> dict[str, float] | None:
  """Lower bound of the time of each resource: if it were always busy."""
  if known is None or part.problem:
    return None
  return {
    'compute': part.flops / known.flops,
    'memory': part.traffic / known.memory_bandwidth,
    'interconnect': sum(c.seconds or 0 for c in part.collectives),
  }


def _decode(
  measured: compile_lib.Measured, known: chip.Chip | None
) -> dict[str, Any] | None:
  part = measured.decode
  if part is None:
    return None
  times = seconds(part, known)
  rows = measured.config.plan.decode_batch_size
  rows = measured.config.data.batch_size if rows is None else rows
  bound = max(times.values()) if times else None
  return {
    'batch_size': rows,
    'length': measured.config.model.max_length,
    'fits': measured.fits(part),
    'bytes_per_device': part.peak,
    'breakdown': part.arguments
    | {'activations_and_temporaries': part.temporaries},
    'token_seconds_bound': bound,
    'token_seconds': times,
    'tokens_per_second_bound': rows / bound if bound else None,
    'collectives': [dataclasses.asdict(c) for c in part.collectives],
    'compile_seconds': part.seconds,
    'problem': part.problem,
  }


def _arguments(state: Any, count: int = 4) -> list[dict[str, Any]]:
  """The largest tensors of the state, by bytes on a device."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  entries = [
    {
      'shape': f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]',
      'bytes': abstract.local_bytes(leaf),
      'source': jax.tree_util.keystr(path, simple=True, separator='/'),
    }
    for path, leaf in leaves
  ]
  return sorted(entries, key=lambda entry: -entry['bytes'])[:count]


def _assumptions(
  measured: compile_lib.Measured, known: chip.Chip | None
) -> list[str]:
  config = measured.config
  lines = [
    'memory: the peak that the compiler reports for one step; the next batch '
    'and the memory of other programs are extra',
    'model FLOPs: matrix products of three forward passes, causal pairs once; '
    'executed FLOPs: those of the partitioned program, recomputation included, '
    'but for products inside of kernels (splash, cuDNN), which it hides',
  ]
  if config.model.num_experts:
    lines.append(
      'experts: all get the same number of tokens; a grouped product computes '
      'only the rows of its own experts'
    )
  if measured.devices[0].platform == 'tpu' and config.plan.fast:
    lines.append(
      'compiled with little optimisation (plan.fast): a full compilation may '
      'need up to a tenth more memory, or less, and has less memory traffic'
    )
  if measured.train.host:
    lines.append(
      "host memory: counted like the device's own; no time for transfers"
    )
  if known is None:
    kind = measured.devices[0].device_kind
    lines.append(f'{kind} is not in the table of chips: no times')
    return lines
  link = 'a link' if known.dims else 'to others of its host'
  links = (
    'the links of the torus dims that its axes lie on'
    if known.dims
    else 'a GPU in its host, then of its network to other hosts'
  )
  lines += [
    f'one {known.name} device: {known.flops / 1e12:,.0f} TFLOP/s in bfloat16, '
    f'{known.memory_bandwidth / 1e9:,.0f} GB/s of memory, '
    f'{known.link / 1e9:,.0f} GB/s {link} one way, '
    f'{known.network / 1e9:,.1f} GB/s between slices or hosts',
    'the step takes as long as the slowest of compute, memory and '
    'interconnect: they overlap fully, and nothing else takes time',
    'compute: every matrix product runs at the peak for bfloat16',
    'memory: every operation, after fusion, reads and writes each array once',
    'interconnect: collectives one after another, each at the full bandwidth '
    f'of {links}, no latency',
  ]
  if not known.dims and not topology.is_here(measured.devices):
    lines += [
      f'{topology.preallocated():.0%} of the {known.memory / _GIB:,.1f} GiB of '
      'a GPU are available to programs: the share that JAX preallocates, '
      'unless XLA_PYTHON_CLIENT_MEM_FRACTION is set',
      'kernels are not autotuned without a GPU: a run may choose other ones, '
      'with buffers of other sizes',
    ]
  if known.dims and not measured.config.plan.topology:
    lines.append('links: those of one slice of the devices of this machine')
  return lines
