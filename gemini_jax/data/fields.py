"""Fields of one record, as a task reads them: texts, media and labels."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import chat, media, medium, numbers, sources, unusable
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib

# The field that holds a record's labels, {attribute: value}.
LABEL_FIELD = 'label'


def texts_of(
  source: sources.Source, record: dict[str, Any], task: task_lib.Task
) -> tuple[str, ...]:
  """`(text,)` or `(inputs, targets)`: texts of a task, without its media.

  Raises:
    UnusableError: a field is missing, empty or not text.
  """
  return tuple(
    ''.join(
      text_of(record, piece, source.names)
      for piece in part
      if piece.kind not in (*config_lib.KINDS, *task_lib.HEADS)
    )
    for part in task.parts
  )


def medium_of(
  source: sources.Source,
  record: dict[str, Any],
  piece: task_lib.Piece,
  config: config_lib.Data,
  model: config_lib.Model,
) -> medium.Medium:
  """A medium of a record, on the canvas of the model.

  Raises:
    UnusableError: the field is missing or cannot be read.
  """
  if piece.kind in config_lib.NUMERIC:
    return numbers.medium_of(record, piece, config, model)
  value = _present(record, piece.value)
  try:
    return media.read(
      piece.kind,
      value,
      model,
      config.audio_sample_rate,
      source.rows.folder,
      config.max_media_pixels,
    )
  except unusable.UnusableError as error:
    # A numpy scalar has no length, so `not value` would be wrong for it.
    is_empty = isinstance(value, str | bytes | list) and not value
    is_empty |= isinstance(value, np.ndarray) and not value.size
    kind = unusable.EmptyError if is_empty else unusable.UnusableError
    raise kind(f'{piece.value!r}: {error}') from error


def chat_of(
  record: dict[str, Any],
  piece: task_lib.Piece,
  tokenizer: tokenizer_lib.Tokenizer,
) -> chat.Document:
  """A conversation of a record, as tokens.

  Raises:
    UnusableError: the field is missing or holds none, or the template refuses
      it.
  """
  if piece.value not in record:
    raise unusable.AbsentError(f'no field {piece.value!r}')
  try:
    messages = chat.check_messages(record[piece.value])
    return chat.document(tokenizer, messages)
  except chat.ChatError as error:
    raise unusable.UnusableError(f'{piece.value!r}: {error}') from error


def _present(record: Mapping[str, Any], field: str) -> Any:
  """The value of a field that a record must have."""
  value = record.get(field)
  if value is None:
    raise unusable.AbsentError(f'no field {field!r}')
  return value


def words_of(
  record: Mapping[str, Any], piece: task_lib.Piece
) -> tuple[str, ...]:
  """The words of a field, none of them empty or with a space in it.

  Raises:
    UnusableError: the field is missing, or not a list of words.
  """
  value = _present(record, piece.value)
  if not isinstance(value, Sequence | np.ndarray) or isinstance(
    value, str | bytes
  ):
    raise unusable.UnusableError(f'{piece.value!r} is not a list of words')
  if not len(value):
    raise unusable.EmptyError(f'{piece.value!r} is empty')
  words = tuple(
    text_of({piece.value: word}, task_lib.Piece(task_lib.TEXT, piece.value), {})
    for word in value
  )
  for word in words:
    if word.split() != [word]:
      raise unusable.UnusableError(f'{piece.value!r}: {word!r} is not a word')
  return words


@dataclasses.dataclass(frozen=True)
class ClassIndex:
  """Finds the number of a class by what a record says.

  Attributes:
    names: of all classes, in the order of their numbers.
    source_names: of the numbers that the source has; (): none.
  """

  names: tuple[str, ...]
  source_names: tuple[str, ...] = ()

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {name: number for number, name in enumerate(self.names)}

  def number(self, field: str, value: Any) -> int:
    """The number of a class.

    A number is the class that the source calls so, or of that name, such as
    '3'; else its place among the names.

    Raises:
      UnusableError: the value is none of the classes.
    """
    name = class_name(field, value, self.source_names)
    if name in self._numbers:
      return self._numbers[name]
    if not isinstance(value, int | np.integer) or not (
      0 <= value < len(self.names)
    ):
      raise unusable.UnusableError(
        f'{field!r} is none of the {len(self.names)} classes'
      )
    return int(value)


def classes_of(
  record: Mapping[str, Any], piece: task_lib.Piece, index: ClassIndex
) -> tuple[int, ...]:
  """The numbers of the class of a record, of its words' or of its labels.

  Raises:
    UnusableError: the field is missing, or a class is not known.
  """
  if piece.kind == task_lib.LABELS:
    labels = label_list(record, piece)
    return tuple(index.number(piece.value, label) for label in labels)
  value = _present(record, piece.value)
  values = [value]
  if piece.kind == task_lib.TAGS:
    if not isinstance(value, list | tuple | np.ndarray):
      raise unusable.UnusableError(f'{piece.value!r} is not a list of tags')
    values = list(value)
  return tuple(index.number(piece.value, label) for label in values)


def label_list(record: Mapping[str, Any], piece: task_lib.Piece) -> list[Any]:
  """The labels of a record as it gives them: a list, or one of JSON.

  Raises:
    UnusableError: the field is missing, or no list.
  """
  value = record.get(piece.value)
  if value is None:
    raise unusable.AbsentError(f'no field {piece.value!r}')
  if isinstance(value, str):
    # What is no JSON is refused below.
    with contextlib.suppress(ValueError, RecursionError):
      value = json.loads(value)
  if not isinstance(value, list | tuple | np.ndarray):
    raise unusable.UnusableError(f'{piece.value!r} is not a list of labels')
  return list(value)


def class_name(field: str, value: Any, names: Sequence[str]) -> str:
  """The name of a class that a record gives by name or by number.

  Args:
    field: of the record.
    value: what it holds.
    names: of the numbers; a number without one is its own name.

  Raises:
    UnusableError: it is neither a name nor a number.
  """
  if isinstance(value, int | np.integer):
    is_named = 0 <= value < len(names)
    return names[int(value)] if is_named else str(int(value))
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  if not isinstance(value, str) or not value:
    raise unusable.UnusableError(f'{field!r} is neither a name nor a number')
  return value


def label_of(record: dict[str, Any]) -> dict[str, str]:
  """The attributes of a record and their values, as text.

  Raises:
    UnusableError: the record has none, or a value is not text, a number or a
      boolean.
  """
  label = record.get(LABEL_FIELD)
  if not isinstance(label, dict) or not label:
    raise unusable.UnusableError(f'no {LABEL_FIELD!r} of attributes and values')
  # A value of null means that it is unknown.
  known = {name: value for name, value in label.items() if value is not None}
  for name, value in known.items():
    if not isinstance(value, str | int | float):
      raise unusable.UnusableError(
        f'{LABEL_FIELD!r} of {name!r} is not text, a number or a boolean'
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
  """The text of a literal or of a field.

  Args:
    record: fields by name.
    piece: a literal or a field of text or words.
    names: names of the values of fields that are numbers.

  Raises:
    UnusableError: the field is missing, empty or not text.
  """
  if piece.kind == task_lib.LITERAL:
    return piece.value
  if piece.kind == task_lib.WORDS:
    return ' '.join(words_of(record, piece))
  field = piece.value
  value = _present(record, field)
  if field in names and isinstance(value, int | np.integer):
    if not 0 <= value < len(names[field]):
      raise unusable.UnusableError(f'{field!r} is a number without a name')
    value = names[field][int(value)]
  try:
    if isinstance(value, bytes):
      value = value.decode('utf-8')
    if not isinstance(value, str):
      raise unusable.UnusableError(f'{field!r} is not text')
    value.encode('utf-8')
  except UnicodeError as error:
    raise unusable.UnusableError(f'{field!r} is not Unicode') from error
  if not value:
    raise unusable.EmptyError(f'{field!r} is empty')
  return value
