"""Examples: what each record of a source gives to each task.

Records that cannot be used are skipped and counted by reason in a `Tally`.
"""

import functools
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import tqdm

from gemini_jax import config as config_lib
from gemini_jax.data import (
  class_targets,
  fields,
  numbers,
  sources,
  transforms,
  unusable,
)
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib

_SECONDS_BETWEEN_LINES = 10
T = TypeVar('T')


def texts(
  source: sources.Source, config: config_lib.Data, tally: unusable.Tally
) -> Iterator[tuple[str, ...]]:
  """`(text,)` or `(inputs, targets)` of each record and task, without media."""
  tasks = task_lib.from_config(config)
  read = functools.partial(fields.texts_of, source)
  for _, example in _usable(source, tasks, tally, read):
    yield example


def examples(
  source: sources.Source,
  config: config_lib.Data,
  model: config_lib.Model,
  tally: unusable.Tally,
  tokenizer: tokenizer_lib.Tokenizer,
) -> Iterator[transforms.Example]:
  """The example that each record gives to each task.

  Media are read, to check that they can be and to count their soft tokens, and
  conversations are tokenized, to check that the chat template takes them.
  """
  tasks = task_lib.from_config(config)
  if config.chat_field:
    yield from _conversations(source, tasks, tally, tokenizer)
    return

  index = fields.ClassIndex(
    config.label_names,
    tuple(source.rows.names.get(getattr(tasks[0].head, 'value', ''), ())),
  )
  # Cached, since several tasks may read the same field of a record.
  slots: dict[Any, tuple[transforms.Slots, bytes]] = {}
  last: Any = None

  def read_piece(record, piece):
    nonlocal last
    if piece.kind not in config_lib.KINDS:
      return fields.text_of(record, piece, source.names)
    if record is not last:
      slots.clear()
      last = record
    if piece not in slots:
      values, size = fields.medium_of(source, record, piece, config, model)
      count = model.tokens_of(piece.kind, size.tolist())
      digest = hashlib.sha256(values.tobytes()).digest()
      slots[piece] = transforms.Slots(piece.kind, count), digest
    placeholders, digest = slots[piece]
    digests.append(digest)
    return placeholders

  digests: list[bytes] = []

  def read(record, task):
    digests.clear()
    if task.head is None:
      parts = tuple(
        tuple(read_piece(record, p) for p in part) for part in task.parts
      )
    else:
      inputs = tuple(read_piece(record, p) for p in task.inputs or ())
      target = _head_target(record, task.head, index, config, model)
      if task.head.kind == task_lib.TAGS:
        # Sees that each word has a token and a tag.
        assert isinstance(target, transforms.Classes)
        class_targets.classified(inputs, target, tokenizer)
      parts = inputs, (target,)
    return parts, b''.join(digests)

  for origin, (parts, media_digest) in _usable(source, tasks, tally, read):
    yield transforms.Example(origin, parts, media_digest)


def _head_target(
  record: dict[str, Any],
  piece: task_lib.Piece,
  index: fields.ClassIndex,
  config: config_lib.Data,
  model: config_lib.Model,
) -> transforms.Classes | transforms.Values:
  """What an output of the model is to predict of a record.

  Raises:
    UnusableError: the field is missing or holds something else.
  """
  if piece.kind == task_lib.NUMBER:
    values_11 = numbers.normalised(record, piece, config, model)
    return transforms.Values(values_11[0])
  ids = fields.classes_of(record, piece, index)
  if piece.kind == task_lib.LABELS:
    values_K = np.zeros(len(index.names), np.float32)
    values_K[list(ids)] = 1
    return transforms.Values(values_K)
  return transforms.Classes(ids, piece.kind == task_lib.TAGS)


def _conversations(
  source: sources.Source,
  tasks: Sequence[task_lib.Task],
  tally: unusable.Tally,
  tokenizer: tokenizer_lib.Tokenizer,
) -> Iterator[transforms.Example]:
  config_lib.check(
    bool(tokenizer.chat_template),
    f'{source.name}: conversations need a chat template, and the tokenizer has '
    'none',
  )
  read = lambda record, task: tuple(
    fields.chat_of(record, piece, tokenizer) for piece in task.pieces
  )
  for origin, conversations in _usable(source, tasks, tally, read):
    yield transforms.Example(origin, (), conversations=conversations)


def labelled(
  source: sources.Shuffled, config: config_lib.Data, tally: unusable.Tally
) -> Iterator[tuple[str, dict[str, str]]]:
  """The text of each record and the values of its attributes."""
  tasks = task_lib.from_config(config)
  read = lambda record, task: (
    fields.text_of(record, task.pieces[0], {}),
    fields.label_of(record),
  )
  for _, example in _usable(source, tasks, tally, read):
    yield example


def _usable(
  source: sources.Source | sources.Shuffled,
  tasks: Sequence[task_lib.Task],
  tally: unusable.Tally,
  read: Callable[[dict[str, Any], task_lib.Task], T],
) -> Iterator[tuple[int, T]]:
  """Number and result of `read` for each record and task.

  The number is that of the record times the number of tasks, plus the task's.
  """
  for index in _progress(len(source), source.name):
    place = functools.partial(source.place, index)
    try:
      record = source[index]
    except unusable.UnusableError as error:
      tally.leave_out(
        error, source.number(index), count=len(tasks), place=place
      )
      continue
    errors = []
    for number, task in enumerate(tasks):
      try:
        example = read(record, task)
      except unusable.UnusableError as error:
        errors.append(error)
        continue
      tally.usable += 1
      yield index * len(tasks) + number, example
    for error in errors:
      absent = isinstance(error, unusable.EmptyError) or (
        isinstance(error, unusable.AbsentError) and len(errors) < len(tasks)
      )
      tally.leave_out(
        error, source.number(index), record, absent=absent, place=place
      )


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
