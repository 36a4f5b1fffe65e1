"""Files of Hugging Face's safetensors format, one or several in a folder.

A file is the length of a header (8 bytes, little-endian), the header as JSON
and the tensors without gaps. The header says of each tensor its type, shape and
range of bytes; `__metadata__` holds strings. An index names the file of each
tensor where there are several.
"""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.weights import tensors

ONE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

_METADATA = '__metadata__'
# A header takes about 20 times its size when it is parsed, at worst.
_MAX_HEADER = 1 << 25
# Bytes that are copied at a time.
_COPIED = 1 << 24
_TYPES = {
  'F64': 'float64',
  'F32': 'float32',
  'F16': 'float16',
  'BF16': 'bfloat16',
  'I64': 'int64',
  'I32': 'int32',
  'I16': 'int16',
  'I8': 'int8',
  'U64': 'uint64',
  'U32': 'uint32',
  'U16': 'uint16',
  'U8': 'uint8',
  'BOOL': 'bool',
}
_CODES = {name: code for code, name in _TYPES.items()}


def open_folder(path: str | os.PathLike) -> dict[str, tensors.Tensor]:
  """The tensors of a model's folder, in one file or those of an index.

  Raises:
    ConfigError: there are none, or a file is not as the format says.
  """
  folder = pathlib.Path(path)
  if os.path.lexists(folder / INDEX):
    return _open_shards(folder)
  if os.path.lexists(folder / ONE):
    return open_file(folder / ONE)
  raise config_lib.ConfigError(
    f'{folder} holds neither {ONE} nor {INDEX}; pickled weights (.bin, .pt) '
    'are not read'
  )


def open_file(path: str | os.PathLike) -> dict[str, tensors.Tensor]:
  """The tensors of one file.

  Raises:
    ConfigError: it is not as the format says.
  """
  file = tensors.File(path)
  header, start = _header(file)
  header.pop(_METADATA, None)
  found, ranges = {}, []
  for name, entry in header.items():
    form, shape, begin, end = _entry(file, name, entry)
    tensors.check_shape(file, name, shape, form)
    size = form.size_of(shape)
    if end - begin != size:
      file.fail(
        f'tensor {tensors.quoted(name)} takes {size:,} bytes and has '
        f'{end - begin:,}'
      )
    ranges.append((begin, end, name))
    found[name] = tensors.Tensor(tuple(shape), form, file, start + begin)
  previous = 0
  for begin, end, name in sorted(ranges):
    if begin != previous:
      file.fail(
        f'tensor {tensors.quoted(name)} begins at {begin:,}, where the one '
        f'before it ends at {previous:,}'
      )
    previous = end
  if start + previous != file.size:
    file.fail(f'has {file.size:,} bytes; the header says {start + previous:,}')
  return found


def metadata(path: str | os.PathLike) -> dict[str, Any]:
  """What stands beside the tensors of one file.

  Raises:
    ConfigError: it is not as the format says.
  """
  file = tensors.File(path)
  found = _header(file)[0].get(_METADATA, {})
  if not isinstance(found, dict):
    file.fail(f'{_METADATA} is no object')
  return found


def _header(file: tensors.File) -> tuple[dict[str, Any], int]:
  """The header of a file, and where its tensors begin."""
  length = int.from_bytes(file.read(0, 8), 'little')
  if length > min(_MAX_HEADER, file.size - 8):
    file.fail(f'is no safetensors file: a header of {length:,} bytes')
  return _parse(file.path, bytes(file.read(8, length))), 8 + length


def _entry(file: tensors.File, name: str, entry: Any):
  """(format, shape, begin, end) of a tensor of the header."""
  match entry:
    case {'dtype': str(code), 'shape': [*shape], 'data_offsets': [begin, end]}:
      if code not in _TYPES:
        file.fail(
          f'tensor {tensors.quoted(name)} is of type {tensors.quoted(code)}; '
          f'accepted: {", ".join(_TYPES)}'
        )
      if tensors.is_natural(begin) and tensors.is_natural(end):
        return tensors.PLAIN[_TYPES[code]], shape, begin, end
  return file.fail(
    f'tensor {tensors.quoted(name)} has no dtype, shape and data_offsets'
  )


def _parse(path: pathlib.Path, content: bytes) -> dict[str, Any]:
  """A JSON object in which no name occurs twice."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
      raise ValueError('a name occurs twice')
    return found

  try:
    parsed = json.loads(content.decode(), object_pairs_hook=unique)
  except host.MALFORMED as error:
    raise config_lib.ConfigError(
      f'{path}: its JSON is damaged: {str(error)[:200]}'
    ) from error
  if not isinstance(parsed, dict):
    raise config_lib.ConfigError(f'{path}: its JSON is no object')
  return parsed


def _open_shards(folder: pathlib.Path) -> dict[str, tensors.Tensor]:
  index = tensors.File(folder / INDEX)
  if index.size > _MAX_HEADER:
    index.fail(f'is larger than {_MAX_HEADER:,} bytes')
  content = bytes(index.read(0, index.size))
  files = _parse(index.path, content).get('weight_map')
  if not isinstance(files, dict) or not all(map(_is_file_name, files.values())):
    index.fail(
      'weight_map does not name a .safetensors file of this folder for each '
      'tensor'
    )
  found: dict[str, tensors.Tensor] = {}
  for file_name in sorted(set(files.values())):
    for name, tensor in open_file(folder / file_name).items():
      if files.get(name) != file_name:
        tensor.file.fail(
          f'tensor {tensors.quoted(name)} is not of this file in {INDEX}'
        )
      found[name] = tensor
  if missing := sorted(set(files) - set(found)):
    raise config_lib.ConfigError(
      f'{folder / files[missing[0]]}: tensor {tensors.quoted(missing[0])} is '
      f'missing, and {len(missing) - 1} more of {INDEX}'
    )
  return found


def _is_file_name(name: object) -> bool:
  return (
    isinstance(name, str)
    and name.endswith('.safetensors')
    and name.isprintable()
    and len(name) < 200
    and not set(name) & set('/\\:')
  )


def write_folder(
  path: str | os.PathLike,
  arrays: Iterable[tuple[str, np.ndarray]],
  metadata: Mapping[str, str] | None = None,
  shard_bytes: int = 5 * 10**9,
):
  """Writes the tensors of a model, into several files if they are large.

  Files get their names once all of them are complete.

  Args:
    path: of the folder, which is made if it does not exist.
    arrays: names and tensors, of which one at a time is in memory.
    metadata: as of `write_file`.
    shard_bytes: of the tensors in a file, which holds at least one.

  Raises:
    ConfigError: the folder holds weights already, or as of `write_file`.
    OSError: a file cannot be written.
  """
  folder = pathlib.Path(path)
  for name in (ONE, INDEX):
    if os.path.lexists(folder / name):
      raise config_lib.ConfigError(f'{folder / name} exists')
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder, prefix='.draft_') as draft:
    shards = [_Shard(pathlib.Path(draft, '0'))]
    shard_of = {}
    for name, array in arrays:
      shard = shards[-1]
      if shard.size and shard.size + array.nbytes > shard_bytes:
        shard.finish(metadata)
        shard = _Shard(pathlib.Path(draft, str(len(shards))))
        shards.append(shard)
      if name in shard_of:
        raise config_lib.ConfigError(f'tensor {name} is written twice')
      shard_of[name] = len(shards) - 1
      shard.add(name, array)
    shards[-1].finish(metadata)
    names = [ONE]
    if len(shards) > 1:
      names = [
        f'model-{i + 1:05}-of-{len(shards):05}.safetensors'
        for i in range(len(shards))
      ]
    for shard, name in zip(shards, names, strict=True):
      shard.path.replace(folder / name)
  if len(shards) > 1:
    index = {
      'metadata': {'total_size': sum(shard.size for shard in shards)},
      'weight_map': {name: names[i] for name, i in shard_of.items()},
    }
    host.replace_file(folder / INDEX, json.dumps(index, indent=2).encode())


def write_file(
  path: str | os.PathLike,
  arrays: Iterable[tuple[str, np.ndarray]],
  metadata: Mapping[str, str] | None = None,
):
  """Writes tensors to one file, in place of what is there.

  Args:
    path: of the file.
    arrays: names and tensors, of which one at a time is in memory.
    metadata: strings beside the tensors; None: {'format': 'pt'}, without which
      transformers refuses a file.

  Raises:
    ConfigError: a name occurs twice, or a type is not one of safetensors.
    OSError: the file cannot be written.
  """
  path = pathlib.Path(path)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.draft_') as draft:
    shard = _Shard(pathlib.Path(draft, '0'))
    for name, array in arrays:
      shard.add(name, array)
    shard.finish(metadata)
    shard.path.replace(path)


class _Shard:
  """A file that is written.

  The header comes before the tensors and is known after them, so they go to a
  file of their own first. There they come in any order; in the end those of
  wide types come first, since readers want them at multiples of their width.

  Attributes:
    path: of the file, once it is finished.
    size: bytes of the tensors.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.size = 0
    self._entries: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
    self._data = path.with_suffix('.data')
    self._data.touch(exist_ok=False)

  def add(self, name: str, array: np.ndarray):
    """Adds a tensor."""
    array = np.asarray(array)
    if array.dtype.name not in _CODES:
      raise config_lib.ConfigError(
        f'tensor {name} is of type {array.dtype.name}; accepted: '
        f'{", ".join(_CODES)}'
      )
    if name in self._entries or name == _METADATA:
      raise config_lib.ConfigError(f'tensor {name} is written twice')
    self._entries[name] = (array.dtype, array.shape, self.size)
    little = array.dtype.newbyteorder('<')
    content = np.ascontiguousarray(array, little).reshape(-1).view(np.uint8)
    with self._data.open('ab') as file:
      file.write(memoryview(content))
    self.size += array.nbytes

  def finish(self, metadata: Mapping[str, str] | None):
    """Writes the file."""
    header: dict[str, Any] = {
      _METADATA: {'format': 'pt'} if metadata is None else dict(metadata)
    }
    parts, end = [], 0
    for name, (dtype, shape, start) in sorted(
      self._entries.items(), key=lambda item: -item[1][0].itemsize
    ):
      size = math.prod(shape) * dtype.itemsize
      header[name] = {
        'dtype': _CODES[dtype.name],
        'shape': shape,
        'data_offsets': [end, end + size],
      }
      parts.append((start, size))
      end += size
    content = json.dumps(header, separators=(',', ':')).encode()
    content += b' ' * (-len(content) % 8)
    with self._data.open('rb') as data, self.path.open('xb') as file:
      file.write(len(content).to_bytes(8, 'little') + content)
      for start, size in parts:
        data.seek(start)
        while size:
          part = data.read(min(size, _COPIED))
          file.write(part)
          size -= len(part)
      file.flush()
      os.fsync(file.fileno())
    self._data.unlink()
