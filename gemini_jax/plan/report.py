"""A plan as numbers, and as a page to read."""

import dataclasses
from typing import Any

import jax

from gemini_jax.models import gemini
from gemini_jax.parallel import chip
from gemini_jax.plan import compile as compile_lib
from gemini_jax.plan import topology
from gemini_jax.train import flops as flops_lib
from gemini_jax.train import progress

_GIB = 2**30


def build(
  measured: compile_lib.Measured, assumptions: list[str]
) -> dict[str, Any]:
  """All numbers of a plan; None for what is not known of the device."""
  config, train = measured.config, measured.train
  device = measured.devices[0]
  known = chip.of(device)
  num_devices = len(measured.devices)
  model_flops = flops_lib.step_flops(config)
  # Attention kernels hide their products from the count of executed ones.
  executed = max(train.flops, model_flops / num_devices)
  times = seconds(dataclasses.replace(train, flops=executed), known)
  bound = max(times.values()) if times else None
  tokens = config.data.batch_size * config.data.sequence_length
  memory = measured.memory
  return {
    'topology': config.plan.topology or progress.devices_line(),
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
  """The least time of each resource, if a program kept it busy throughout."""
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
  """The largest tensors of the state, by their bytes on a device."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  found = [
    {
      'shape': f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]',
      'bytes': compile_lib.local_bytes(leaf),
      'source': jax.tree_util.keystr(path, simple=True, separator='/'),
    }
    for path, leaf in leaves
  ]
  return sorted(found, key=lambda entry: -entry['bytes'])[:count]


def _assumptions(
  measured: compile_lib.Measured, known: chip.Chip | None
) -> list[str]:
  config = measured.config
  lines = [
    'memory: the peak that the compiler reports for one step; the next batch '
    'and what other programs hold come on top',
    'model FLOPs: matrix products of three forward passes, causal pairs once; '
    'executed FLOPs: those of the partitioned program, recomputation included, '
    'but for products inside of kernels (splash, cuDNN), which it hides',
  ]
  if config.model.num_experts:
    lines.append(
      'experts: each gets as many tokens as the others; a grouped product '
      'computes only the rows of its own experts'
    )
  if measured.devices[0].platform == 'tpu' and config.plan.fast:
    lines.append(
      'compiled with little effort (plan.fast): a full compilation may need up '
      'to a tenth more memory, or less, and moves less of it'
    )
  if measured.train.host:
    lines.append(
      "the host's memory: as if it were the device's own, no time for the way "
      'there and back'
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
    'the step takes as long as the busiest of compute, memory and '
    'interconnect: the other two are hidden behind it; nothing else takes time',
    'compute: every matrix product runs at the peak for bfloat16',
    'memory: every operation reads and writes each array once, as fused',
    'interconnect: collectives one after another, each at the full bandwidth '
    f'of {links}, no latency',
  ]
  if not known.dims and not topology.is_here(measured.devices):
    lines += [
      f'{topology.preallocated():.0%} of the {known.memory / _GIB:,.1f} GiB of '
      'a GPU are for programs: what JAX takes ahead unless '
      'XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise',
      'kernels are not tuned without a GPU: a run may choose others, whose '
      'buffers have other sizes',
    ]
  if known.dims and not measured.config.plan.topology:
    lines.append('links: those of one slice of the devices that are here')
  return lines


def spell(result: dict[str, Any]) -> str:
  """The plan as lines to read."""
  lines = [
    f'{result["num_params"]:,} parameters on {result["num_devices"]:,} x '
    f'{result["device_kind"]} ({result["topology"]})',
    'mesh: ' + (_pairs(result['mesh']) or 'one device'),
    '',
    *_memory(result, 'train step'),
  ]
  if result['host_bytes_per_device']:
    lines.append(f'  {_gib(result["host_bytes_per_device"])}  on the host')
  lines += ['', 'largest tensors on a device']
  lines += [
    f'  {_gib(tensor["bytes"])}  {tensor["shape"]:34} {tensor["source"][-70:]}'
    for tensor in sorted(
      result['largest_tensors'], key=lambda tensor: -tensor['bytes']
    )
  ]
  flops = f'FLOPs of a step: {result["flops_per_step"]:.3e} of the model'
  if result['problem']:
    lines += ['', flops]
  else:
    share = result['executed_flops_per_step'] / result['flops_per_step']
    lines += [
      '',
      f'{flops}, {share:.2f} times as many executed',
      'collectives of a step',
      *_collectives(result['collectives']),
    ]
  if result['step_seconds']:
    lines += [
      '',
      f'step: {result["step_seconds_bound"]:.3f} s at best '
      f'({_seconds(result["step_seconds"])})',
      f'  MFU {result["mfu_bound"]:.1%} at most, '
      f'{result["tokens_per_second_bound"]:,.0f} tokens/s; '
      f'{result["step_seconds_without_overlap"]:.3f} s if nothing overlapped',
    ]
  decode = result['decode']
  if decode:
    lines += [
      '',
      f'decode: {decode["batch_size"]} rows of {decode["length"]:,} tokens',
      *_memory(
        decode | {'device_memory_bytes': result['device_memory_bytes']},
        'decode step',
      ),
    ]
    if decode['token_seconds']:
      lines.append(
        f'  a token of every row: {decode["token_seconds_bound"] * 1e3:.2f} ms '
        f'at best ({_seconds(decode["token_seconds"])}), '
        f'{decode["tokens_per_second_bound"]:,.0f} tokens/s'
      )
  lines += [
    '',
    f'compiled in {result["compile_seconds"]:.0f} s',
    'assumed:',
    *(f'  - {line}' for line in result['assumptions']),
    '',
    'fits' if result['fits'] else 'DOES NOT FIT',
  ]
  return '\n'.join(lines)


def _memory(result: dict[str, Any], name: str) -> list[str]:
  peak, memory = result['bytes_per_device'], result['device_memory_bytes']
  lines = [f'bytes on a device, {name}']
  lines += [
    f'  {_gib(size)}  {part.replace("_", " ")}'
    for part, size in result['breakdown'].items()
    if size is not None
  ]
  of = f' of {memory / _GIB:,.2f} GiB' if memory else ''
  if peak is None:
    lines.append(f'  more than the device has{of}')
  else:
    spare = ''
    if memory:
      left = 1 - peak / memory
      spare = f' ({left:.0%} to spare)' if left >= 0 else ' (DOES NOT FIT)'
    lines.append(f'  {_gib(peak)}  at the peak{of}{spare}')
  if result['problem']:
    lines.append(f'  the compiler says: {result["problem"]}')
  return lines


def _collectives(collectives: list[dict[str, Any]]) -> list[str]:
  lines = []
  for entry in collectives[:12]:
    time = entry['seconds']
    lines.append(
      f'  {entry["kind"]:18} {",".join(entry["axes"]):16} '
      f'{entry["count"]:8,.0f} x  {_gib(entry["bytes"])}'
      + ('' if time is None else f'  {time:9.4f} s')
      + f'  {entry["largest"][-60:]}'
    )
  return lines or ['  none']


def _seconds(times: dict[str, float]) -> str:
  return ', '.join(f'{name} {time:.4f}' for name, time in times.items())


def _pairs(values: dict[str, int]) -> str:
  return ', '.join(f'{name} {value}' for name, value in values.items())


def _gib(size: float) -> str:
  return f'{size / _GIB:10,.3f} GiB'
