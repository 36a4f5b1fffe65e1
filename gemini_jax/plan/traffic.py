"""Memory traffic of a program, and its largest intermediate arrays."""

from collections.abc import Sequence
from typing import Any

from gemini_jax.plan import execution, hlo

# Operations that access no memory, or are counted with another one.
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


def num_bytes(program: hlo.Program) -> float:
  """Bytes that the operations of an optimised program read and write.

  A fusion reads its operands and writes its results once; of operands that it
  only slices, it reads the slices. Arrays in on-chip memory (S(1) in the
  layout) are free.
  """
  total = 0.0
  for operation, computation, times in execution.walk(program):
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
  """The largest results of operations, one of each shape."""
  by_shape: dict[Any, dict[str, Any]] = {}
  for operation, _, _ in execution.walk(program):
    if operation.opcode in _FREE:
      continue
    for shape in operation.shapes:
      spelled = f'{shape.kind}[{",".join(map(str, shape.dims))}]'
      if 'S(' not in shape.layout:
        entry = {'bytes': shape.bytes, 'source': operation.source}
        by_shape.setdefault(spelled, {'shape': spelled} | entry)
  return sorted(by_shape.values(), key=lambda entry: -entry['bytes'])[:count]
