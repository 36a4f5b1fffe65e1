"""Parallel texts as records: line i of each file is the same text."""

import os
from collections.abc import Sequence

from gemini_jax import config as config_lib
from gemini_jax.data import readers, text_files

_SEPARATOR = '+'


class _Lines(Sequence):
  """One record a line of all files, in memory."""

  def __init__(self, fields: Sequence[str], columns: Sequence[list[str]]):
    self._fields, self._columns = fields, columns

  def __len__(self) -> int:
    return len(self._columns[0])

  def __getitem__(self, index: int) -> dict[str, str]:
    lines = (column[index] for column in self._columns)
    return dict(zip(self._fields, lines, strict=True))


def read(where: str) -> readers.Rows:
  """One record a line; `where` is FILE.en+FILE.de: endings name the fields.

  Raises:
    ConfigError: a file cannot be read, or has more lines than another.
  """
  names = where.split(_SEPARATOR)
  fields = tuple(os.path.splitext(name)[1].removeprefix('.') for name in names)
  config_lib.check(
    len(set(fields)) == len(fields) > 1 and all(fields),
    'write FILE.en+FILE.de: two files or more, whose endings name the fields',
  )
  columns, identities = [], []
  for name in names:
    rows = text_files.text(name)
    config_lib.check(
      len(rows.records) == 1, f'{name} matches {len(rows.records)} files'
    )
    # Not splitlines, which also splits at characters within a line.
    text = rows.records[0]['text'].removesuffix('\n')
    columns.append([line.removesuffix('\r') for line in text.split('\n')])
    identities.append(rows.identity)
    config_lib.check(
      len(columns[-1]) == len(columns[0]),
      f'{names[0]} has {len(columns[0]):,} lines and {name} '
      f'{len(columns[-1]):,}: line i of each must be the same text',
    )
  file = os.path.basename(names[0])
  return readers.Rows(
    _Lines(fields, columns),
    repr(identities),
    fields,
    place=lambda index: f'{file}:{index + 1}',
  )
