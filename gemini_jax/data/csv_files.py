"""Files of comma- or tab-separated values as records, by their header."""

import csv
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gemini_jax import config as config_lib
from gemini_jax.data import readers, text_files, unusable

# Characters of a cell; longer ones are taken for a quote that is not closed.
_MAX_CELL = 1 << 20


class Row(NamedTuple):
  """A row of a file.

  Attributes:
    line: the first of the row, from 1.
    cells: as text.
  """

  line: int
  cells: list[str]


class _Table(Sequence):
  """One record a row; all cells are in memory."""

  def __init__(self, paths: list[str]):
    self._places: list[tuple[str, int]] = []
    self._rows: list[list[str]] = []
    self.fields: tuple[str, ...] = ()
    for path in paths:
      rows = rows_of(path)
      fields = header(path, rows)
      config_lib.check(
        self.fields in ((), fields),
        f'{path} has the columns {", ".join(fields)}; the first file has '
        f'{", ".join(self.fields)}',
      )
      self.fields = fields
      for row in rows:
        self._places.append((path, row.line))
        self._rows.append(row.cells)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return record(self.fields, self._rows[index])

  def place(self, index: int) -> str:
    """FILE:LINE of a record."""
    path, line = self._places[index]
    return f'{os.path.basename(path)}:{line}'


def read(where: str) -> readers.Rows:
  """One record a row; `where` is a glob pattern.

  A record has the cells that are not empty, as text. The first row names the
  columns; files that end in .tsv have tabs between cells.

  Raises:
    ConfigError: a file is not such a table.
  """
  paths, identity = text_files.files(where)
  table = _Table(paths)
  config_lib.check(len(table) > 0, 'holds no row below its header')
  folders = {os.path.dirname(path) for path in paths}
  folder = folders.pop() if len(folders) == 1 else None
  return readers.Rows(
    table, identity, table.fields, folder=folder, place=table.place
  )


def header(path: str, rows: Iterator[Row]) -> tuple[str, ...]:
  """The names of the columns, which are the first of the rows.

  Raises:
    ConfigError: there is none, or one is empty or there twice.
  """
  first = next(rows, None)
  config_lib.check(first is not None, f'{path} is empty')
  assert first is not None
  names = tuple(name.strip() for name in first.cells)
  config_lib.check(
    all(names) and len(set(names)) == len(names),
    f'{path}: the first row must name each column, once: {", ".join(names)}',
  )
  return names


def record(fields: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
  """The cells of a row by column, without empty ones.

  Raises:
    UnusableError: there are more or fewer than the header has.
  """
  if len(cells) != len(fields):
    raise unusable.UnusableError(
      f'{len(cells)} cells for {len(fields)} columns'
    )
  pairs = zip(fields, cells, strict=True)
  return {name: cell for name, cell in pairs if cell}


def rows_of(path: str) -> Iterator[Row]:
  """The rows of a file that are not blank, one after the other.

  Raises:
    ConfigError: it cannot be read, or is not text.
  """
  dialect = 'excel-tab' if path.endswith('.tsv') else 'excel'
  csv.field_size_limit(_MAX_CELL)
  begin = 1
  try:
    text_files.check_text(path)
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.reader(file, dialect, strict=True)
      for cells in reader:
        if cells:
          yield Row(begin, cells)
        begin = reader.line_num + 1
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise config_lib.ConfigError(
      f'{path} is not UTF-8 after line {begin - 1:,}'
    ) from error
  except csv.Error as error:
    raise config_lib.ConfigError(f'{path}, line {begin}: {error}') from error
