"""How often the loops of a program run."""

from gemini_jax.plan import hlo

# Operations that do not change a value, skipped in the search of a counter.
_SAME = ('copy', 'bitcast', 'convert', 'copy-start', 'copy-done')


def trip_count(
  program: hlo.Program, computation: hlo.Computation, loop: hlo.Operation
) -> int | None:
  """The number of iterations of a while loop; None if it cannot be inferred.

  From XLA's annotation if there is one, else from the limit in the condition,
  the initial value of the counter and its increment in the body.
  """
  known = loop.attribute(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
  if known:
    return int(known)
  condition = program.computations[loop.called['condition'][0]]
  body = program.computations[loop.called['body'][0]]
  compare = hlo.root(condition)
  while compare and compare.opcode in ('fusion', 'call'):
    inner = [name for names in compare.called.values() for name in names]
    condition = _inlined(program.computations[inner[0]], condition, compare)
    compare = hlo.root(condition)
  if compare is None or compare.opcode != 'compare':
    return None
  init = computation.get(loop.operands[0])
  first = init.operands if init and init.opcode == 'tuple' else ()

  def value(name: str) -> tuple[int | None, int | None]:
    """A constant, or the index of a loop variable."""
    operation = _through(condition, name)
    if operation is None:
      return None, None
    if operation.opcode == 'get-tuple-element':
      return None, int(operation.attribute(r'index=(\d+)') or 0)
    return _constant(operation), None

  def initial(index: int | None) -> int | None:
    if index is None or index >= len(first):
      return None
    return _constant(_through(computation, first[index]))

  direction = compare.attribute(r'direction=(\w+)')
  left, right = (value(name) for name in compare.operands[:2])
  if direction in ('GT', 'GE'):
    left, right = right, left
  counter = left[1]
  limit = right[0] if right[0] is not None else initial(right[1])
  if counter is None or limit is None:
    return None
  last = limit + (direction in ('LE', 'GE'))
  rounds = -(((initial(counter) or 0) - last) // _step(body, counter))
  return max(0, rounds)


def _inlined(
  inner: hlo.Computation, outer: hlo.Computation, call: hlo.Operation
):
  """A called computation with parameters replaced by the caller's operands."""
  replaced = {}
  for name, operation in inner.items():
    if operation.opcode == 'parameter' and operation.arguments.isdigit():
      operand = outer.get(call.operands[int(operation.arguments)])
      operation = operand or operation
    replaced[name] = operation
  return replaced | {k: v for k, v in outer.items() if k not in replaced}


def _step(body: hlo.Computation, counter: int) -> int:
  """The increment of the counter in one iteration."""
  end, total = hlo.root(body), 0
  if end is None or end.opcode != 'tuple':
    return 1
  operation = body.get(end.operands[counter])
  while operation and operation.opcode in ('add', *_SAME):
    following = operation.operands[0]
    if operation.opcode == 'add':
      values = [_constant(body.get(name)) for name in operation.operands]
      known = [i for i, number in enumerate(values) if number is not None]
      if not known:
        break
      total += values[known[0]] or 0
      following = operation.operands[1 - known[0]]
    operation = body.get(following)
  return total or 1


def _through(computation: hlo.Computation, name: str) -> hlo.Operation | None:
  operation = computation.get(name)
  while operation and operation.opcode in _SAME:
    operation = computation.get(operation.operands[0])
  return operation


def _constant(operation: hlo.Operation | None) -> int | None:
  if operation is None or operation.opcode != 'constant':
    return None
  try:
    return int(operation.arguments)
  except ValueError:
    return None
