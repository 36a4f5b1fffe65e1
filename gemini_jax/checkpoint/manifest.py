"""The manifest of a checkpoint, and whether the files are those it lists.

A manifest is JSON: what the caller put in, `step`, `metric`, `arrays` (type
and shape of each), `files` (size and checksum of each) and its own checksum.
"""

import json
import os
import pathlib
import zlib
from typing import Any

import jax

from gemini_jax import host
from gemini_jax.checkpoint import storage

FILE = 'manifest.json'
# The folder of the arrays, beside it.
STATE = 'state'
_CHUNK_BYTES = 1 << 24


class DamageError(Exception):
  """A file of a checkpoint is missing or not what was written."""


def read(folder: pathlib.Path, step: int) -> dict[str, Any]:
  """The manifest of a checkpoint.

  Raises:
    DamageError: it is not readable, or not that of this step.
  """
  try:
    manifest = json.loads(host.read_file(folder / FILE))
    checksum = manifest.pop('checksum')
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise DamageError(f'{FILE} is not readable: {error!r}') from error
  if checksum != zlib.crc32(encode(manifest)):
    raise DamageError(f'{FILE} has changed since it was written')
  _check_fields(manifest, step)
  return manifest


def write(folder: pathlib.Path, manifest: dict[str, Any]):
  """Writes the manifest of a checkpoint in one piece.

  Raises:
    OSError: it cannot be written.
  """
  # Encoded once: the caller may change what it gave.
  manifest = json.loads(encode(manifest))
  manifest['checksum'] = zlib.crc32(encode(manifest))
  host.replace_file(folder / FILE, encode(manifest))


def encode(values: dict[str, Any]) -> bytes:
  """JSON of a manifest or of a part of it."""
  return json.dumps(values, indent=1).encode()


def file_names(folder: pathlib.Path) -> list[str]:
  """The files of the arrays, relative to the folder of the checkpoint."""
  return sorted(
    str(file.relative_to(folder))
    for file in (folder / STATE).rglob('*')
    if file.is_file()
  )


def describe_files(folder: pathlib.Path) -> dict[str, list[int]]:
  """Size and checksum of this process's share of the files."""
  return {
    name: [(folder / name).stat().st_size, _checksum(folder / name)]
    for name in _share(file_names(folder))
  }


def verify(folder: pathlib.Path, manifest: dict[str, Any]):
  """Reads this process's share of the files back, a piece at a time.

  Raises:
    DamageError: they are not those that were written.
  """
  for parent, folders, files in os.walk(folder / STATE):
    for name in (*folders, *files):
      _check_kind(pathlib.Path(parent, name), folder)
  for name in _share(sorted(manifest['files'])):
    size, checksum = manifest['files'][name]
    file = folder / name
    if not file.is_file():
      raise DamageError(f'{name} is missing')
    try:
      actual = file.stat().st_size
      if actual != size:
        raise DamageError(f'{name} has {actual} bytes, {size} were written')
      if _checksum(file) != checksum:
        raise DamageError(f'{name} has changed since it was written')
    except FileNotFoundError as error:
      raise DamageError(f'{name} was removed while it was read') from error
  verify_arrays(folder, manifest['arrays'])


def verify_arrays(path: pathlib.Path, arrays: dict[str, str]):
  """Opens every array in the files of a checkpoint, without its numbers.

  Raises:
    DamageError: they are not `arrays`.
  """
  try:
    stored = storage.stored_shapes(path / STATE)
  except storage.UnreadableError as error:
    raise DamageError(f'{STATE} {error}') from error
  for name in sorted(stored.keys() | arrays.keys()):
    if stored.get(name) != arrays.get(name):
      raise DamageError(
        f'{STATE} holds {name} as {stored.get(name, "absent")}, '
        f'{arrays.get(name, "absent")} was written'
      )


def _check_fields(manifest: dict[str, Any], step: int):
  """What its checksum does not tell, since anybody can compute one."""
  files, arrays = manifest.get('files'), manifest.get('arrays')
  if manifest.get('step') != step:
    raise DamageError(
      f'{FILE} is of step {manifest.get("step")!r}, not of {step}'
    )
  if not (
    isinstance(arrays, dict)
    and all(isinstance(shape, str) for shape in arrays.values())
  ):
    raise DamageError(f'{FILE} does not tell the shapes of the arrays')
  if not (
    isinstance(files, dict)
    and all(
      isinstance(entry, list) and [type(x) for x in entry] == [int, int]
      for entry in files.values()
    )
  ):
    raise DamageError(f'{FILE} does not tell size and checksum of the files')
  for name in files:
    parts = pathlib.PurePosixPath(name).parts
    if parts[:1] != (STATE,) or '..' in parts or '\0' in name:
      raise DamageError(f'{FILE} names {name!r}, which is not its own')


def _check_kind(path: pathlib.Path, root: pathlib.Path):
  """Refuses what would be read for ever, or lies in another folder."""
  name = path.relative_to(root)
  if path.is_dir():
    if path.is_symlink():
      raise DamageError(f'{name} is a link to a folder')
    return
  try:
    host.check_regular(path)
  except OSError as error:
    raise DamageError(f'{name}: {error.strerror}') from error


def _share(names: list[str]) -> list[str]:
  """The files that this process reads."""
  return names[jax.process_index() :: jax.process_count()]


def _checksum(path: pathlib.Path) -> int:
  value = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK_BYTES):
      value = zlib.crc32(chunk, value)
  return value
