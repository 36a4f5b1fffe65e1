"""The token cache: tokenized sources on disk, memory-mapped.

A folder holds the arrays of one source as raw files and `meta.json`, which is
written last and holds their digests and its own. A folder whose files do not
match its `meta.json` is rebuilt.
"""

import array
import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import chat, class_targets, transforms, unusable
from gemini_jax.data import tokenizer as tokenizer_lib

# Part of every key; to be raised when the format of the files changes.
_VERSION = 3
# Tokens held in memory before they are written.
_BUFFER_TOKENS = 1 << 20

# Gives the examples and a note for the log; counts usable and unusable ones.
Read = Callable[[unusable.Tally], tuple[Iterable[transforms.Example], str]]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A tokenized source of R documents.

  Of preferences two for each example: the preferred one, then the rejected one.

  Attributes:
    tokens: uint16 or uint32 [N], the documents one after the other.
    offsets: int64[R + 1], the index of the first token of each document.
    firsts: int64[R], index of the first target in each document.
    sizes: int64[R], UTF-8 bytes of the text in the targets.
    origins: int64[R], number of the record and task (transforms.Example).
    tally: counts of usable and of skipped examples.
    unknown: number of unk tokens.
    note: how the source was preprocessed, for the log.
    digest: hex digest of the tokens and, if there are any, of the media.
    is_target: bool[N], tokens that are targets, of conversations; None where
      `firsts` tells.
    classes: uint16[N], of `class_targets.classified`; None where targets are
      tokens. 1 where numbers or labels are predicted.
    values: float32[R, K], numbers or labels; None where there are none.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  firsts: np.ndarray
  sizes: np.ndarray
  origins: np.ndarray
  tally: unusable.Tally
  unknown: int
  note: str
  digest: str
  is_target: np.ndarray | None = None
  classes: np.ndarray | None = None
  values: np.ndarray | None = None


def folder(config: config_lib.Data) -> pathlib.Path:
  """The folder of the token cache."""
  if config.cache_dir:
    return host.expand_path(config.cache_dir)
  return host.cache_folder('tokens')


def key(*parts: str) -> str:
  """The name of the folder of a corpus, a hash of all that it depends on."""
  return hashlib.sha256(repr((_VERSION, *parts)).encode()).hexdigest()[:32]


def open_or_build(
  path: pathlib.Path,
  read: Read,
  tokenizer: tokenizer_lib.Tokenizer,
  placeholders: Mapping[str, int] = types.MappingProxyType({}),
) -> Corpus:
  """The corpus in the folder `path`, which is tokenized now if it is missing.

  Several processes may build the same corpus; the first to finish wins.

  Args:
    path: the folder of the corpus.
    read: gives the examples of the source and a note for the log, and counts
      the records that it skips.
    tokenizer: encodes the examples.
    placeholders: token id of each kind of medium.

  Raises:
    ConfigError: the folder cannot be written.
  """
  corpus = _open(path)
  if corpus is not None:
    return corpus
  with _writing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    work = tempfile.mkdtemp(prefix='building-', dir=path.parent)
  try:
    _write(pathlib.Path(work), read, tokenizer, placeholders)
    with _writing(path.parent):
      _publish(pathlib.Path(work), path)
  finally:
    shutil.rmtree(work, ignore_errors=True)
  corpus = _open(path)
  if corpus is None:
    raise config_lib.ConfigError(
      f'data.cache_dir={str(path.parent)!r}: {path.name} is damaged and cannot '
      'be replaced; delete it'
    )
  return corpus


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
  """Turns an OSError while the cache is written into a ConfigError."""
  try:
    yield
  except OSError as error:
    raise config_lib.ConfigError(
      f'data.cache_dir={str(folder)!r}: {error.strerror or error}'
    ) from error


def _write(work, read, tokenizer, placeholders):
  tally = unusable.Tally()
  largest = max(tokenizer.vocab_size - 1, *placeholders.values(), 0)
  dtype = np.uint16 if largest < 1 << 16 else np.uint32
  offsets, firsts, sizes, origins = (array.array('q') for _ in range(4))
  offsets.append(0)
  unknown, buffer, buffered, media = 0, [], 0, hashlib.sha256()
  examples, note = read(tally)
  writing = lambda: _writing(work.parent)

  masks: list[np.ndarray] = []
  classes: list[np.ndarray] = []
  values: list[np.ndarray] = []
  names = list(_FILES)

  def flush():
    for name, arrays, kind in (
      (_FILES[0], buffer, dtype),
      (_IS_TARGET, masks, bool),
      (_CLASSES, classes, np.uint16),
      (_VALUES, values, np.float32),
    ):
      if name in names:
        with writing(), open(work / name, 'ab') as file:
          file.write(np.concatenate([*arrays, np.empty(0, kind)]).tobytes())
      arrays.clear()

  flush()
  for example in examples:
    for document in example.documents:
      if isinstance(document, chat.Document):
        tokens, is_target, _ = document
        first = int(np.argmax(is_target))
        masks.append(is_target)
        names = [*_FILES, _IS_TARGET]
      elif isinstance(document[-1][0], transforms.Classes | transforms.Values):
        inputs, (targets,) = document
        names = [*_FILES, _CLASSES]
        if isinstance(targets, transforms.Values):
          values.append(targets.numbers)
          names.append(_VALUES)
          targets = transforms.Classes((0,))
        tokens, predicted = class_targets.classified(
          inputs, targets, tokenizer, placeholders
        )
        first = len(tokens) - 1
        classes.append(predicted)
      else:
        tokens, first = transforms.document(document, tokenizer, placeholders)
      unknown += int(np.count_nonzero(tokens == tokenizer.unk_id))
      offsets.append(offsets[-1] + len(tokens))
      firsts.append(first)
      sizes.append(transforms.num_bytes(document))
      origins.append(example.origin)
      buffer.append(tokens.astype(dtype))
      buffered += len(tokens)
    media.update(example.media)
    if buffered > _BUFFER_TOKENS:
      flush()
      buffered = 0
  flush()
  for name, numbers in (
    ('offsets', offsets),
    ('firsts', firsts),
    ('sizes', sizes),
    ('origins', origins),
  ):
    with writing():
      (work / f'{name}.bin').write_bytes(numbers.tobytes())
  meta = {
    'dtype': np.dtype(dtype).name,
    'files': {name: _digest(work / name) for name in names},
    'media': media.hexdigest()[:32] if placeholders else '',
    'usable': tally.usable,
    'absent': tally.num_absent,
    'unusable': dict(tally.unusable),
    'shown': tally.shown,
    'unknown': unknown,
    'note': note,
  }
  meta['digest'] = _meta_digest(meta)
  with writing():
    (work / 'meta.json').write_text(json.dumps(meta, indent=2))


_FILES = (
  *('tokens.bin', 'offsets.bin', 'firsts.bin', 'sizes.bin'),
  'origins.bin',
)
# Only of conversations, and of targets that are classes, labels or numbers.
_IS_TARGET, _CLASSES = 'is_target.bin', 'classes.bin'
_VALUES = 'values.bin'


def _publish(work: pathlib.Path, path: pathlib.Path):
  """Renames `work` to `path`, unless another process did so first."""
  if os.path.lexists(path) and _open(path) is None:
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)
  try:
    os.rename(work, path)
  except OSError:
    if not path.exists():
      raise


def _digest(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _meta_digest(meta: Mapping[str, Any]) -> str:
  """Hex digest of `meta` without its own entry `digest`."""
  rest = {name: value for name, value in meta.items() if name != 'digest'}
  content = json.dumps(rest, sort_keys=True).encode()
  return hashlib.sha256(content).hexdigest()


def _open(path: pathlib.Path) -> Corpus | None:
  """The corpus in a folder; None if it is missing or damaged."""
  try:
    meta = json.loads((path / 'meta.json').read_bytes())
    whole = meta['digest'] == _meta_digest(meta) and all(
      meta['files'][name] == _digest(path / name)
      for name in {*_FILES, *meta['files']}
    )
  except FileNotFoundError:
    return None
  except (OSError, *host.MALFORMED) as error:
    logging.warning('%s will be built again: %s', path, error)
    return None
  if not whole:
    logging.warning('%s is damaged and will be built again', path)
    return None
  return _corpus(path, meta)


def _corpus(path: pathlib.Path, meta: dict[str, Any]) -> Corpus:
  dtype = np.dtype(meta['dtype'])
  # An empty file cannot be memory-mapped.
  empty = not (path / 'tokens.bin').stat().st_size
  is_target = None
  if _IS_TARGET in meta['files']:
    is_target = np.memmap(path / _IS_TARGET, bool, 'r')
  classes = None
  if _CLASSES in meta['files']:
    classes = np.memmap(path / _CLASSES, np.uint16, 'r')
  offsets, values = np.fromfile(path / 'offsets.bin', np.int64), None
  if _VALUES in meta['files']:
    values = np.memmap(path / _VALUES, np.float32, 'r')
    values = values.reshape(len(offsets) - 1, -1)
  return Corpus(
    tokens=np.empty(0, dtype)
    if empty
    else np.memmap(path / 'tokens.bin', dtype, 'r'),
    is_target=is_target,
    classes=classes,
    values=values,
    offsets=offsets,
    firsts=np.fromfile(path / 'firsts.bin', np.int64),
    sizes=np.fromfile(path / 'sizes.bin', np.int64),
    origins=np.fromfile(path / 'origins.bin', np.int64),
    tally=unusable.Tally(
      meta['usable'],
      meta['absent'],
      collections.Counter(meta['unusable']),
      meta['shown'],
    ),
    unknown=meta['unknown'],
    note=meta['note'],
    digest=' '.join(
      filter(
        None,
        (
          hashlib.sha256(repr(meta['files']).encode()).hexdigest()[:32],
          meta['media'],
        ),
      )
    ),
  )
