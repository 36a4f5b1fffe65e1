"""Where records come from: `KIND:WHERE#SLICE` with random access.

A slice counts records: `[:90%]`, `[100:]`, every tenth `[9::10]`, and with
`!` all that the slice leaves out, `[!9::10]`. TFDS has its own notation.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tqdm

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import composed, media, readers, transforms, wordnet
from gemini_jax.data import task as task_lib

READERS = {
  'text': readers.text,
  'jsonl': readers.jsonl,
  'python': readers.python,
  'reverse': readers.reverse,
  'wordnet': wordnet.read,
}
# Of prepared data sets, which `data.data_dir` says the place of.
_PREPARED = {'digits': composed.digits, 'moving': composed.moving}
KINDS = ('tfds', *_PREPARED, *READERS)
# Kinds that know a place of their own.
_PLACED = ('wordnet',)
# Kinds that are told a path.
_PATHS = ('text', 'jsonl', 'wordnet')
# Where a record says its attributes, {attribute: value}.
LABEL_FIELD = 'label'

_SLICE = re.compile(
  r'\[(!?)(-?\d{1,18}%?)?:(-?\d{1,18}%?)?(?::([1-9]\d{0,17}))?\]'
)
_SECONDS_BETWEEN_LINES = 10

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Source:
  """The records that a spec selects, behind a sequence interface.

  Attributes:
    name: the spec and its place in the config.
    rows: every record, before the slice.
    indices: int64[n], the records that the slice selects.
    names: words for the values of fields that are numbers.
    shuffled_fields: fields whose values are those of another record of the
      slice, each record's of one.
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
            raise readers.UnusableError(f'no field {field!r} in another record')
          record = record | {field: other[field]}
      return record
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'{self.name}: {error}') from error

  def number(self, index: int) -> int:
    """Which of all records stands at an index of the slice."""
    return int(self.indices[index])

  @functools.cached_property
  def _others(self) -> np.ndarray:
    return np.random.default_rng(0).permutation(self.indices)

  @property
  def fingerprint(self) -> str:
    """Hex digest of all that decides what the records are."""
    digest = hashlib.sha256(self.rows.identity.encode())
    if self.names:
      digest.update(repr(sorted(self.names.items())).encode())
    if self.shuffled_fields:
      digest.update(repr(self.shuffled_fields).encode())
    digest.update(self.indices.tobytes())
    return digest.hexdigest()[:32]

  def describe(self) -> str:
    """One line for a log."""
    total = len(self.rows.records)
    of_all = f' of {total:,}' if len(self) < total else ''
    return f'{self.name}: {len(self):,}{of_all} records'


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """The records of several sources as one, in a random order.

  Attributes:
    name: of all of them, in a log.
    sources: where the records are.
    order: int64[n], their places, counted through all sources.
  """

  name: str
  sources: tuple[Source, ...]
  order: np.ndarray

  @classmethod
  def of(cls, name: str, found: Sequence[Source], seed: int) -> 'Shuffled':
    """In an order that `seed` and the numbers of records decide."""
    total = sum(map(len, found))
    order = np.random.default_rng(seed % 2**32).permutation(total)
    return cls(name, tuple(found), order)

  def __len__(self) -> int:
    return len(self.order)

  def number(self, index: int) -> int:
    """Which of all records stands at an index, counted through all sources."""
    return int(self.order[index])

  def __getitem__(self, index: int) -> dict[str, Any]:
    place = self.number(index)
    for source in self.sources:
      if place < len(source):
        return source[place]
      place -= len(source)
    raise IndexError(index)


def split_spec(spec: str) -> tuple[str, str]:
  """What a source reads as one, and the slice of it ('': all).

  TFDS slices for itself: its split belongs to what is read. A `#` in the name
  of a file or folder that is there belongs to that name.
  """
  kind, _, where = spec.partition(':')
  if kind == 'tfds':
    return spec, ''
  rest = where
  if kind in _PATHS:
    path = str(host.expand_path(where))
    rest = path[len(readers.literal_part(path)) :]
  if '#' not in rest:
    return spec, ''
  whole, _, selection = spec.rpartition('#')
  return whole, selection


def locate(spec: str, config: config_lib.Data) -> str:
  """`data.train[0]=SPEC`, the first place of a spec, or of its slices."""
  for split in ('train', 'validation', 'test'):
    for i, other in enumerate(getattr(config, split)):
      if spec in (other, split_spec(other)[0]):
        return f'data.{split}[{i}]={other}'
  return spec


def records(spec: str, config: config_lib.Data) -> Source:
  """The source of one `KIND:WHERE#SLICE`.

  Raises:
    ConfigError: begins with the place and the spec.
  """
  whole, selection = split_spec(spec)
  kind, _, where = whole.partition(':')
  try:
    if kind not in KINDS:
      raise config_lib.ConfigError(
        f'{kind!r} is not a kind of source{config_lib.nearest(kind, KINDS)}'
      )
    config_lib.check(
      bool(where) or kind in _PLACED,
      f'write {kind}:WHERE or {kind}:WHERE#SLICE',
    )
    if kind == 'tfds':
      name, _, split = where.partition('#')
      rows = readers.tfds(name, split, config)
    elif kind in _PREPARED:
      rows = _PREPARED[kind](where, config)
    else:
      rows = READERS[kind](where)
    tasks = task_lib.of(config)
    asked = [field for task in tasks for field in task.fields]
    for field in asked:
      config_lib.check(
        rows.fields is None or field in rows.fields,
        f'{_asker(field, config)} is not a field of its records; they have '
        f'{", ".join(rows.fields or ())}',
      )
    names = dict(rows.names)
    if config.label_names:
      names |= dict.fromkeys(asked, config.label_names)
    return Source(
      locate(spec, config), rows, select(selection, len(rows.records)), names
    )
  except config_lib.ConfigError as error:
    place = locate(spec, config)
    raise config_lib.ConfigError(f'{place}: {error}') from error


def select(selection: str, size: int) -> np.ndarray:
  """int64[n], the indices below `size` that a slice selects, in order.

  Raises:
    ConfigError: the notation is wrong or nothing is selected.
  """
  everything = np.arange(size, dtype=np.int64)
  if not selection:
    return everything
  match = _SLICE.fullmatch(selection)
  if not match:
    raise config_lib.ConfigError(
      f'{selection!r} is not a slice; write [a:b], [a:b:step] or '
      '[!a:b:step] for the rest; a and b count records or percent'
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


def texts(
  source: Source, config: config_lib.Data, tally: readers.Tally
) -> Iterator[tuple[str, ...]]:
  """`(text,)` or `(inputs, targets)` of each record and task; media apart.

  Records without are left out and counted by reason in `tally`.
  """
  tasks = task_lib.of(config)
  read = functools.partial(texts_of, source)
  for _, example in _usable(source, tasks, tally, read):
    yield example


def texts_of(
  source: Source, record: dict[str, Any], task: task_lib.Task
) -> tuple[str, ...]:
  """The text of each side of a task; media are left out.

  Raises:
    UnusableError: some of it is not there.
  """
  return tuple(
    ''.join(
      text_of(record, piece, source.names)
      for piece in side
      if piece.kind not in config_lib.KINDS
    )
    for side in task.sides
  )


def examples(
  source: Source,
  config: config_lib.Data,
  model: config_lib.Model,
  tally: readers.Tally,
) -> Iterator[transforms.Example]:
  """What each record gives to each task.

  Records that have not all of it are left out and counted by reason in
  `tally`; media are read, to see that they can be and how long they are.
  """
  tasks = task_lib.of(config)

  # Several tasks may read the same field, one after the other.
  slots: dict[Any, tuple[transforms.Slots, bytes]] = {}
  last: Any = None

  def part(record, piece):
    nonlocal last
    if piece.kind not in config_lib.KINDS:
      return text_of(record, piece, source.names)
    if record is not last:
      slots.clear()
      last = record
    if piece not in slots:
      values, size = medium(source, record, piece, config, model)
      count = model.tokens_of(piece.kind, size.tolist())
      digest = hashlib.sha256(values.tobytes()).digest()
      slots[piece] = transforms.Slots(piece.kind, count), digest
    found, digest = slots[piece]
    content.append(digest)
    return found

  content: list[bytes] = []

  def read(record, task):
    content.clear()
    sides = tuple(tuple(part(record, p) for p in side) for side in task.sides)
    return sides, b''.join(content)

  for origin, (sides, media_digest) in _usable(source, tasks, tally, read):
    yield transforms.Example(origin, sides, media_digest)


def medium(
  source: Source,
  record: dict[str, Any],
  piece: task_lib.Piece,
  config: config_lib.Data,
  model: config_lib.Model,
) -> media.Medium:
  """A picture, sound or video of a record, as the model takes it; its extent.

  Raises:
    UnusableError: it is not there or cannot be read.
  """
  value = record.get(piece.value)
  if value is None:
    raise readers.AbsentError(f'no field {piece.value!r}')
  try:
    return media.read(
      piece.kind,
      value,
      model,
      config.audio_sample_rate,
      source.rows.folder,
      config.max_media_pixels,
    )
  except readers.UnusableError as error:
    # Of numpy's arrays of one number, which have no length, too.
    is_empty = isinstance(value, str | bytes | list) and not value
    is_empty |= isinstance(value, np.ndarray) and not value.size
    kind = readers.EmptyError if is_empty else readers.UnusableError
    raise kind(f'{piece.value!r}: {error}') from error


def labelled(
  source: Shuffled, config: config_lib.Data, tally: readers.Tally
) -> Iterator[tuple[str, dict[str, str]]]:
  """The text of each record and the values of its attributes.

  Records without either are left out and counted by reason in `tally`.
  """
  tasks = task_lib.of(config)
  read = lambda record, task: (
    text_of(record, task.pieces[0], {}),
    _label(record),
  )
  for _, found in _usable(source, tasks, tally, read):
    yield found


def _usable(
  source: Source | Shuffled,
  tasks: Sequence[task_lib.Task],
  tally: readers.Tally,
  read: Callable[[dict[str, Any], task_lib.Task], T],
) -> Iterator[tuple[int, T]]:
  """What `read` finds for each task in each record, numbered through."""
  for index in _progress(len(source), source.name):
    try:
      record = source[index]
    except readers.UnusableError as error:
      tally.leave_out(error, source.number(index), count=len(tasks))
      continue
    errors = []
    for number, task in enumerate(tasks):
      try:
        example = read(record, task)
      except readers.UnusableError as error:
        errors.append(error)
        continue
      tally.usable += 1
      yield index * len(tasks) + number, example
    for error in errors:
      absent = isinstance(error, readers.EmptyError) or (
        isinstance(error, readers.AbsentError) and len(errors) < len(tasks)
      )
      tally.leave_out(error, source.number(index), record, absent=absent)


def _asker(field: str, config: config_lib.Data) -> str:
  """Which field of the config names a field of the records."""
  for name in ('inputs_field', 'targets_field', 'text_field'):
    if not config.tasks and getattr(config, name) == field:
      return f'data.{name}={field!r}'
  return f'data.tasks: {field!r}'


def _label(record: dict[str, Any]) -> dict[str, str]:
  label = record.get(LABEL_FIELD)
  if not isinstance(label, dict) or not label:
    raise readers.UnusableError(f'no {LABEL_FIELD!r} of attributes and values')
  # What is null is not known.
  known = {name: value for name, value in label.items() if value is not None}
  for name, value in known.items():
    if not isinstance(value, str | int | float):
      raise readers.UnusableError(
        f'{LABEL_FIELD!r} of {name!r} is no text, number or boolean'
      )
  return {
    name: value if isinstance(value, str) else json.dumps(value)
    for name, value in known.items()
  }


def text_of(
  record: Mapping[str, Any],
  piece: task_lib.Piece,
  names: Mapping[str, Sequence[str]],
) -> str:
  """What a literal says, or a field; `names` are words for its numbers.

  Raises:
    UnusableError: it is not there, empty or no text.
  """
  if piece.kind == task_lib.LITERAL:
    return piece.value
  field = piece.value
  value = record.get(field)
  if value is None:
    raise readers.AbsentError(f'no field {field!r}')
  if field in names and isinstance(value, int | np.integer):
    if not 0 <= value < len(names[field]):
      raise readers.UnusableError(f'{field!r} is a number without a name')
    value = names[field][int(value)]
  try:
    if isinstance(value, bytes):
      value = value.decode('utf-8')
    if not isinstance(value, str):
      raise readers.UnusableError(f'{field!r} is not text')
    value.encode('utf-8')
  except UnicodeError as error:
    raise readers.UnusableError(f'{field!r} is not Unicode') from error
  if not value:
    raise readers.EmptyError(f'{field!r} is empty')
  return value


def _progress(total: int, label: str) -> Iterable[int]:
  """range(total), with a bar at a terminal and lines in a log file."""
  if sys.stderr.isatty():
    return tqdm.tqdm(range(total), label, leave=False, unit=' records')
  return _logged(total, label)


def _logged(total: int, label: str) -> Iterator[int]:
  last = time.monotonic()
  for index in range(total):
    yield index
    if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
      last = time.monotonic()
      logging.info('%s: %s of %s records', label, f'{index:,}', f'{total:,}')
