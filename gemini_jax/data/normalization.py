"""Means and standard deviations of numbers and series in the training data.

A run that begins measures them; `data.normalization` of its config keeps them,
so that a saved run reads and writes the units of the data without these.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import numbers, sources, unusable
from gemini_jax.data import task as task_lib


class _Moments:
  """Count, mean, sum of squared distances from it, and range, by channel.

  They are merged record by record (Chan et al. 1979), so that a large mean
  does not cost the precision of a small deviation.
  """

  def __init__(self):
    self.count = 0
    self.mean = self.squares = np.zeros(1)
    self.low, self.high = np.full(1, np.inf), np.full(1, -np.inf)
    self.error: unusable.UnusableError | None = None

  def add(self, values_TC: np.ndarray):
    """Merges the numbers of a record."""
    # What overflows is refused in the end.
    with np.errstate(over='ignore', invalid='ignore'):
      self._add(values_TC)
    self.low = np.minimum(self.low, values_TC.min(axis=0))
    self.high = np.maximum(self.high, values_TC.max(axis=0))

  def _add(self, values_TC: np.ndarray):
    count, mean_C = len(values_TC), values_TC.mean(axis=0)
    total = self.count + count
    delta_C = mean_C - self.mean
    self.mean = self.mean + delta_C * (count / total)
    self.squares = (
      self.squares
      + np.square(values_TC - mean_C[None]).sum(axis=0)
      + np.square(delta_C) * (self.count * count / total)
    )
    self.count = total


def resolve(
  config: config_lib.Config, saved: config_lib.Config | None
) -> config_lib.Config:
  """The config with `data.normalization` of the fields that its tasks have.

  Args:
    config: of a run; one without numbers and series is returned as it is.
    saved: of the same run when it began; None: it begins now.

  Raises:
    ConfigError: a field holds no number, or always the same; it is not among
      those that are given; or the data cannot be read.
  """
  pieces = tuple(
    dict.fromkeys(
      piece
      for task in task_lib.from_config(config.data)
      for piece in task.pieces
      if piece.kind in config_lib.NUMERIC
    )
  )
  fields = task_lib.number_fields(config.data.tasks)
  config_lib.check(
    config.model.num_numbers in (0, len(fields)),
    f'model.num_numbers={config.model.num_numbers}, and data.tasks read '
    f'{len(fields)} fields of numbers; leave it out',
  )
  if not pieces:
    return config
  series = [p.value for p in pieces if p.kind == task_lib.SERIES]
  config_lib.check(
    not series or config.model.series.length > 0,
    f'data.tasks={config.data.tasks} read series; set model.series.length',
  )
  known = config.data.normalization
  if not known.fields and saved is not None:
    known = saved.data.normalization
  if not known.fields:
    known = _measured(pieces, config)
  for piece in pieces:
    for name in numbers.names_of(piece, config.model):
      config_lib.check(
        name in known.fields,
        f'data.normalization.fields={known.fields} lacks {name!r}, which '
        'data.tasks read',
      )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, normalization=known),
    model=dataclasses.replace(config.model, num_numbers=len(fields)),
  )


def _measured(
  pieces: Sequence[task_lib.Piece], config: config_lib.Config
) -> config_lib.Normalization:
  """Statistics of data.train, of the records that can be used."""
  moments_of = {piece: _Moments() for piece in pieces}
  for spec in config.data.train:
    source = sources.records(spec, config.data)
    for index in range(len(source)):
      try:
        record = source[index]
      except unusable.UnusableError:
        # Counted, with its reason, when the records are tokenized.
        continue
      for piece, moments in moments_of.items():
        try:
          moments.add(numbers.read(record, piece, config.model))
        except unusable.UnusableError as error:
          moments.error = error
  fields, means, deviations = [], [], []
  for piece, moments in moments_of.items():
    kind = f'{{{piece.kind}:{piece.value}}}'
    config_lib.check(
      moments.count > 0,
      f'data.train has nothing that {kind} of data.tasks can read: '
      f'{moments.error}',
    )
    for channel, name in enumerate(numbers.names_of(piece, config.model)):
      config_lib.check(
        bool(moments.low[channel] < moments.high[channel]),
        f'data.train: {name!r} is {moments.low[channel]:g} in all records: '
        f'such a constant column cannot be normalised; leave {kind} out of '
        'data.tasks',
      )
      deviation = float(np.sqrt(moments.squares[channel] / moments.count))
      config_lib.check(
        0 < deviation < np.inf,
        f'data.train: {name!r} has numbers from {moments.low[channel]:g} to '
        f'{moments.high[channel]:g}, whose standard deviation float64 does not '
        'hold; scale them',
      )
      fields.append(name)
      means.append(float(moments.mean[channel]))
      deviations.append(deviation)
  logging.info('%d fields of numbers measured in data.train', len(fields))
  return config_lib.Normalization(
    tuple(fields), tuple(means), tuple(deviations)
  )
