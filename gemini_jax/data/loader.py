"""Batches as a pure function of (config, tokenizer, seed, index).

Every source is tokenized once and kept on disk. Batch t is computed from
nothing but t, so a run resumes at any batch, on any number of processes, and
sees what it would have seen.
"""

import dataclasses
import functools
import itertools
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import grain
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.config import legacy
from gemini_jax.data import (
  cache,
  deduplication,
  epochs,
  media,
  media_reader,
  packing,
  readers,
  sources,
)
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib

Split = Literal['train', 'validation', 'test']

# In the fingerprint of an earlier version, a source had the name of its place:
# `data.train[0]=text:a.txt`.
_SOURCE = re.compile(r'(data\.\w+)\[(\d+)\]=.*', re.DOTALL)


class Loader:
  """The batches of a split.

  Training never ends: `loader[t]` exists for every t, and each source starts
  another epoch in a new order when it is used up. Evaluation is one pass in
  order: each target once, the last batch filled up with rows of weight 0.

  Attributes:
    batch_size: rows of a global batch.
    rows: those of them that this process loads.
    num_records: usable records.
    num_tokens: their tokens, bos aside.
    num_targets: the tokens that have a weight in one pass.
    num_bytes: UTF-8 bytes of the text that those stand for.
    num_rows: rows of one pass over every source.
    of_task: the same with the examples of one task, by its number.

  Raises:
    ConfigError: a source cannot be read or holds nothing usable.
  """

  def __init__(
    self,
    config: config_lib.Data,
    tokenizer: tokenizer_lib.Tokenizer,
    split: Split,
    seed: int = 0,
    batch_size: int | None = None,
    rows: np.ndarray | None = None,
    model: config_lib.Model | None = None,
    only: int | None = None,
  ):
    """Opens the split, or tokenizes it.

    Args:
      config: the data.
      tokenizer: of the run.
      split: which part of the data.
      seed: of the order.
      batch_size: rows of a global batch; None: data.batch_size.
      rows: those of each global batch that this process loads; None: all.
      model: what reads media; needed where there are some.
      only: the number of the task whose examples there are; None: of all.
    """
    self.config, self.tokenizer, self.split = config, tokenizer, split
    model = model or config_lib.Model()
    self._only = only
    self.of_task = lambda number: Loader(
      config, tokenizer, split, seed, batch_size, rows, model, number
    )
    self.batch_size = batch_size or config.batch_size
    self.rows = np.arange(self.batch_size) if rows is None else rows
    # Evaluation is the same for every seed.
    self._seed = seed if split == 'train' else 0
    self._parts = [
      epochs.Epochs(
        name,
        corpus,
        config,
        tokenizer,
        (seed, i),
        split == 'train',
        scenes,
        only,
      )
      for i, (name, corpus, scenes) in enumerate(
        _corpora(config, tokenizer, split, model)
      )
      if only is None or epochs.usable(corpus, config, only).any()
    ]
    if only is None:
      for part in self._parts:
        logging.info('%s', part.describe())
    self.num_records = sum(len(part.starts) for part in self._parts)
    self.num_tokens = sum(part.num_tokens for part in self._parts)
    self.num_targets = sum(part.num_targets for part in self._parts)
    self.num_bytes = sum(part.num_bytes for part in self._parts)
    sizes = [part.num_rows for part in self._parts]
    self.num_rows = sum(sizes)
    self._ends = np.cumsum(sizes)
    self._schedule = packing.schedule(config.mixture_weights or sizes)

  @property
  def bytes_per_target(self) -> float | None:
    """Nats a target / log(2) / this = bits per byte; None: not text alone."""
    if self.config.tasks or not self.num_bytes:
      return None
    return self.num_bytes / self.num_targets

  @property
  def writes_media(self) -> bool:
    """Whether targets hold media."""
    tasks = task_lib.of(self.config)
    own = tasks if self._only is None else tasks[self._only : self._only + 1]
    return any(t.kinds(len(t.sides) - 1) for t in own)

  @property
  def task_names(self) -> dict[str, int]:
    """Numbers of the tasks that have a name and examples, if not the only."""
    tasks = task_lib.of(self.config)
    if len(tasks) == 1:
      return {}
    has = lambda number: any(
      epochs.usable(part.corpus, self.config, number).any()
      for part in self._parts
    )
    return {t.name: i for i, t in enumerate(tasks) if t.name and has(i)}

  def __len__(self) -> int:
    """Batches of an evaluation split."""
    if self.split == 'train':
      raise TypeError('training batches have no end')
    return -(-self.num_rows // self.batch_size)

  def __getitem__(self, index: int) -> batch_lib.Batch:
    """This process's rows of the global batch `index`."""
    if index < 0 or (self.split != 'train' and index >= len(self)):
      raise IndexError(index)
    owners, rows = self._locate(index * self.batch_size + self.rows)
    return epochs.by_key(owners, rows, lambda i, own: self._parts[i].batch(own))

  def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part that each row of the split is of, and its row there."""
    if self.split == 'train':
      owners, ranks, counts = self._schedule
      laps, places = np.divmod(rows, len(owners))
      return owners[places], ranks[places] + laps * counts[owners[places]]
    # Rows past the end are rows past the end of the last part.
    owners = np.searchsorted(self._ends[:-1], rows, 'right')
    return owners, rows - np.concatenate([[0], self._ends])[owners]

  def describe(self) -> list[str]:
    """Lines for a log: what each source holds and what was left out."""
    return [part.describe() for part in self._parts]

  def state(self, next_batch: int) -> dict[str, Any]:
    """What a checkpoint keeps, as plain JSON values."""
    values = {
      f'data.{name}': getattr(self.config, name)
      for name in config_lib.BATCH_FIELDS
    } | {
      'data.batch_size': self.batch_size,
      'data.mixture_weights': list(self.config.mixture_weights),
      'train.seed': self._seed,
      'tokenizer': self.tokenizer.fingerprint,
    }
    if self.config.tasks:
      values |= {
        f'data.{name}': repr(getattr(self.config, name))
        for name in config_lib.TASK_FIELDS
      }
    # By content: the same records may lie at another place.
    values[f'data.{self.split}'] = [part.corpus.digest for part in self._parts]
    return {'next_batch': next_batch, 'fingerprint': values}

  def check(self, state: dict[str, Any], accepted: Sequence[str] = ()) -> int:
    """The next batch of a state that belongs to this data.

    Args:
      state: of a checkpoint.
      accepted: fields that may differ from those of the checkpoint; batch t is
        then that of the new fields.

    Raises:
      ConfigError: other fields or the content differ, with their names.
    """
    now = self.state(0)['fingerprint']
    then = _by_content(state['fingerprint'], now[f'data.{self.split}'])
    changes = {
      name: self._change(name, then.get(name), now.get(name))
      for name in {**then, **now}
      if then.get(name) != now.get(name)
    }
    refused = [name for name in changes if name not in accepted]
    # Another tokenizer makes another model of the tokens.
    wanted = tuple(dict.fromkeys([*accepted, *changes]))
    remedy = (
      ''
      if 'tokenizer' in changes
      else '; to resume with them all the same, give '
      f'--config.train.accept_changes="{wanted}"'
    )
    config_lib.check(
      not refused,
      'the data are not those of the checkpoint: '
      f'{"; ".join(changes[name] for name in refused)}{remedy}',
    )
    step = state['next_batch']
    if changes:
      logging.warning(
        'train.accept_changes: %s; batch %s and those after it are the ones '
        'that a run of these values from the start would have there: of this '
        'epoch some examples may come twice and others not at all',
        '; '.join(changes.values()),
        f'{step:,}',
      )
    return step

  def _change(self, name: str, then: Any, now: Any) -> str:
    """What of the fingerprint was another, for an error."""
    counts = [
      len(value)
      if name == f'data.{self.split}' and isinstance(value, list)
      else None
      for value in (then, now)
    ]
    if None in counts or counts[0] != counts[1]:
      shown = [
        'absent' if value is None else f'{count} sources' if count else value
        for value, count in zip((then, now), counts, strict=True)
      ]
      return f'{name} was {shown[0]}, is {shown[1]}'
    names = [
      part.name
      for part, *digests in zip(self._parts, then, now, strict=True)
      if digests[0] != digests[1]
    ]
    return f'{name} had other records: {", ".join(names)}'


def _by_content(
  fingerprint: dict[str, Any], digests: Sequence[str]
) -> dict[str, Any]:
  """A fingerprint as this version writes it, of one of any version.

  Earlier ones named the sources, and knew nothing of the content of media:
  where the tokens are those of `digests`, so are the media taken to be.
  """
  values: dict[str, Any] = {}
  by_number: dict[str, dict[int, Any]] = {}
  for old, value in fingerprint.items():
    name = legacy.field(old)
    if match := _SOURCE.fullmatch(name):
      by_number.setdefault(match[1], {})[int(match[2])] = value
    else:
      values[name] = value
  for name, of_source in by_number.items():
    values[name] = [
      next((now for now in digests if now.split()[0] == then), then)
      for _, then in sorted(of_source.items())
    ]
  return values


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
    tally = readers.Tally()
    for record in sources.texts(source, config, tally):
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
    records = sources.texts(
      sources.records(spec, config), config, readers.Tally()
    )
    found += itertools.islice(records, most - len(found))
  return found


def some(
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
    except readers.UnusableError:
      continue


def written(
  config: config_lib.Data,
  model: config_lib.Model,
  split: Split,
  task: task_lib.Task,
  most: int,
) -> Iterator[tuple[str, media.Medium]]:
  """Texts that a task reads and the medium that it should write of them.

  Of `some` records; unusable ones are left out.
  """
  (piece,) = task.sides[1]
  for source, record in some(config, split, most):
    try:
      texts = sources.texts_of(source, record, task)
      yield texts[0], sources.medium(source, record, piece, config, model)
    except readers.UnusableError:
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
  tally, count = readers.Tally(), 0
  try:
    for example in sources.labelled(source, config, tally):
      count += 1
      yield example
  finally:
    reasons = readers.reasons(tally.unusable)
    logging.info(
      'data.%s: %s texts with labels read%s', split, f'{count:,}', reasons
    )
  config_lib.check(
    count > 0,
    f'data.{split} has no text with labels, such as {{"text": ..., '
    f'"{sources.LABEL_FIELD}": {{"attribute": "value"}}}}{reasons}',
  )


def iterate(
  loader: Loader, start: int = 0, num_prefetch: int | None = None
) -> Iterator[batch_lib.Batch]:
  """Batches from `start` on, in order, prepared ahead in the background.

  Args:
    loader: of any split; that of training never ends.
    start: the first batch.
    num_prefetch: batches ahead; None takes data.prefetch, 0 prepares each
      when it is asked for.
  """
  stop = sys.maxsize if loader.split == 'train' else len(loader)
  ahead = loader.config.prefetch if num_prefetch is None else num_prefetch
  if start >= stop:
    return
  if ahead == 0:
    yield from map(loader.__getitem__, range(start, stop))
    return
  dataset = grain.MapDataset.range(start, stop).map(loader.__getitem__)
  # One thread: the work holds Python's lock, more would only take turns.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
  yield from dataset.to_iter_dataset(options)


def _corpora(
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
  split: Split,
  model: config_lib.Model,
) -> Iterator[tuple[str, cache.Corpus, media_reader.MediaReader | None]]:
  """The tokenized sources of a split under the names that errors use.

  With what their media are read from, where the tasks have some.
  """
  specs = getattr(config, split)
  config_lib.check(
    len(specs) > 0, f'data.{split}=() names no source; write KIND:WHERE#SLICE'
  )
  unique = functools.cache(
    lambda: deduplication.sources_without_repeats(config)
  )

  tasks = task_lib.of(config)
  fields = {field for task in tasks for field in task.fields}
  for field in config.shuffled_fields:
    config_lib.check(
      field in fields,
      f'data.shuffled_fields={config.shuffled_fields}: {field!r} is no field '
      f'of data.tasks={config.tasks}',
    )
  placeholders, layout = media_reader.layout(tasks, config, model)

  def open_source(spec):
    shuffled_fields = config.shuffled_fields if split == 'train' else ()
    return dataclasses.replace(
      sources.records(spec, config), shuffled_fields=shuffled_fields
    )

  def plain(spec, tally):
    source = open_source(spec)
    return sources.examples(source, config, model, tally), ''

  def deduplicated(spec, tally):
    source, report = unique()[spec]
    # Of the records, not of the passages that they became.
    tally.add(report.tally)
    examples = sources.examples(source, config, model, readers.Tally())
    return examples, report.describe()

  for i, spec in enumerate(specs):
    source = open_source(spec)
    if config.deduplicate:
      read, identity = deduplicated, deduplication.fingerprint(config)
    else:
      read, identity = plain, source.fingerprint
    key = cache.key(
      spec, identity, tokenizer.fingerprint, repr(tasks), repr(layout)
    )
    corpus = cache.open_or_build(
      cache.folder(config) / key,
      functools.partial(read, spec),
      tokenizer,
      placeholders,
    )
    name = f'data.{split}[{i}]={spec}'
    corpus.tally.check(name, config.max_unusable)
    config_lib.check(
      len(corpus.firsts) > 0, f'{name}: all of it repeats what is elsewhere'
    )
    scenes = None
    if placeholders:
      scenes = media_reader.MediaReader(
        source, tasks, config, model, split == 'train'
      )
    yield name, corpus, scenes
