"""What a compiled program does, read from its text (HLO).

XLA's own cost analysis counts the body of a loop once; here every operation
counts as often as its loops run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
  'collective-broadcast',
)
# Types narrower than a byte or whose name does not end with their bits.
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's2': 2, 'u2': 2, 'bf16': 16, 'token': 0}
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{\s*$')
_OPCODE = re.compile(r'(?:^|\s)([a-z][a-z0-9\-]*)\(')
_CALLED = re.compile(
  r'(calls|to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
# Passed through while a loop's counter is looked for.
_SAME = ('copy', 'bitcast', 'convert', 'copy-start', 'copy-done')


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of one array: its type, its dims and the rest of its layout."""

  kind: str
  dims: tuple[int, ...]
  layout: str

  @property
  def bytes(self) -> int:
    """Bytes of the array, without padding."""
    bits = _BITS.get(self.kind)
    if bits is None:
      bits = 8 if self.kind.startswith('f8') else 4
      found = re.fullmatch(r'[a-z]+(\d+)', self.kind)
      bits = int(found[1]) if found and not self.kind.startswith('f8') else bits
    return bits * math.prod(self.dims) // 8


@dataclasses.dataclass(frozen=True)
class Operation:
  """One line of a computation."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @property
  def bytes(self) -> int:
    """Bytes of what it gives."""
    return sum(shape.bytes for shape in self.shapes)

  @functools.cached_property
  def called(self) -> dict[str, list[str]]:
    """Computations that it calls, by what they are for."""
    called: dict[str, list[str]] = {}
    for key, value in _CALLED.findall(self.attributes):
      names = [
        name.strip().lstrip('%') for name in value.strip('{}').split(',')
      ]
      called.setdefault(key, []).extend(name for name in names if name)
    return called

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regular expression in the attributes."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else None

  @property
  def source(self) -> str:
    """Where in the model it comes from, as far as is known."""
    return self.attribute(r'op_name="([^"]*)"') or self.name


Computation = dict[str, Operation]


@dataclasses.dataclass(frozen=True)
class Program:
  """A module: its computations by name, and where it begins."""

  computations: dict[str, Computation]
  entry: str

  def walk(
    self, name: str | None = None, times: float = 1
  ) -> Iterator[tuple[Operation, Computation, float]]:
    """Operations, the computation of each, and how often it runs.

    Not what is inside of fusions and reductions; of branches, the one with
    most products.
    """
    computation = self.computations.get(name or self.entry, {})
    for operation in computation.values():
      if operation.opcode == 'while':
        count = trip_count(self, computation, operation)
        yield from self.walk(operation.called['body'][0], times * (count or 1))
        continue
      yield operation, computation, times
      called = operation.called
      if operation.opcode == 'conditional':
        branches = [name for names in called.values() for name in names]
        most = max(branches, key=lambda name: flops(self, name), default=None)
        if most is not None:
          yield from self.walk(most, times)
      elif operation.opcode in ('call', 'call-start', 'async-start'):
        for names in called.values():
          for callee in names:
            yield from self.walk(callee, times)


def parse(text: str) -> Program:
  """The program of a module's text."""
  computations: dict[str, Computation] = {}
  entry, current = '', None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header and ' = ' not in line.split('{')[0]:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
      continue
    operation = _operation(line.strip())
    if current is not None and operation is not None:
      for name in operation.operands:
        if '#' in name and name not in current:
          current[name] = _element(current, name)
      current[operation.name] = operation
  return Program(computations, entry)


def _operation(line: str) -> Operation | None:
  is_root = line.startswith('ROOT ')
  name, equals, rest = line.removeprefix('ROOT ').partition(' = ')
  if not equals:
    return None
  # The type is a tuple in parentheses, or one word.
  if rest.startswith('('):
    end = _closing(rest, 0) + 1
    kind, rest = rest[:end], rest[end:].strip()
  else:
    kind, _, rest = rest.partition(' ')
  opcode = _OPCODE.match(rest)
  if not opcode:
    return None
  end = _closing(rest, opcode.end() - 1)
  arguments = rest[opcode.end() : end]
  shapes = tuple(
    Shape(kind, tuple(int(n.strip('<=')) for n in dims.split(',') if n), layout)
    for kind, dims, layout in _SHAPE.findall(kind)
  )
  return Operation(
    name.lstrip('%'),
    opcode[1],
    shapes,
    tuple(re.findall(r'%([\w.\-#]+)', arguments)),
    arguments,
    rest[end + 1 :],
    is_root,
  )


def _element(computation: Computation, name: str) -> Operation:
  """What `tuple#1`, the short form of later releases, stands for."""
  whole, _, index = name.partition('#')
  operation = computation.get(whole)
  shapes = operation.shapes[int(index) :][:1] if operation else ()
  return Operation(
    name,
    'get-tuple-element',
    shapes,
    (whole,),
    f'%{whole}',
    f', index={index}',
    is_root=False,
  )


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if depth == 0:
      return i
  return len(text)


def root(computation: Computation) -> Operation | None:
  """What a computation returns."""
  return next((o for o in computation.values() if o.is_root), None)


def trip_count(
  program: Program, computation: Computation, loop: Operation
) -> int | None:
  """How often a while loop runs; None where its text does not tell.

  XLA's note if there is one, else what the condition compares the counter
  with, where the counter begins and what the body adds to it.
  """
  known = loop.attribute(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
  if known:
    return int(known)
  condition = program.computations[loop.called['condition'][0]]
  body = program.computations[loop.called['body'][0]]
  compare = root(condition)
  while compare and compare.opcode in ('fusion', 'call'):
    inner = [name for names in compare.called.values() for name in names]
    condition = _inlined(program.computations[inner[0]], condition, compare)
    compare = root(condition)
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


def _inlined(inner: Computation, outer: Computation, call: Operation):
  """A called computation whose parameters are the caller's operations."""
  replaced = {}
  for name, operation in inner.items():
    if operation.opcode == 'parameter' and operation.arguments.isdigit():
      operand = outer.get(call.operands[int(operation.arguments)])
      operation = operand or operation
    replaced[name] = operation
  return replaced | {k: v for k, v in outer.items() if k not in replaced}


def _step(body: Computation, counter: int) -> int:
  """What one round adds to its counter."""
  end, total = root(body), 0
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


def _through(computation: Computation, name: str) -> Operation | None:
  operation = computation.get(name)
  while operation and operation.opcode in _SAME:
    operation = computation.get(operation.operands[0])
  return operation


def _constant(operation: Operation | None) -> int | None:
  if operation is None or operation.opcode != 'constant':
    return None
  try:
    return int(operation.arguments)
  except ValueError:
    return None


def flops(
  program: Program, name: str | None = None, grouped: float = 1.0
) -> float:
  """FLOPs of the matrix products, every loop counted in full.

  Args:
    program: what runs.
    name: the computation to begin with; None: the entry.
    grouped: of the rows of a ragged product, the share that has a group.
  """
  total = 0.0
  for operation, computation, times in program.walk(name):
    if operation.opcode not in ('dot', 'ragged-dot'):
      continue
    left: Any = computation.get(operation.operands[0])
    dims = operation.attribute(r'lhs_contracting_dims=\{([\d,]*)\}') or ''
    inner = math.prod(left.shapes[0].dims[int(d)] for d in dims.split(',') if d)
    outer = math.prod(operation.shapes[0].dims)
    if operation.opcode == 'ragged-dot':
      times *= grouped
      if operation.attribute(r'lhs_ragged_dims=\{([\d,]*)\}') == dims:
        # A product for each group, of its own rows: together, all rows once.
        outer //= operation.shapes[0].dims[0]
    total += times * 2 * inner * outer
  return total
