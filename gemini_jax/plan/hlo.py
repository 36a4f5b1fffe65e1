"""Parses the text of a compiled program (HLO) into operations."""

import dataclasses
import functools
import math
import re

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
  'collective-broadcast',
)
# Types whose name does not end with their number of bits.
_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's2': 2, 'u2': 2, 'bf16': 16, 'token': 0}
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{\s*$')
_OPCODE = re.compile(r'(?:^|\s)([a-z][a-z0-9\-]*)\(')
_CALLED = re.compile(
  r'(calls|to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of an array: type, dims and layout."""

  kind: str
  dims: tuple[int, ...]
  layout: str

  @property
  def bytes(self) -> int:
    """Bytes of the array, without padding."""
    bits = _BITS.get(self.kind)
    if bits is None:
      bits = 8 if self.kind.startswith('f8') else 4
      match = re.fullmatch(r'[a-z]+(\d+)', self.kind)
      bits = int(match[1]) if match and not self.kind.startswith('f8') else bits
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
    """Bytes of the results."""
    return sum(shape.bytes for shape in self.shapes)

  @functools.cached_property
  def called(self) -> dict[str, list[str]]:
    """Names of the computations that it calls, by their role."""
    called: dict[str, list[str]] = {}
    for key, value in _CALLED.findall(self.attributes):
      names = [
        name.strip().lstrip('%') for name in value.strip('{}').split(',')
      ]
      called.setdefault(key, []).extend(name for name in names if name)
    return called

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regular expression in the attributes."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else None

  @property
  def source(self) -> str:
    """The operation of the model that it comes from, if known."""
    return self.attribute(r'op_name="([^"]*)"') or self.name


Computation = dict[str, Operation]


@dataclasses.dataclass(frozen=True)
class Program:
  """A module: its computations by name, and the name of the entry."""

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Program:
  """The program of an HLO text."""
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
  """The operation that `tuple#1`, the short form of later releases, means."""
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
  """Index of the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if depth == 0:
      return i
  return len(text)


def root(computation: Computation) -> Operation | None:
  """What a computation returns."""
  return next((o for o in computation.values() if o.is_root), None)
