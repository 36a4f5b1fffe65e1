"""Files of text and of JSON lines as records."""

import array
import dataclasses
import glob
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import readers, unusable

# Unusable records that an error shows, and characters of each.
_SHOWN_CHARACTERS = 80
# First bytes of files that are not text, their format, and what to do.
_SIGNATURES = (
  (b'\x1f\x8b', 'gzip', 'gunzip it'),
  (b'PK\x03\x04', 'a zip archive', 'unzip it'),
  (b'BZh', 'bzip2', 'bunzip2 it'),
  (b'\xfd7zXZ\x00', 'xz', 'unxz it'),
  (b'\x28\xb5\x2f\xfd', 'zstd', 'unzstd it'),
  (b'PAR1', 'Parquet', 'write its rows as JSON lines'),
  (b'ARROW1', 'Arrow', 'write its rows as JSON lines'),
  (b'\xff\xfe\x00\x00', 'UTF-32', 'convert it: iconv -f UTF-32 -t UTF-8'),
  (b'\xff\xfe', 'UTF-16', 'convert it: iconv -f UTF-16 -t UTF-8'),
  (b'\xfe\xff', 'UTF-16', 'convert it: iconv -f UTF-16 -t UTF-8'),
)
_BOM = b'\xef\xbb\xbf'
# Bytes from which the format of a file is recognised.
_HEAD = 1 << 16


@dataclasses.dataclass(frozen=True)
class _TextFiles(Sequence):
  """One record a file, read when it is needed."""

  paths: list[str]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, str]:
    path = self.paths[index]
    try:
      content = pathlib.Path(path).read_bytes()
    except OSError as error:
      raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
    try:
      return {'text': content.decode('utf-8').removeprefix('\ufeff')}
    except UnicodeDecodeError as error:
      _check_signature(path, content)
      raise config_lib.ConfigError(
        f'{path} is not UTF-8 at byte {error.start}'
      ) from error


def _check_signature(path: str, head: bytes):
  """ConfigError if the first bytes are those of a format other than text."""
  for begins, name, remedy in _SIGNATURES:
    config_lib.check(
      not head.startswith(begins), f'{path} is {name}, not text; {remedy}'
    )


def check_text(path: str):
  """ConfigError if a file begins like a format other than text."""
  with open(path, 'rb') as file:
    _check_signature(path, file.read(_HEAD))


def _check_lines(path: str, head: bytes):
  """ConfigError if the first bytes are not those of lines of JSON."""
  _check_signature(path, head)
  lines = [line.strip() for line in head.removeprefix(_BOM).splitlines()]
  lines = [line for line in lines if line][:2]
  expected = 'where each line must be a JSON object of its own'
  config_lib.check(
    not lines or not lines[0].startswith(b'['),
    f"{path} is a JSON array, {expected}; convert it: jq -c '.[]' {path}",
  )
  for mark, name in ((b'\t', 'TSV'), (b',', 'CSV')):
    config_lib.check(
      not lines
      or any(mark not in line or line.startswith(b'{') for line in lines),
      f'{path} looks like {name}, {expected}; write csv:FILE for a table',
    )


def text(where: str) -> readers.Rows:
  """One record a file; `where` is a glob pattern."""
  paths, identity = files(where)
  return readers.Rows(_TextFiles(paths), identity, ('text',))


class _JsonLines(Sequence):
  """One record a line; only the offsets of lines are kept in memory."""

  def __init__(self, paths: list[str]):
    self._paths = paths
    starts = [_line_starts(path) for path in paths]
    self._files = np.repeat(np.arange(len(paths)), [len(s) for s in starts])
    self._starts = np.concatenate(starts)

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = self._paths[self._files[index]]
    try:
      with open(path, 'rb') as file:
        file.seek(self._starts[index])
        line = file.readline()
    except OSError as error:
      raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
    excerpt = repr(line[:_SHOWN_CHARACTERS].decode('utf-8', 'replace'))
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise unusable.UnusableError('invalid JSON', excerpt) from error
    if not isinstance(record, dict):
      raise unusable.UnusableError('not a JSON object', excerpt)
    return record

  def place(self, index: int) -> str:
    """FILE:LINE of a record."""
    path = self._paths[self._files[index]]
    with open(path, 'rb') as file:
      before = file.read(int(self._starts[index]))
    line = before.count(b'\n') + 1
    return f'{os.path.basename(path)}:{line}'


def _line_starts(path: str) -> np.ndarray:
  """int64[n], offsets of the lines that are not blank."""
  starts, offset = array.array('q'), 0
  try:
    with open(path, 'rb') as file:
      _check_lines(path, file.read(_HEAD))
      file.seek(0)
      for line in file:
        if line.strip():
          starts.append(offset)
        offset += len(line)
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  return np.asarray(starts, np.int64)


def jsonl(where: str) -> readers.Rows:
  """One record a line; `where` is a glob pattern."""
  paths, identity = files(where)
  lines = _JsonLines(paths)
  config_lib.check(len(lines) > 0, 'holds no line')
  folders = {os.path.dirname(path) for path in paths}
  folder = folders.pop() if len(folders) == 1 else None
  return readers.Rows(lines, identity, None, folder=folder, place=lines.place)


def literal_part(path: str) -> str:
  """The longest prefix of a path that exists, or ''.

  It is taken literally, since names may contain the special characters of
  patterns and slices: `lr=[1]/a#b.txt`.
  """
  while path and not os.path.lexists(path):
    path = os.path.dirname(path)
  return path


def files(pattern: str) -> tuple[list[str], str]:
  """Matching files sorted by name, and their identity."""
  path = str(host.expand_path(pattern))
  literal = literal_part(path)
  rest = path[len(literal) :]
  paths = glob.glob(glob.escape(literal) + rest, recursive=True)
  paths = sorted(path for path in paths if os.path.isfile(path))
  config_lib.check(len(paths) > 0, f'no file matches {pattern!r}')
  stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
  return paths, repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats])
