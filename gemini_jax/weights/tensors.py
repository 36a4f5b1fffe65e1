"""Tensors in files, read by rows.

Files come from outside: whoever makes a `Tensor` has checked that its bytes lie
inside the file. Files are read at offsets and never mapped into memory, so that
one which shrinks meanwhile is an error and no signal that ends the process.
"""

import dataclasses
import math
import os
import pathlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host

# Elements that are decoded at a time, which bounds the temporary arrays.
_SLAB = 1 << 18
# Bytes of one call of the system; Linux reads at most 2 GiB.
_CHUNK = 1 << 24
# Of the first byte of an array that XLA's CPU devices use as it is.
_ALIGNMENT = 64
# What numpy can hold: also of an empty tensor, whose other dims take no bytes.
_MAX_DIMS = 8
_MAX_SIZE = 1 << 48


class File:
  """A regular file, open for as long as something refers to this.

  Attributes:
    path: of the file.
    size: in bytes, when it was opened.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the file.

    Raises:
      ConfigError: it does not exist or cannot be read.
    """
    self.path = pathlib.Path(path)
    try:
      host.check_regular(path)
      self._descriptor = os.open(path, os.O_RDONLY)
      weakref.finalize(self, os.close, self._descriptor)
      self.size = os.fstat(self._descriptor).st_size
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise config_lib.ConfigError(f'{self.path}: {reason}') from error

  def fail(self, message: str) -> NoReturn:
    """Raises ConfigError with a message that begins with the path."""
    raise config_lib.ConfigError(f'{self.path}: {message}')

  def read(self, offset: int, size: int) -> bytearray:
    """The bytes at an offset, all of which must be there.

    Raises:
      ConfigError: they are not.
    """
    if offset + size > self.size:
      self.fail(f'ends after {self.size:,} bytes; {offset + size:,} are needed')
    content = bytearray(size)
    self.read_into(memoryview(content), offset)
    return content

  def read_into(self, buffer: memoryview, offset: int):
    """Fills a buffer of bytes with what stands at an offset.

    Raises:
      ConfigError: the file ends before, or cannot be read.
    """
    done = 0
    while done < len(buffer):
      try:
        size = min(_CHUNK, len(buffer) - done)
        part = os.pread(self._descriptor, size, offset + done)
      except OSError as error:
        self.fail(str(error.strerror))
      if not part:
        self.fail(f'ends after {offset + done:,} bytes; it became shorter')
      buffer[done : done + len(part)] = part
      done += len(part)


@dataclasses.dataclass(frozen=True)
class Format:
  """How the elements of a tensor are stored.

  Attributes:
    name: what `Tensor.dtype` says.
    dtype: numpy's type of the elements that are read.
    block: how many elements are stored together; it divides the last dim.
    num_bytes: of a block.
    decode: uint8 [N, num_bytes] to [N, block]; None: bytes are elements.
    encode: [N, block] to uint8 [N, num_bytes]; None: this is only read.
  """

  name: str
  dtype: np.dtype
  block: int
  num_bytes: int
  decode: Callable[[np.ndarray], np.ndarray] | None = None
  encode: Callable[[np.ndarray], np.ndarray] | None = None

  def size_of(self, shape: Sequence[int]) -> int:
    """Bytes of a tensor of that shape."""
    return math.prod(shape) // self.block * self.num_bytes


def _plain(kind: type) -> Format:
  dtype = np.dtype(kind)

  def encode(values: np.ndarray) -> np.ndarray:
    stored = values.astype(dtype)
    if dtype.itemsize < 4 and not np.array_equal(
      np.isfinite(values), np.isfinite(stored)
    ):
      raise FormatError(f'has values beyond the range of {dtype.name}')
    return stored.view(np.uint8)

  return Format(dtype.name, dtype, 1, dtype.itemsize, encode=encode)


PLAIN = {
  form.name: form
  for form in (
    *map(_plain, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)),
    *(
      Format(np.dtype(kind).name, np.dtype(kind), 1, np.dtype(kind).itemsize)
      for kind in 'qihbQIHB'
    ),
    # Bytes other than 0 and 1 are no booleans of numpy.
    Format('bool', np.dtype(bool), 1, 1, decode=lambda raw: raw != 0),
  )
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file.

  Attributes:
    shape: row-major, as numpy sees it.
    form: how it is stored.
    file: where it is.
    offset: of its first byte in the file.
  """

  shape: tuple[int, ...]
  form: Format
  file: File = dataclasses.field(repr=False)
  offset: int

  @property
  def dtype(self) -> str:
    """How it is stored: 'float32', 'bfloat16', 'q4_1' and so on."""
    return self.form.name

  def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows along the first dim, as a slice takes them.

    Only their bytes are read. What is quantised comes as float32, all else in
    its own type.

    Raises:
      ConfigError: the file became shorter or cannot be read.
    """
    num_rows = self.shape[0] if self.shape else 1
    start, stop, _ = slice(start, stop).indices(num_rows)
    stop = max(start, stop)
    row = math.prod(self.shape[1:])
    first, last = start * row, stop * row
    form = self.form
    begin, end = first // form.block, -(-last // form.block)
    blocks = empty((end - begin, form.block), form.dtype)
    if form.decode is None:
      self._fill(blocks, begin)
    else:
      step = max(1, _SLAB // form.block)
      raw = np.empty((min(step, end - begin), form.num_bytes), np.uint8)
      for index in range(0, end - begin, step):
        part = raw[: end - begin - index]
        self._fill(part, begin + index)
        # A scale that is not finite makes elements that are not.
        with np.errstate(invalid='ignore', over='ignore'):
          blocks[index : index + step] = form.decode(part)
    flat = blocks.reshape(-1)[first - begin * form.block :][: last - first]
    return flat.reshape((stop - start, *self.shape[1:])[: len(self.shape)])

  def _fill(self, array: np.ndarray, block: int):
    """Fills an array with the bytes of the file from a block on."""
    if array.size:
      buffer = memoryview(array.reshape(-1).view(np.uint8))
      self.file.read_into(buffer, self.offset + block * self.form.num_bytes)


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """An array where a CPU device can use its memory, and needs no copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


class FormatError(ValueError):
  """A format cannot hold a value: the message says what the tensor has."""


def quoted(name: object) -> str:
  """A name from a file for a message: one line of limited length."""
  text = str(name)
  return repr(text if len(text) <= 100 else f'{text[:97]}...')


def is_natural(value: object) -> bool:
  """Whether it is an integer, no boolean, and not negative."""
  return type(value) is int and value >= 0


def check_shape(file: File, name: str, shape: Sequence[Any], form: Format):
  """Checks that a shape from a file is one, and holds whole blocks.

  Raises:
    ConfigError: it is not; the message names file and tensor.
  """
  known = len(shape) <= _MAX_DIMS and all(map(is_natural, shape))
  if not known or math.prod(max(size, 1) for size in shape) > _MAX_SIZE:
    file.fail(f'tensor {quoted(name)} has no possible shape')
  if form.block > 1 and (not shape or shape[-1] % form.block):
    file.fail(
      f'tensor {quoted(name)} is stored as {form.name} in blocks of '
      f'{form.block}, which do not divide its rows'
    )


def write_encoded(
  values: np.ndarray, form: Format, write: Callable[[memoryview], object]
):
  """Writes an array as a format stores it, a part at a time.

  Raises:
    FormatError: the format cannot hold a value.
  """
  if form.encode is None:
    raise FormatError(
      f'would have to be quantised to {form.name}, which is only read'
    )
  blocks = np.ascontiguousarray(values).reshape(-1, form.block)
  step = max(1, _SLAB // form.block)
  for index in range(0, len(blocks), step):
    # Formats look for what is not finite themselves.
    with np.errstate(invalid='ignore', over='ignore'):
      raw = form.encode(blocks[index : index + step])
    write(memoryview(np.ascontiguousarray(raw).reshape(-1)))
