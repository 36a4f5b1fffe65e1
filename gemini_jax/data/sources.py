"""Sources of records, with random access: `KIND:WHERE#SLICE`.

A slice selects records: `[:90%]`, `[100:]`, every tenth one `[9::10]`, and its
complement `[!9::10]`, so that `[i::k]` is fold i of k and `[!i::k]` are the
others. TFDS splits use the notation of TFDS.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import (
  composed,
  csv_files,
  parallel_files,
  prepared,
  readers,
  text_files,
  unusable,
  wordnet,
)
from gemini_jax.data import task as task_lib

READERS = {
  'text': text_files.text,
  'jsonl': text_files.jsonl,
  'csv': csv_files.read,
  'parallel': parallel_files.read,
  'python': readers.python,
  'reverse': readers.reverse,
  'wordnet': wordnet.read,
}
# Kinds that read a prepared TFDS data set from `data.data_dir`.
_PREPARED = {'digits': composed.digits, 'moving': composed.moving}
KINDS = ('tfds', *_PREPARED, *READERS)
# Kinds that have a default WHERE.
_OPTIONAL_WHERE = ('wordnet',)
# Kinds whose WHERE is a path.
_PATHS = ('text', 'jsonl', 'csv', 'parallel', 'wordnet')
_SLICE = re.compile(
  r'\[(!?)(-?\d{1,18}%?)?:(-?\d{1,18}%?)?(?::([1-9]\d{0,17}))?\]'
)


@dataclasses.dataclass(frozen=True)
class Source:
  """The records that a spec selects, behind a sequence interface.

  Attributes:
    name: the spec and its place in the config, for messages.
    rows: all records, before the slice.
    indices: int64[n], indices of the records that the slice selects.
    names: names of the values of fields that are numbers.
    shuffled_fields: fields whose values come from another record of the slice;
      all such fields of a record come from the same one.
  """

  name: str
  rows: readers.Rows
  indices: np.ndarray
  names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  shuffled_fields: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    records = self.rows.records
    try:
      record = records[int(self.indices[index])]
      if self.shuffled_fields:
        other = records[int(self._others[index])]
        for field in self.shuffled_fields:
          if field not in other:
            raise unusable.UnusableError(
              f'no field {field!r} in another record'
            )
          record = record | {field: other[field]}
      return record
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'{self.name}: {error}') from error

  def number(self, index: int) -> int:
    """Index among all records of the record at an index of the slice."""
    return int(self.indices[index])

  def place(self, index: int) -> str:
    """FILE:LINE of the record at an index of the slice; '' if not known."""
    place = self.rows.place
    return '' if place is None else place(self.number(index))

  @functools.cached_property
  def _others(self) -> np.ndarray:
    return np.random.default_rng(0).permutation(self.indices)

  @property
  def fingerprint(self) -> str:
    """Hex digest of all that the records depend on."""
    digest = hashlib.sha256(self.rows.identity.encode())
    if self.names:
      digest.update(repr(sorted(self.names.items())).encode())
    if self.shuffled_fields:
      digest.update(repr(self.shuffled_fields).encode())
    digest.update(self.indices.tobytes())
    return digest.hexdigest()[:32]

  def describe(self) -> str:
    """One line for the log."""
    total = len(self.rows.records)
    of_all = f' of {total:,}' if len(self) < total else ''
    return f'{self.name}: {len(self):,}{of_all} records'


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """The records of several sources, concatenated and shuffled.

  Attributes:
    name: for the log.
    sources: of the records.
    order: int64[n], indices into the concatenated sources.
  """

  name: str
  sources: tuple[Source, ...]
  order: np.ndarray

  @classmethod
  def make(cls, name: str, sources: Sequence[Source], seed: int) -> 'Shuffled':
    """The sources in an order that depends on `seed` and their sizes."""
    total = sum(map(len, sources))
    order = np.random.default_rng(seed % 2**32).permutation(total)
    return cls(name, tuple(sources), order)

  def __len__(self) -> int:
    return len(self.order)

  def number(self, index: int) -> int:
    """Index in the concatenated sources of the record at a shuffled index."""
    return int(self.order[index])

  def __getitem__(self, index: int) -> dict[str, Any]:
    source, index = self._find(index)
    return source[index]

  def place(self, index: int) -> str:
    """FILE:LINE of the record at a shuffled index; '' if not known."""
    source, index = self._find(index)
    return source.place(index)

  def _find(self, index: int) -> tuple[Source, int]:
    """The source of the record at a shuffled index, and its index there."""
    place = self.number(index)
    for source in self.sources:
      if place < len(source):
        return source, place
      place -= len(source)
    raise IndexError(index)


def split_spec(spec: str) -> tuple[str, str]:
  """`KIND:WHERE` and the slice ('': all records) of a spec.

  A TFDS split is part of WHERE, since TFDS slices by itself. A `#` in the name
  of an existing file or folder belongs to that name.
  """
  kind, _, where = spec.partition(':')
  if kind == 'tfds':
    return spec, ''
  rest = where
  if kind in _PATHS:
    path = str(host.expand_path(where))
    rest = path[len(text_files.literal_part(path)) :]
  if '#' not in rest:
    return spec, ''
  whole, _, selection = spec.rpartition('#')
  return whole, selection


def locate(spec: str, config: config_lib.Data) -> str:
  """`data.train[0]=SPEC`: the first place of a spec, or of a slice of it."""
  for split in ('train', 'validation', 'test'):
    for i, other in enumerate(getattr(config, split)):
      if spec in (other, split_spec(other)[0]):
        return f'data.{split}[{i}]={other}'
  return spec


def records(spec: str, config: config_lib.Data) -> Source:
  """The source of one `KIND:WHERE#SLICE`.

  Raises:
    ConfigError: the spec is wrong or cannot be read; begins with its place.
  """
  whole, selection = split_spec(spec)
  kind, _, where = whole.partition(':')
  try:
    if kind not in KINDS:
      raise config_lib.ConfigError(
        f'{kind!r} is not a kind of source{config_lib.nearest(kind, KINDS)}'
      )
    config_lib.check(
      bool(where) or kind in _OPTIONAL_WHERE,
      f'write {kind}:WHERE or {kind}:WHERE#SLICE',
    )
    if kind == 'tfds':
      name, _, split = where.partition('#')
      rows = prepared.read(name, split, config)
    elif kind in _PREPARED:
      rows = _PREPARED[kind](where, config)
    else:
      rows = READERS[kind](where)
    tasks = task_lib.from_config(config)
    field_names = [field for task in tasks for field in task.fields]
    for field in field_names:
      config_lib.check(
        rows.fields is None or field in rows.fields,
        f'{_asker(field, config)} is not a field of its records; they have '
        f'{", ".join(rows.fields or ())}',
      )
    names = dict(rows.names)
    if config.label_names and task_lib.head(config) is None:
      names |= dict.fromkeys(field_names, config.label_names)
    return Source(
      locate(spec, config), rows, select(selection, len(rows.records)), names
    )
  except config_lib.ConfigError as error:
    place = locate(spec, config)
    raise config_lib.ConfigError(f'{place}: {error}') from error


def select(selection: str, size: int) -> np.ndarray:
  """int64[n], ascending indices below `size` that a slice selects.

  Raises:
    ConfigError: the slice is malformed or selects nothing.
  """
  everything = np.arange(size, dtype=np.int64)
  if not selection:
    return everything
  match = _SLICE.fullmatch(selection)
  if not match:
    raise config_lib.ConfigError(
      f'{selection!r} is not a slice; write [a:b], [a:b:step] or '
      '[!a:b:step] for the complement; a and b are records or percentages'
    )
  complement, start, stop, step = match.groups()
  chosen = everything[_bound(start, size) : _bound(stop, size) : int(step or 1)]
  if complement:
    chosen = np.delete(everything, chosen)
  config_lib.check(
    chosen.size > 0, f'{selection} selects none of {size:,} records'
  )
  return chosen


def _bound(text: str | None, size: int) -> int | None:
  if text is None:
    return None
  if text.endswith('%'):
    return round(size * int(text[:-1]) / 100)
  return int(text)


def _asker(field: str, config: config_lib.Data) -> str:
  """The config field that asks for a field of the records, for messages."""
  names = (
    *('inputs_field', 'targets_field', 'rejected_field', 'chat_field'),
    'text_field',
  )
  for name in names:
    if not config.tasks and getattr(config, name) == field:
      return f'data.{name}={field!r}'
  return f'data.tasks: {field!r}'
