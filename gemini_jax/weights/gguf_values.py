"""Values as GGUF stores them: numbers, booleans, strings and arrays of them."""

import struct
from typing import Any

import numpy as np

from gemini_jax.weights import tensors

# Metadata takes up to 20 times its size when it is parsed.
_MAX_METADATA = 1 << 26
_MAX_NESTING = 4

_BOOL, _STRING, _ARRAY = 7, 8, 9
# By the number of a value's type, what `struct` calls it.
_NUMBERS = {
  0: 'B',
  1: 'b',
  2: 'H',
  3: 'h',
  4: 'I',
  5: 'i',
  6: 'f',
  _BOOL: '?',
  10: 'Q',
  11: 'q',
  12: 'd',
}
_KIND_OF_DTYPE = {np.dtype(code).name: kind for kind, code in _NUMBERS.items()}
# The fewest bytes of a value.
_SMALLEST = {kind: struct.calcsize(code) for kind, code in _NUMBERS.items()} | {
  _STRING: 8,
  _ARRAY: 12,
}


class Cursor:
  """Reads the values of a file one after the other.

  Whatever it says of lengths and counts is compared with what is left of the
  file before anything is made of that size.

  Attributes:
    position: of the next byte.
  """

  def __init__(self, file: tensors.File):
    self._file = file
    self._end = min(file.size, _MAX_METADATA)
    self._buffer = b''
    self._buffer_start = 0
    self.position = 0

  def take(self, size: int) -> bytes:
    """The next bytes."""
    if size > self._end - self.position:
      self._file.fail(
        f'metadata ends at {self.position:,}; {size:,} more bytes are needed'
      )
    at = self.position - self._buffer_start
    if at + size > len(self._buffer):
      count = min(max(size, 1 << 20), self._file.size - self.position)
      self._buffer = bytes(self._file.read(self.position, count))
      self._buffer_start, at = self.position, 0
    self.position += size
    return self._buffer[at : at + size]

  def check_count(self, count: int, smallest: int):
    """Checks that so many things of that size may still come."""
    left = self._end - self.position
    if count * smallest > left:
      self._file.fail(
        f'metadata says that {count:,} values follow, in {left:,} bytes'
      )

  def number(self, code: str) -> Any:
    """A number, by the code of `struct`."""
    return struct.unpack(f'<{code}', self.take(struct.calcsize(code)))[0]

  def string(self) -> str:
    """A string in UTF-8."""
    start = self.position
    try:
      return self.take(self.number('Q')).decode()
    except UnicodeDecodeError:
      return self._file.fail(f'has a string at {start:,} that is no UTF-8')

  def value(self, kind: int, depth: int = 0) -> Any:
    """A value of a type."""
    return self._values(kind, 1, depth)[0]

  def _values(self, kind: int, count: int, depth: int) -> list[Any]:
    if kind not in _SMALLEST:
      self._file.fail(f'has a value of unknown type {kind}')
    self.check_count(count, _SMALLEST[kind])
    if kind == _STRING:
      return [self.string() for _ in range(count)]
    if kind == _ARRAY:
      if depth == _MAX_NESTING:
        self._file.fail(f'has arrays nested more than {_MAX_NESTING} deep')
      return [self._array(depth + 1) for _ in range(count)]
    raw = self.take(count * _SMALLEST[kind])
    if kind == _BOOL and raw.strip(b'\0\1'):
      self._file.fail('has a boolean that is neither 0 nor 1')
    return np.frombuffer(raw, f'<{_NUMBERS[kind]}').tolist()

  def _array(self, depth: int) -> list[Any]:
    kind, count = self.number('I'), self.number('Q')
    return self._values(kind, count, depth)


def encoded_string(text: str) -> bytes:
  """The bytes of a string: length, UTF-8."""
  content = text.encode()
  return struct.pack('<Q', len(content)) + content


def encoded_value(value: Any) -> tuple[int, bytes]:
  """(type, bytes) of a value.

  Integers become uint32, int32 or 64 bits wide as they need, in lists int32 or
  int64; floats become float32. Numbers and arrays of numpy keep their types.

  Raises:
    host.MALFORMED, ArithmeticError: GGUF has no such value.
  """
  if isinstance(value, str):
    return _STRING, encoded_string(value)
  if not isinstance(value, list | tuple | np.ndarray):
    return _encoded_numbers(value, (np.uint32, np.int32, np.int64, np.uint64))
  first = value[0] if len(value) else 0
  if isinstance(first, str):
    kind, content = _STRING, b''.join(map(encoded_string, value))
  elif isinstance(first, list | tuple):
    kind, content = _ARRAY, b''.join(encoded_value(part)[1] for part in value)
  else:
    kind, content = _encoded_numbers(value, (np.int32, np.int64, np.uint64))
  return _ARRAY, struct.pack('<IQ', kind, len(value)) + content


def _encoded_numbers(
  value: Any, integers: tuple[type[np.integer], ...]
) -> tuple[int, bytes]:
  """(type, bytes) of a number, or of several."""
  array = np.asarray(value)
  if not isinstance(value, np.ndarray | np.generic):
    if array.dtype.kind in 'iu':
      low, high = int(array.min()), int(array.max())
      array = array.astype(
        next(
          kind
          for kind in integers
          if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        )
      )
    elif array.dtype.kind == 'f':
      with np.errstate(over='raise'):
        array = array.astype(np.float32)
  kind = _KIND_OF_DTYPE[array.dtype.name]
  return kind, array.astype(array.dtype.newbyteorder('<')).tobytes()
