"""Files of records that are read once, in order: what predictions are for."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import csv_files, text_files, unusable
from gemini_jax.data import task as task_lib

_ENDINGS = ('.jsonl', '.csv', '.tsv')


class Record(NamedTuple):
  """A record of a file.

  Attributes:
    name: where it stands: FILE:LINE of a table, FILE NUMBER of JSON lines, or
      the name of a file of a folder.
    values: by field; or why it cannot be used.
    folder: that paths in it are relative to.
  """

  name: str
  values: Mapping[str, Any] | unusable.UnusableError
  folder: str


def check(path: pathlib.Path, task: task_lib.Task) -> str:
  """Sees that a file has what a task reads; returns what changes with it.

  Args:
    path: FILE.jsonl, FILE.csv or FILE.tsv, or a folder of media.
    task: that reads them.

  Raises:
    ConfigError: it cannot be read, or lacks a column.
  """
  asked = [p for p in task.inputs or () if p.kind != task_lib.LITERAL]
  config_lib.check(path.exists(), f'{path} does not exist')
  try:
    stat = path.stat()
    names = _names(path) if path.is_dir() else []
    if not path.is_dir():
      host.check_regular(path)
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  identity = repr((str(path.absolute()), stat.st_size, stat.st_mtime_ns))
  if path.is_dir():
    config_lib.check(
      len(asked) == 1 and asked[0].kind in config_lib.MEDIA,
      f'{path} is a folder, of media alone, and the task reads '
      f'{", ".join(piece.value for piece in asked)}',
    )
    config_lib.check(len(names) > 0, f'{path} holds no file')
    return repr((identity, names))
  config_lib.check(
    path.suffix in _ENDINGS,
    f'{path} must be a folder, or end in {", ".join(_ENDINGS)}',
  )
  if path.suffix == '.jsonl':
    text_files.jsonl(str(path))
    return identity
  columns = csv_files.header(str(path), csv_files.rows_of(str(path)))
  for piece in asked:
    config_lib.check(
      piece.value in columns,
      f'{path} has no column {piece.value!r}, which the task reads; there are '
      f'{", ".join(columns)}',
    )
  return identity


def records(path: pathlib.Path, task: task_lib.Task) -> Iterator[Record]:
  """All records, in order; of a folder its files by name."""
  if path.is_dir():
    piece = next(p for p in task.inputs or () if p.kind in config_lib.MEDIA)
    for name in _names(path):
      yield Record(name, {piece.value: name}, str(path))
    return
  read = _lines if path.suffix == '.jsonl' else _rows
  yield from read(path)


def _names(path: pathlib.Path) -> list[str]:
  return sorted(
    name
    for name in os.listdir(path)
    if not name.startswith('.') and (path / name).is_file()
  )


def _lines(path: pathlib.Path) -> Iterator[Record]:
  rows = text_files.jsonl(str(path)).records
  for index in range(len(rows)):
    try:
      values = rows[index]
    except unusable.UnusableError as error:
      values = error
    yield Record(f'{path.name} {index + 1}', values, str(path.parent))


def _rows(path: pathlib.Path) -> Iterator[Record]:
  table = csv_files.rows_of(str(path))
  columns = csv_files.header(str(path), table)
  for row in table:
    try:
      values = csv_files.record(columns, row.cells)
    except unusable.UnusableError as error:
      values = error
    yield Record(f'{path.name}:{row.line}', values, str(path.parent))
