"""The operations that a program executes, loops counted in full.

XLA's own cost analysis counts the body of a loop once; here every operation
counts as often as its loops run.
"""

import math
from collections.abc import Iterator
from typing import Any

from gemini_jax.plan import hlo, loops


def walk(
  program: hlo.Program, name: str | None = None, times: float = 1
) -> Iterator[tuple[hlo.Operation, hlo.Computation, float]]:
  """Operations, their computation, and how often each one runs.

  Fusions and reductions are not entered; of the branches of a conditional the
  one with the most FLOPs counts.
  """
  computation = program.computations.get(name or program.entry, {})
  for operation in computation.values():
    if operation.opcode == 'while':
      count = loops.trip_count(program, computation, operation)
      yield from walk(
        program, operation.called['body'][0], times * (count or 1)
      )
      continue
    yield operation, computation, times
    called = operation.called
    if operation.opcode == 'conditional':
      branches = [name for names in called.values() for name in names]
      largest = max(
        branches, key=lambda name: flops(program, name), default=None
      )
      if largest is not None:
        yield from walk(program, largest, times)
    elif operation.opcode in ('call', 'call-start', 'async-start'):
      for names in called.values():
        for callee in names:
          yield from walk(program, callee, times)


def flops(
  program: hlo.Program, name: str | None = None, grouped: float = 1.0
) -> float:
  """FLOPs of the matrix products, every loop counted in full.

  Args:
    program: what runs.
    name: the computation to begin with; None: the entry.
    grouped: share of the rows of ragged products that belong to a group.
  """
  total = 0.0
  for operation, computation, times in walk(program, name):
    if operation.opcode not in ('dot', 'ragged-dot'):
      continue
    left: Any = computation.get(operation.operands[0])
    dims = operation.attribute(r'lhs_contracting_dims=\{([\d,]*)\}') or ''
    inner = math.prod(left.shapes[0].dims[int(d)] for d in dims.split(',') if d)
    outer = math.prod(operation.shapes[0].dims)
    if operation.opcode == 'ragged-dot':
      times *= grouped
      if operation.attribute(r'lhs_ragged_dims=\{([\d,]*)\}') == dims:
        # One product a group, of its own rows: in sum every row once.
        outer //= operation.shapes[0].dims[0]
    total += times * 2 * inner * outer
  return total
