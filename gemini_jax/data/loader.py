"""Batches as a pure function of (config, tokenizer, seed, index).

Every source is tokenized once into the token cache. Since batch t depends on t
alone, a run can resume at any batch, on any number of processes, and gets the
same batches as an uninterrupted run.
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import (
  classes,
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

  Training batches never end: `loader[t]` exists for every t, and each source
  begins another epoch, in a new order, when all of it was used. Evaluation is
  one pass in order: every target once, the last batch filled with empty rows.

  Attributes:
    batch_size: rows of a global batch.
    rows: the rows of a global batch that this process loads.
    num_records: usable examples.
    num_tokens: their tokens without bos.
    num_targets: tokens with a loss weight in one pass.
    num_bytes: UTF-8 bytes of the text in the targets.
    num_rows: rows of one pass over every source.
    of_task: makes a loader of the examples of one task alone, by its index.

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
    """Opens the tokenized sources of a split; tokenizes them if necessary.

    Args:
      config: of the data.
      tokenizer: of the run.
      split: train, validation or test.
      seed: of the order of training examples.
      batch_size: rows of a global batch; None: data.batch_size.
      rows: rows of each global batch that this process loads; None: all.
      model: config of the model; needed for media.
      only: index of the one task whose examples to load; None: all tasks.
    """
    self.config, self.tokenizer, self.split = config, tokenizer, split
    model = model or config_lib.Model()
    self._only = only
    self.of_task = lambda index: Loader(
      config, tokenizer, split, seed, batch_size, rows, model, index
    )
    self.batch_size = batch_size or config.batch_size
    self.rows = np.arange(self.batch_size) if rows is None else rows
    # Evaluation does not depend on the seed.
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
    self._class_weights = None
    if split == 'train' and task_lib.classes(config) is not None:
      counts = np.sum([part.class_counts for part in self._parts], axis=0)
      self._class_weights = classes.weights(config, counts)
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
    """Bits per byte = nats a target / log(2) / this; None unless plain text."""
    if self.config.tasks or not self.num_bytes:
      return None
    return self.num_bytes / self.num_targets

  @property
  def writes_media(self) -> bool:
    """Whether there are media among the targets."""
    tasks = task_lib.from_config(self.config)
    if self._only is not None:
      tasks = tasks[self._only : self._only + 1]
    return any(task.kinds('targets') for task in tasks)

  @property
  def task_names(self) -> dict[str, int]:
    """Indices of the named tasks that have examples, if there are several."""
    tasks = task_lib.from_config(self.config)
    if len(tasks) == 1:
      return {}
    has = lambda number: any(
      epochs.usable(part.corpus, self.config, number).any()
      for part in self._parts
    )
    return {t.name: i for i, t in enumerate(tasks) if t.name and has(i)}

  def __len__(self) -> int:
    """Number of batches of an evaluation split."""
    if self.split == 'train':
      raise TypeError('a training loader has no length: batches never end')
    return -(-self.num_rows // self.batch_size)

  def __getitem__(self, index: int) -> batch_lib.Batch:
    """This process's rows of the global batch `index`."""
    if index < 0 or (self.split != 'train' and index >= len(self)):
      raise IndexError(index)
    owners, rows = self._locate(index * self.batch_size + self.rows)
    batch = epochs.by_key(
      owners, rows, lambda i, indices: self._parts[i].batch(indices)
    )
    if self._class_weights is None:
      return batch
    weights = batch.weights * self._class_weights[batch.targets]
    return dataclasses.replace(batch, weights=weights)

  def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of the split, and the index of the row in it."""
    if self.split == 'train':
      owners, ranks, counts = self._schedule
      laps, places = np.divmod(rows, len(owners))
      return owners[places], ranks[places] + laps * counts[owners[places]]
    # Rows past the end of the split are past the end of the last source.
    owners = np.searchsorted(self._ends[:-1], rows, 'right')
    return owners, rows - np.concatenate([[0], self._ends])[owners]

  def describe(self) -> list[str]:
    """Lines for the log: the size of each source and what was skipped."""
    return [part.describe() for part in self._parts]

  def state(self, next_batch: int) -> dict[str, Any]:
    """The position and the fingerprint for a checkpoint, as JSON values."""
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
    """Index of the next batch after a checkpoint.

    Args:
      state: what `state` gave when the checkpoint was saved.
      accepted: fields that may have changed since; batches are then those of
        the new values.

    Raises:
      ConfigError: another field or the content of a source has changed.
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
  """Batches in order from `start`, prepared ahead in the background.

  Args:
    loader: of any split; a training split never ends.
    start: index of the first batch.
    num_prefetch: batches to prepare ahead; None: data.prefetch; 0: each is
      prepared when it is asked for.
  """
  stop = sys.maxsize if loader.split == 'train' else len(loader)
  ahead = loader.config.prefetch if num_prefetch is None else num_prefetch
  if start >= stop:
    return
  if ahead == 0:
    yield from map(loader.__getitem__, range(start, stop))
    return
  dataset = grain.MapDataset.range(start, stop).map(loader.__getitem__)
  # One thread: the work holds the interpreter lock, more would take turns.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
  yield from dataset.to_iter_dataset(options)
