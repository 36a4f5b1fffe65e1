"""The kinds of sources: each gives rows of records and their identity."""

import array
import ast
import dataclasses
import glob
import hashlib
import importlib.machinery
import json
import os
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from gemini_jax import config as config_lib

_MAX_REVERSE = 10_000_000


class UnusableError(Exception):
  """A record that cannot be trained on, with the reason."""


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

  folder = config.data_dir and os.path.expanduser(config.data_dir)
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every file it opens.
  try:
    # What was prepared is read without the code that prepared it.
    prepared = _newest(folder, where) if folder else None
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
      return {'text': pathlib.Path(path).read_bytes().decode('utf-8')}
    except OSError as error:
      raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
      raise config_lib.ConfigError(
        f'{path} is not UTF-8 at byte {error.start}'
      ) from error


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
    with open(self._paths[self._files[index]], 'rb') as file:
      file.seek(self._starts[index])
      line = file.readline()
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UnusableError('invalid JSON') from error
    if not isinstance(record, dict):
      raise UnusableError('not a JSON object')
    return record


def _line_starts(path: str) -> np.ndarray:
  """int64[n], the offsets of the lines that are not blank."""
  starts, offset = array.array('q'), 0
  try:
    with open(path, 'rb') as file:
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


def _files(pattern: str) -> tuple[list[str], str]:
  """Matching files in the order of their names, and their identity."""
  paths = glob.glob(os.path.expanduser(pattern), recursive=True)
  paths = sorted(path for path in paths if os.path.isfile(path))
  config_lib.check(len(paths) > 0, f'no file matches {pattern!r}')
  stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
  return paths, repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats])


def python(where: str) -> Rows:
  """The literal `topics: dict[str, str]` of a module, read and never run."""
  path = _module_path(where)
  if path is None:
    raise config_lib.ConfigError(f'no Python source of a module {where!r}')
  content = pathlib.Path(path).read_bytes()
  topics = None
  for node in ast.parse(content).body:
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
    where.isdecimal() and 0 < int(where) <= _MAX_REVERSE,
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
