"""Numbers and series of a record, and how they are normalised.

A task reads `{number:FIELD}` as one number, which may be missing, and
`{series:FIELD}` as a list of numbers, or of steps with a number for each
channel. Tables of text hold a series as a JSON list in a cell. Both are
normalised by `data.normalization`: mean 0 and standard deviation 1 over the
training data, by field and channel.

T steps, C channels.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import medium, unusable
from gemini_jax.data import task as task_lib

# Numbers farther from the mean are refused, in standard deviations. Training
# data of n records have none beyond the root of n.
_MAX_DEVIATIONS = 1e6


def names_of(piece: task_lib.Piece, model: config_lib.Model) -> tuple[str, ...]:
  """The entries of `data.normalization` of a field, one a channel."""
  if piece.kind == task_lib.NUMBER:
    return (piece.value,)
  channels = range(model.series.channels)
  return tuple(f'{piece.value}.{channel}' for channel in channels)


def read(
  record: Mapping[str, Any], piece: task_lib.Piece, model: config_lib.Model
) -> np.ndarray:
  """Numbers of a field as they are, float64[T, C]; of a number [1, 1].

  Of a series longer than `model.series.length` the first steps.

  Raises:
    AbsentError: the field is missing or empty.
    UnusableError: it holds something else.
  """
  value = record.get(piece.value)
  if value is None or (isinstance(value, str) and not value.strip()):
    raise unusable.AbsentError(f'no field {piece.value!r}')
  if piece.kind == task_lib.NUMBER:
    values_TC = np.array([[_number(piece.value, value)]])
  else:
    values_TC = _series(piece.value, value, model.series)
  if not np.isfinite(values_TC).all():
    raise unusable.UnusableError(f'{piece.value!r} holds NaN or infinity')
  return values_TC


def _number(field: str, value: Any) -> float:
  try:
    if isinstance(value, str | int | float | np.number | np.bool_):
      return float(value)
  except (ValueError, TypeError, OverflowError):
    # Refused below, like other types.
    pass
  raise unusable.UnusableError(f'{field!r} is not a number')


def _series(field: str, value: Any, config: config_lib.Series) -> np.ndarray:
  try:
    steps = json.loads(value) if isinstance(value, str) else value
    if not isinstance(steps, list | tuple | np.ndarray):
      raise TypeError('no list')
    values_TC = np.asarray(steps, np.float64)
  except (ValueError, TypeError, OverflowError, RecursionError) as error:
    raise unusable.UnusableError(
      f'{field!r} is not a series: a list of numbers, or of lists of numbers'
    ) from error
  if values_TC.ndim == 1:
    values_TC = values_TC[:, None]
  if values_TC.ndim != 2 or values_TC.shape[1] != config.channels:
    shape = ' x '.join(map(str, values_TC.shape))
    raise unusable.UnusableError(
      f'{field!r} is a series of {shape} numbers, and model.series.channels='
      f'{config.channels}'
    )
  if len(values_TC) < config.patch:
    raise unusable.UnusableError(
      f'{field!r} has {len(values_TC)} steps, less than the '
      f'model.series.patch={config.patch} of a token'
    )
  return values_TC[: config.length]


def statistics(
  piece: task_lib.Piece, config: config_lib.Data, model: config_lib.Model
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each channel of a field, float64[C].

  `data.normalization` must have them.
  """
  known = config.normalization
  places = [known.fields.index(name) for name in names_of(piece, model)]
  means, deviations = (
    np.array([values[place] for place in places], np.float64)
    for values in (known.means, known.deviations)
  )
  return means, deviations


def normalised(
  record: Mapping[str, Any],
  piece: task_lib.Piece,
  config: config_lib.Data,
  model: config_lib.Model,
) -> np.ndarray:
  """As `read`, normalised, in float32.

  Raises:
    AbsentError: the field is missing.
    UnusableError: it holds something else, or a number so far from the training
      data that a model could not compute with it.
  """
  mean_C, deviation_C = statistics(piece, config, model)
  values_TC = read(record, piece, model)
  with np.errstate(over='ignore'):
    scaled_TC = (values_TC - mean_C[None]) / deviation_C[None]
  if not (np.abs(scaled_TC) <= _MAX_DEVIATIONS).all():
    raise unusable.UnusableError(
      f'{piece.value!r} holds {np.abs(values_TC).max():g}, too far from the '
      'training data'
    )
  return scaled_TC.astype(np.float32)


def restored(
  values_N: np.ndarray, piece: task_lib.Piece, config: config_lib.Data
) -> np.ndarray:
  """float64[N], normalised numbers of a field in the units of the data."""
  mean_1, deviation_1 = statistics(piece, config, config_lib.Model())
  return np.asarray(values_N, np.float64) * deviation_1 + mean_1


def medium_of(
  record: Mapping[str, Any],
  piece: task_lib.Piece,
  config: config_lib.Data,
  model: config_lib.Model,
) -> medium.Medium:
  """A number or a series of a record, as the model reads it.

  The extent of a number is the place of its field among those of all tasks,
  from 1; a missing one is NaN.

  Raises:
    UnusableError: it cannot be used, or a series is missing.
  """
  if piece.kind == task_lib.SERIES:
    values_TC = normalised(record, piece, config, model)
    shape = model.series.num_steps, model.series.channels
    return medium.on_canvas(values_TC, shape)
  place = 1 + task_lib.number_fields(config.tasks).index(piece.value)
  try:
    values_1 = normalised(record, piece, config, model)[0]
  except unusable.AbsentError:
    values_1 = np.array([np.nan], np.float32)
  return medium.Medium(values_1, np.array([place], np.int32))
