"""Records and texts of a split of the data, not tokenized."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import (
  deduplication,
  examples,
  fields,
  medium,
  sources,
  unusable,
)
from gemini_jax.data import task as task_lib

Split = Literal['train', 'validation', 'test']


def texts(config: config_lib.Data, split: Split) -> Iterator[str]:
  """Every usable text of a split, inputs and targets alike.

  Raises:
    ConfigError: a source cannot be read.
  """
  unique = (
    deduplication.sources_without_repeats(config) if config.deduplicate else {}
  )
  for spec in getattr(config, split):
    if unique:
      source, report = unique[spec]
      report.tally.check(source.name, config.max_unusable)
    else:
      source = sources.records(spec, config)
    tally = unusable.Tally()
    for record in examples.texts(source, config, tally):
      yield from record
    tally.check(source.name, config.max_unusable)


def pairs(
  config: config_lib.Data, split: Split, most: int
) -> list[tuple[str, ...]]:
  """The first `most` usable (inputs, targets) of a split.

  Raises:
    ConfigError: a source cannot be read.
  """
  found: list[tuple[str, ...]] = []
  for spec in getattr(config, split):
    records = examples.texts(
      sources.records(spec, config), config, unusable.Tally()
    )
    found += itertools.islice(records, most - len(found))
  return found


def spread_records(
  config: config_lib.Data, split: Split, most: int
) -> Iterator[tuple[sources.Source, dict[str, Any]]]:
  """`most` records of a split, at even distances, each with its source."""
  found = [sources.records(spec, config) for spec in getattr(config, split)]
  ends = np.cumsum([len(source) for source in found])
  for place in np.unique(np.linspace(0, ends[-1] - 1, most).astype(int)):
    number = int(np.searchsorted(ends, place, 'right'))
    source = found[number]
    try:
      yield source, source[int(place - ends[number] + len(source))]
    except unusable.UnusableError:
      continue


def written_media(
  config: config_lib.Data,
  model: config_lib.Model,
  split: Split,
  task: task_lib.Task,
  most: int,
) -> Iterator[tuple[str, medium.Medium]]:
  """Texts that a task reads and the medium that it should write of them.

  Of `spread_records` records; unusable ones are left out.
  """
  (piece,) = task.sides[1]
  for source, record in spread_records(config, split, most):
    try:
      texts = fields.texts_of(source, record, task)
      yield texts[0], fields.medium_of(source, record, piece, config, model)
    except unusable.UnusableError:
      continue


def labelled(
  config: config_lib.Data, split: Split, most: int, seed: int = 0
) -> list[tuple[str, dict[str, str]]]:
  """`most` texts of a split that have labels, with those, chosen at random.

  Raises:
    ConfigError: see `each_labelled`.
  """
  return list(itertools.islice(each_labelled(config, split, seed), most))


def each_labelled(
  config: config_lib.Data, split: Split, seed: int = 0
) -> Iterator[tuple[str, dict[str, str]]]:
  """The texts of a split that have labels, with those, in a random order.

  Where records are sorted, the first of them are like the rest. The order is a
  function of `seed` and of the numbers of records; no record is read before it
  is asked for.

  Raises:
    ConfigError: a source cannot be read, holds pairs, or none has labels.
  """
  config_lib.check(
    not config.pairs,
    f'labels are of plain text; data.inputs_field={config.inputs_field!r} and '
    f'data.tasks={config.tasks} make pairs',
  )
  found = [sources.records(spec, config) for spec in getattr(config, split)]
  source = sources.Shuffled.of(f'labels of data.{split}', found, seed)
  tally, count = unusable.Tally(), 0
  try:
    for example in examples.labelled(source, config, tally):
      count += 1
      yield example
  finally:
    reasons = unusable.reasons(tally.unusable)
    logging.info(
      'data.%s: %s texts with labels read%s', split, f'{count:,}', reasons
    )
  config_lib.check(
    count > 0,
    f'data.{split} has no text with labels, such as {{"text": ..., '
    f'"{fields.LABEL_FIELD}": {{"attribute": "value"}}}}{reasons}',
  )
