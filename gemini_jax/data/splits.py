"""Records and texts of a split of the data, before tokenization."""

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
  """All usable texts of a split; inputs and targets one after the other.

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
  config: config_lib.Data, split: Split, limit: int
) -> list[tuple[str, ...]]:
  """The first `limit` usable (inputs, targets) of a split.

  Of preferences what is preferred.

  Raises:
    ConfigError: a source cannot be read.
  """
  result: list[tuple[str, ...]] = []
  for spec in getattr(config, split):
    records = examples.texts(
      sources.records(spec, config), config, unusable.Tally()
    )
    first = itertools.islice(records, limit - len(result))
    result += (record[:2] for record in first)
  return result


def spread_records(
  config: config_lib.Data, split: Split, limit: int | None
) -> Iterator[tuple[sources.Source, dict[str, Any]]]:
  """Up to `limit` records at equal distances in a split, with their sources.

  All of them where `limit` is None. Records that cannot be read are skipped.
  """
  opened = [sources.records(spec, config) for spec in getattr(config, split)]
  ends = np.cumsum([len(source) for source in opened])
  count = ends[-1] if limit is None else limit
  for place in np.unique(np.linspace(0, ends[-1] - 1, count).astype(int)):
    number = int(np.searchsorted(ends, place, 'right'))
    source = opened[number]
    try:
      yield source, source[int(place - ends[number] + len(source))]
    except unusable.UnusableError:
      continue


def written_media(
  config: config_lib.Data,
  model: config_lib.Model,
  split: Split,
  task: task_lib.Task,
  limit: int,
) -> Iterator[tuple[str, medium.Medium]]:
  """Input texts of a task and the medium that is their target.

  Of up to `limit` records at equal distances; unusable ones are skipped.
  """
  (piece,) = task.targets
  for source, record in spread_records(config, split, limit):
    try:
      texts = fields.texts_of(source, record, task)
      yield texts[0], fields.medium_of(source, record, piece, config, model)
    except unusable.UnusableError:
      continue


def labelled(
  config: config_lib.Data, split: Split, limit: int, seed: int = 0
) -> list[tuple[str, dict[str, str]]]:
  """Up to `limit` random texts of a split that have labels, and their labels.

  Raises:
    ConfigError: see `each_labelled`.
  """
  return list(itertools.islice(each_labelled(config, split, seed), limit))


def each_labelled(
  config: config_lib.Data, split: Split, seed: int = 0
) -> Iterator[tuple[str, dict[str, str]]]:
  """Texts of a split that have labels, and their labels, in a random order.

  The order matters where records are sorted by label. It depends on `seed` and
  the number of records alone; records are read one at a time.

  Raises:
    ConfigError: a source cannot be read, has inputs and targets, or has no
      labels.
  """
  config_lib.check(
    not config.pairs,
    f'labels are of plain text; data.inputs_field={config.inputs_field!r} and '
    f'data.tasks={config.tasks} make pairs',
  )
  opened = [sources.records(spec, config) for spec in getattr(config, split)]
  source = sources.Shuffled.make(f'labels of data.{split}', opened, seed)
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
