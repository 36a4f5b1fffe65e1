"""The kinds of sources: each gives rows of records and their identity."""

import array
import ast
import collections
import dataclasses
import glob
import hashlib
import importlib.machinery
import json
import os
import pathlib
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from gemini_jax import config as config_lib
from gemini_jax import host

_MAX_REVERSE = 10_000_000
# Unusable records that an error shows, and characters of each.
_NUM_SHOWN, _SHOWN_CHARACTERS = 3, 80
# How files begin that hold no lines of text, what they are, and what to do.
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
# Bytes that tell what a file is.
_HEAD = 1 << 16


class UnusableError(Exception):
  """A record that cannot be used, with the reason.

  Attributes:
    excerpt: how the record begins, if it could not be read as one.
  """

  def __init__(self, reason: str, excerpt: str = ''):
    super().__init__(reason)
    self.excerpt = excerpt


class AbsentError(UnusableError):
  """A record lacks a field that is asked for."""


class EmptyError(AbsentError):
  """A field that is asked for has nothing in it."""


@dataclasses.dataclass
class Tally:
  """How many examples of a source can be used.

  Attributes:
    usable: those that can.
    num_absent: those of the unusable that are merely empty, or that their
      record lacks while it gives another task what it asks for.
    unusable: those that cannot, by reason.
    shown: the number of a record, the reason and its beginning, of a few.
  """

  usable: int = 0
  num_absent: int = 0
  unusable: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  shown: list[str] = dataclasses.field(default_factory=list)

  def leave_out(
    self,
    error: UnusableError,
    number: int,
    record: Any = None,
    count: int = 1,
    absent: bool = False,
  ):
    """Counts examples of the record of a number, which are unusable.

    Args:
      error: why.
      number: of the record.
      record: what it holds, if that is known.
      count: of examples.
      absent: whether they are merely not there; see `num_absent`.
    """
    reason = str(error)
    self.unusable[reason] += count
    if absent:
      self.num_absent += count
    elif len(self.shown) < _NUM_SHOWN:
      excerpt = error.excerpt
      if record is not None:
        excerpt = ' '.join(reprlib.repr(record).split())
      mark = ': ' if excerpt else ''
      self.shown.append(f'record {number}: {reason}{mark}{excerpt}')

  def add(self, other: 'Tally'):
    """Counts what another has counted as well."""
    self.usable += other.usable
    self.num_absent += other.num_absent
    self.unusable.update(other.unusable)
    self.shown += other.shown[: _NUM_SHOWN - len(self.shown)]

  def check(self, name: str, limit: float):
    """ConfigError if more than the share `limit` is unusable, or all."""
    num_unusable = self.unusable.total() - self.num_absent
    total = self.usable + num_unusable
    shown = ''.join(f'; {line}' for line in self.shown)
    if not self.usable:
      raise config_lib.ConfigError(
        f'{name}: no record is usable{reasons(self.unusable)}{shown}'
      )
    config_lib.check(
      num_unusable <= limit * total,
      f'{name}: of {total:,} examples{reasons(self.unusable)}, more than '
      f'data.max_unusable={limit} allows{shown}; repair or remove them, or set '
      'data.max_unusable to the share that may be left out',
    )


def reasons(unusable: Mapping[str, int]) -> str:
  """`, 3 unusable: 2 invalid JSON, 1 too long`, or nothing."""
  if not unusable:
    return ''
  parts = [f'{count:,} {reason}' for reason, count in sorted(unusable.items())]
  return f', {sum(unusable.values()):,} unusable: {", ".join(parts)}'


class Rows(NamedTuple):
  """All records of a source.

  Attributes:
    records: a sequence of dicts; reading one may raise UnusableError.
    identity: tells this content from another without reading it.
    fields: of every record; None where records may differ.
    names: words for the values of fields that are numbers.
    folder: that paths in records are relative to; None: there are several.
  """

  records: Sequence[dict[str, Any]]
  identity: str
  fields: tuple[str, ...] | None
  names: Mapping[str, Sequence[str]] = types.MappingProxyType({})
  folder: str | None = ''


def tfds(where: str, split: str, config: config_lib.Data) -> Rows:
  """A split of a TFDS data set, in TFDS's own notation."""
  import tensorflow_datasets

  folder = config.data_dir and str(host.expand_path(config.data_dir))
  # What was prepared is read without the code that prepared it.
  prepared = _newest(folder, where) if folder else None
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens.
  try:
    builder: Any
    if prepared:
      builder = tensorflow_datasets.builder_from_directory(prepared)
    else:
      builder = tensorflow_datasets.builder(
        where, data_dir=folder, file_format='array_record'
      )
    if not builder.info.splits and not folder:
      builder.download_and_prepare()
    splits = builder.info.splits
  except Exception as error:  # TFDS, its builders and the network raise all.
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise config_lib.ConfigError(
      f'{reason.rstrip(".")}; {_prepared(folder)}'
    ) from error
  finally:
    logging.set_verbosity(verbosity)
  config_lib.check(
    bool(splits), f'no prepared data set {where!r}; {_prepared(folder)}'
  )
  accepted = f'splits: {", ".join(splits)}'
  config_lib.check(bool(split), f'write tfds:{where}#SPLIT; {accepted}')
  fields = builder.info.features
  # Pictures beside the text stay encoded: no time, no image library.
  undecoded = {
    name: tensorflow_datasets.decode.SkipDecoding()
    for name, feature in fields.items()
    if isinstance(feature, tensorflow_datasets.features.Image)
  }
  try:
    records = builder.as_data_source(split=split, decoders=undecoded)
    size = len(records)
  except (ValueError, KeyError, AssertionError) as error:
    raise config_lib.ConfigError(
      f'{split!r} is not a split; {accepted}'
    ) from error
  config_lib.check(size > 0, f'selects no record; {accepted}')
  sizes = [(name, s.num_examples, s.num_bytes) for name, s in splits.items()]
  identity = f'{builder.info.full_name} {builder.data_path} {split} {sizes}'
  names = {
    name: tuple(feature.names)
    for name, feature in fields.items()
    if isinstance(feature, tensorflow_datasets.features.ClassLabel)
    and feature.names
  }
  return Rows(records, identity, tuple(sorted(fields)), names)


def _newest(folder: str, where: str) -> str | None:
  """The folder of a prepared data set `NAME[/CONFIG][:VERSION]`, if any."""
  name, _, version = where.partition(':')
  found = [
    path.parent
    for path in pathlib.Path(folder, name).glob('*/dataset_info.json')
    if version in ('', path.parent.name)
  ]
  number = lambda path: [
    int(part) if part.isdecimal() else -1 for part in path.name.split('.')
  ]
  return str(max(found, key=number)) if found else None


def _prepared(folder: str | None) -> str:
  if not folder:
    return 'set data.data_dir to a folder of prepared data sets'
  if not os.path.isdir(folder):
    return f'data.data_dir={folder!r} is not a folder'
  names = sorted(path.name for path in pathlib.Path(folder).iterdir())
  return f'data.data_dir={folder!r} holds {", ".join(names) or "nothing"}'


@dataclasses.dataclass(frozen=True)
class _TextFiles(Sequence):
  """Files, each read when it is asked for."""

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
  """ConfigError if a file begins as one of another format than text."""
  for begins, name, remedy in _SIGNATURES:
    config_lib.check(
      not head.startswith(begins), f'{path} is {name}, not text; {remedy}'
    )


def _check_lines(path: str, head: bytes):
  """ConfigError if a file begins as something else than lines of JSON."""
  _check_signature(path, head)
  lines = [line.strip() for line in head.removeprefix(_BOM).splitlines()]
  lines = [line for line in lines if line][:2]
  wanted = 'where each line must be a JSON object of its own'
  config_lib.check(
    not lines or not lines[0].startswith(b'['),
    f"{path} is a JSON array, {wanted}; convert it: jq -c '.[]' {path}",
  )
  for mark, name in ((b'\t', 'TSV'), (b',', 'CSV')):
    config_lib.check(
      not lines
      or any(mark not in line or line.startswith(b'{') for line in lines),
      f'{path} looks like {name}, {wanted}; convert it, such as by '
      "pandas.read_csv(...).to_json(..., orient='records', lines=True)",
    )


def text(where: str) -> Rows:
  """One record a file of a glob pattern."""
  paths, identity = _files(where)
  return Rows(_TextFiles(paths), identity, ('text',))


class _JsonLines(Sequence):
  """Lines of files; only their offsets stay in memory."""

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
      raise UnusableError('invalid JSON', excerpt) from error
    if not isinstance(record, dict):
      raise UnusableError('not a JSON object', excerpt)
    return record


def _line_starts(path: str) -> np.ndarray:
  """int64[n], the offsets of the lines that are not blank."""
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


def jsonl(where: str) -> Rows:
  """One record a line of the files of a glob pattern."""
  paths, identity = _files(where)
  lines = _JsonLines(paths)
  config_lib.check(len(lines) > 0, 'holds no line')
  folders = {os.path.dirname(path) for path in paths}
  folder = folders.pop() if len(folders) == 1 else None
  return Rows(lines, identity, None, folder=folder)


def literal_part(path: str) -> str:
  """The longest beginning of a path that is a file or a folder, or ''.

  Names may hold what patterns and slices are made of: `lr=[1]/a#b.txt`.
  """
  while path and not os.path.lexists(path):
    path = os.path.dirname(path)
  return path


def _files(pattern: str) -> tuple[list[str], str]:
  """Matching files in the order of their names, and their identity."""
  path = str(host.expand_path(pattern))
  literal = literal_part(path)
  rest = path[len(literal) :]
  paths = glob.glob(glob.escape(literal) + rest, recursive=True)
  paths = sorted(path for path in paths if os.path.isfile(path))
  config_lib.check(len(paths) > 0, f'no file matches {pattern!r}')
  stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
  return paths, repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats])


def python(where: str) -> Rows:
  """The literal `topics: dict[str, str]` of a module, read and never run."""
  path = _module_path(where)
  if path is None:
    raise config_lib.ConfigError(f'no Python source of a module {where!r}')
  try:
    content = pathlib.Path(path).read_bytes()
    body = ast.parse(content).body
  except (OSError, SyntaxError, ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{path} is not Python: {error}') from error
  topics = None
  for node in body:
    if isinstance(node, ast.Assign) and [
      ast.unparse(target) for target in node.targets
    ] == ['topics']:
      try:
        topics = ast.literal_eval(node.value)
      except ValueError:
        break
  if not (
    isinstance(topics, dict)
    and topics
    and all(type(value) is str for value in topics.values())
  ):
    raise config_lib.ConfigError(
      f'{where} has no literal topics: dict[str, str], as pydoc_data.topics has'
    )
  records = [{'topic': name, 'text': value} for name, value in topics.items()]
  identity = hashlib.sha256(content).hexdigest()
  return Rows(records, identity, ('topic', 'text'))


def _module_path(module: str) -> str | None:
  """The source file of a module, found without importing its parents."""
  search, origin = None, None
  for index, name in enumerate(module.split('.')):
    if index and search is None:
      return None
    found = importlib.machinery.PathFinder.find_spec(name, search)
    if found is None:
      return None
    search, origin = found.submodule_search_locations, found.origin
  return origin if origin and origin.endswith('.py') else None


def reverse(where: str) -> Rows:
  """Distinct random words of 5 to 30 letters, and the same reversed."""
  config_lib.check(
    where.isdecimal()
    and len(where) <= len(str(_MAX_REVERSE))
    and 0 < int(where) <= _MAX_REVERSE,
    f'write a number of pairs from 1 to {_MAX_REVERSE:,}',
  )
  words: dict[str, None] = {}
  for word in _random_words():
    words[word] = None
    if len(words) == int(where):
      break
  records = [{'inputs': word, 'targets': word[::-1]} for word in words]
  return Rows(records, where, ('inputs', 'targets'))


def _random_words() -> Iterator[str]:
  generator = np.random.default_rng(0)
  while True:
    letters = generator.integers(ord('a'), ord('z') + 1, (4096, 30), np.uint8)
    lengths = generator.integers(5, 31, 4096)
    for row, length in zip(letters, lengths, strict=True):
      yield row[:length].tobytes().decode('ascii')
