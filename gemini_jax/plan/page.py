"""A plan as a page to read."""

from typing import Any

_GIB = 2**30


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
  limit = f' of {memory / _GIB:,.2f} GiB' if memory else ''
  if peak is None:
    lines.append(f'  more than the device has{limit}')
  else:
    spare = ''
    if memory:
      spare_share = 1 - peak / memory
      spare = (
        f' ({spare_share:.0%} to spare)'
        if spare_share >= 0
        else ' (DOES NOT FIT)'
      )
    lines.append(f'  {_gib(peak)}  at the peak{limit}{spare}')
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
