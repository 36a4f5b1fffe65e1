"""What a task reads of one record: its texts, media and labels."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import media, medium, sources, unusable
from gemini_jax.data import task as task_lib

# Where a record says its attributes, {attribute: value}.
LABEL_FIELD = 'label'


def texts_of(
  source: sources.Source, record: dict[str, Any], task: task_lib.Task
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


def medium_of(
  source: sources.Source,
  record: dict[str, Any],
  piece: task_lib.Piece,
  config: config_lib.Data,
  model: config_lib.Model,
) -> medium.Medium:
  """A picture, sound or video of a record, as the model takes it; its extent.

  Raises:
    UnusableError: it is not there or cannot be read.
  """
  value = record.get(piece.value)
  if value is None:
    raise unusable.AbsentError(f'no field {piece.value!r}')
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
    # Of numpy's arrays of one number, which have no length, too.
    is_empty = isinstance(value, str | bytes | list) and not value
    is_empty |= isinstance(value, np.ndarray) and not value.size
    kind = unusable.EmptyError if is_empty else unusable.UnusableError
    raise kind(f'{piece.value!r}: {error}') from error


def label_of(record: dict[str, Any]) -> dict[str, str]:
  """The attributes of a record and their values, as text.

  Raises:
    UnusableError: there are none, or a value is no text, number or boolean.
  """
  label = record.get(LABEL_FIELD)
  if not isinstance(label, dict) or not label:
    raise unusable.UnusableError(f'no {LABEL_FIELD!r} of attributes and values')
  # What is null is not known.
  known = {name: value for name, value in label.items() if value is not None}
  for name, value in known.items():
    if not isinstance(value, str | int | float):
      raise unusable.UnusableError(
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
    raise unusable.AbsentError(f'no field {field!r}')
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
