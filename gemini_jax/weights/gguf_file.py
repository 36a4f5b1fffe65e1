"""GGUF, the file format of llama.cpp: metadata and tensors in one file.

Versions 2 and 3, little-endian: a header with counts, typed values by name,
what is known of each tensor (name, dims from the fastest to the slowest, type,
offset), and the tensors, aligned.
"""

import dataclasses
import os
import pathlib
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.weights import gguf_blocks, gguf_values, tensors

_MAGIC = b'GGUF'
_ALIGNMENT = 'general.alignment'
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4

_FORMATS = {
  0: 'float32',
  1: 'float16',
  2: 'q4_0',
  3: 'q4_1',
  6: 'q5_0',
  7: 'q5_1',
  8: 'q8_0',
  12: 'q4_k',
  13: 'q5_k',
  14: 'q6_k',
  24: 'int8',
  25: 'int16',
  26: 'int32',
  27: 'int64',
  28: 'float64',
  30: 'bfloat16',
}
# Known to llama.cpp and not to us, for messages.
_OTHERS = {
  9: 'q8_1',
  10: 'q2_k',
  11: 'q3_k',
  15: 'q8_k',
  16: 'iq2_xxs',
  17: 'iq2_xs',
  18: 'iq3_xxs',
  19: 'iq1_s',
  20: 'iq4_nl',
  21: 'iq3_s',
  22: 'iq2_s',
  23: 'iq4_xs',
  29: 'iq1_m',
  34: 'tq1_0',
  35: 'tq2_0',
  39: 'mxfp4',
  40: 'nvfp4',
}
_NUMBER_OF_FORMAT = {name: number for number, name in _FORMATS.items()}
_BY_NAME = tensors.PLAIN | gguf_blocks.BLOCKS


@dataclasses.dataclass(frozen=True)
class GGUF:
  """What a file holds.

  Attributes:
    metadata: Python's numbers, booleans, strings, and lists of them.
    tensors: by name.
  """

  metadata: dict[str, Any]
  tensors: dict[str, tensors.Tensor]


def open_gguf(path: str | os.PathLike) -> GGUF:
  """Reads the metadata; tensors are read later, by rows.

  Raises:
    ConfigError: the file is not as the format says, or has a tensor of a type
      that is not supported.
  """
  file = tensors.File(path)
  cursor = gguf_values.Cursor(file)
  if cursor.take(4) != _MAGIC:
    file.fail('is no GGUF file: it does not begin with GGUF')
  version = cursor.number('I')
  if version not in (2, 3):
    file.fail(f'is GGUF version {version:#x}; accepted: 2, 3 (little-endian)')
  num_tensors, num_values = cursor.number('Q'), cursor.number('Q')
  cursor.check_count(num_values, 13)
  metadata: dict[str, Any] = {}
  for _ in range(num_values):
    name = cursor.string()
    if not name or name in metadata:
      file.fail(f'metadata {tensors.quoted(name)} is empty or occurs twice')
    metadata[name] = cursor.value(cursor.number('I'))
  if metadata.get('split.count', 1) != 1:
    file.fail(
      'is a part of several; merge them first: llama-gguf-split --merge'
    )
  cursor.check_count(num_tensors, 24)
  infos = {}
  for _ in range(num_tensors):
    name = cursor.string()
    if not name or name in infos:
      file.fail(f'tensor {tensors.quoted(name)} is empty or occurs twice')
    infos[name] = _info(file, cursor, name)
  alignment = _alignment(file, metadata)
  start = cursor.position + -cursor.position % alignment
  return GGUF(metadata, _tensors(file, infos, start, alignment))


# Shape, format and offset of a tensor.
_Info = tuple[tuple[int, ...], tensors.Format, int]


def _info(file: tensors.File, cursor: gguf_values.Cursor, name: str) -> _Info:
  num_dims = cursor.number('I')
  if num_dims > _MAX_DIMS:
    file.fail(f'tensor {tensors.quoted(name)} has {num_dims:,} dims')
  shape = tuple(reversed([cursor.number('Q') for _ in range(num_dims)]))
  kind, offset = cursor.number('I'), cursor.number('Q')
  if kind not in _FORMATS:
    file.fail(
      f'tensor {tensors.quoted(name)} is of type {_OTHERS.get(kind, kind)}; '
      f'accepted: {", ".join(_FORMATS.values())}'
    )
  form = _BY_NAME[_FORMATS[kind]]
  tensors.check_shape(file, name, shape, form)
  return shape, form, offset


def _alignment(file: tensors.File, metadata: dict[str, Any]) -> int:
  alignment = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
  if not tensors.is_natural(alignment) or alignment.bit_count() != 1:
    file.fail(
      f'{_ALIGNMENT}={tensors.quoted(alignment)} must be a power of two'
    )
  return alignment


def _tensors(
  file: tensors.File,
  infos: dict[str, _Info],
  start: int,
  alignment: int,
) -> dict[str, tensors.Tensor]:
  """The tensors, whose bytes lie in the file and belong to one each."""
  found, ranges = {}, []
  for name, (shape, form, offset) in infos.items():
    end = offset + form.size_of(shape)
    if offset % alignment:
      file.fail(
        f'tensor {tensors.quoted(name)} begins at {offset:,}, which is no '
        f'multiple of {alignment}'
      )
    if start + end > file.size:
      file.fail(
        f'tensor {tensors.quoted(name)} ends at {start + end:,}, the file at '
        f'{file.size:,}'
      )
    ranges.append((offset, end, name))
    found[name] = tensors.Tensor(shape, form, file, start + offset)
  previous = 0
  for begin, end, name in sorted(ranges):
    if begin < previous:
      file.fail(f'tensor {tensors.quoted(name)} overlaps with another')
    previous = end
  return found


# What `write_gguf` takes: name, shape, format, and what makes the tensor.
Entry = tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]


def write_gguf(
  path: str | os.PathLike,
  metadata: Mapping[str, Any],
  entries: Iterable[Entry],
):
  """Writes a file of version 3, in place of what is there once it is complete.

  Args:
    path: of the file.
    metadata: values by name, of the types that `gguf_values.encoded_value`
      chooses.
    entries: of each tensor the name, the shape, the format ('float32',
      'float16', 'bfloat16', 'q8_0', 'q4_0' or 'q4_1') and a function that makes
      it. One tensor at a time is in memory.

  Raises:
    ConfigError: the format cannot hold a value, or a tensor's values; the
      message names it.
    OSError: the file cannot be written.
  """
  path, entries = pathlib.Path(path), list(entries)
  alignment = metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT)
  header = [
    _MAGIC,
    struct.pack('<IQQ', 3, len(entries), len(metadata)),
    *(_encoded_item(path, *item) for item in metadata.items()),
  ]
  offset = 0
  for name, shape, form_name, _ in entries:
    form = _BY_NAME[form_name]
    if form.block > 1 and (not shape or shape[-1] % form.block):
      _cannot(path, name, f'in blocks of {form.block} ({form_name}): {shape}')
    header += [
      gguf_values.encoded_string(name),
      struct.pack(f'<I{len(shape)}Q', len(shape), *reversed(shape)),
      struct.pack('<IQ', _NUMBER_OF_FORMAT[form_name], offset),
    ]
    size = form.size_of(shape)
    offset += size + -size % alignment
  content = b''.join(header)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.draft_') as draft:
    part = pathlib.Path(draft, 'gguf')
    with part.open('xb') as file:
      file.write(content + bytes(-len(content) % alignment))
      for name, shape, form_name, make in entries:
        form = _BY_NAME[form_name]
        array = np.asarray(make())
        if array.shape != tuple(shape):
          raise ValueError(f'{name} is of shape {array.shape}, not {shape}')
        try:
          tensors.write_encoded(array, form, file.write)
        except tensors.FormatError as error:
          _cannot(path, name, f'as {form_name}: it {error}')
        file.write(bytes(-form.size_of(shape) % alignment))
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)


def _cannot(path: pathlib.Path, name: str, reason: str) -> NoReturn:
  raise config_lib.ConfigError(
    f'{path}: tensor {tensors.quoted(name)} cannot be stored {reason}'
  )


def _encoded_item(path: pathlib.Path, name: str, value: Any) -> bytes:
  """The bytes of metadata: name, type, value."""
  try:
    kind, content = gguf_values.encoded_value(value)
    return gguf_values.encoded_string(name) + struct.pack('<I', kind) + content
  except (*host.MALFORMED, ArithmeticError) as error:
    raise config_lib.ConfigError(
      f'{path}: metadata {tensors.quoted(name)}={tensors.quoted(value)} cannot '
      f'be stored: {error}'
    ) from error
