"""Batches as a pure function of (config, tokenizer, seed, index).

Every source is tokenized once and kept on disk. Batch t is computed from
nothing but t, so a run resumes at any batch, on any number of processes, and
sees what it would have seen.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import (
  corpora,
  epochs,
  fingerprint,
  packing,
  splits,
)
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib

Split = splits.Split


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
    split: splits.Split,
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
        corpora.open_split(config, tokenizer, split, model)
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
    values = fingerprint.make(
      self.config,
      self.split,
      self.batch_size,
      self._seed,
      self.tokenizer.fingerprint,
      [part.corpus.digest for part in self._parts],
    )
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
    return fingerprint.check(
      self.state(0)['fingerprint'],
      state,
      self.split,
      [part.name for part in self._parts],
      accepted,
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
