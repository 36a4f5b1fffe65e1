"""One source as endless rows: epoch after epoch, each in a new order."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import cache, media_reader, packing, transforms, unusable
from gemini_jax.data import tokenizer as tokenizer_lib

# Documents whose classes are counted at a time.
_DOCUMENTS = 1 << 14


class Epochs:
  """The documents of one source of a split, and the rows of any epoch.

  Of preferences these are the preferred documents. The rejected ones lie in
  rows of their own, at the same places.
  """

  def __init__(
    self,
    name: str,
    corpus: cache.Corpus,
    config: config_lib.Data,
    tokenizer: tokenizer_lib.Tokenizer,
    seed: tuple[int, int],
    training: bool,
    reader: media_reader.MediaReader | None = None,
    only: int | None = None,
  ):
    self.name, self.corpus = name, corpus
    self._reader = reader
    self._config, self._tokenizer = config, tokenizer
    self._seed = [value % (1 << 63) for value in seed]
    self._training = training
    self._shuffle = training and config.shuffle
    lengths = np.diff(corpus.offsets) - 1
    fits = usable(corpus, config)
    # Documents of an example.
    size = 2 if config.rejected_field else 1
    self.num_too_long = int(np.count_nonzero(~fits)) // size
    config_lib.check(
      bool(fits.any()),
      f'{name}: every record is too long for data.sequence_length='
      f'{config.sequence_length} and data.inputs_length='
      f'{config.inputs_length}; the shortest has {lengths.min()} tokens',
    )
    chosen = np.flatnonzero(usable(corpus, config, only))[::size]
    self._documents = [
      (corpus.offsets[numbers], lengths[numbers], corpus.firsts[numbers])
      for numbers in (chosen + i for i in range(size))
    ]
    self.starts, self.lengths, self.firsts = self._documents[0]
    self.num_bytes = int(corpus.sizes[chosen].sum())
    self.num_tokens = int(self.lengths.sum())
    self.num_targets = int((self.lengths + 1 - self.firsts).sum())
    self.class_counts = self._count_classes(chosen)
    if corpus.classes is not None:
      self.num_targets = int(self.class_counts.sum())
    if corpus.is_target is not None:
      counts = np.add.reduceat(corpus.is_target, corpus.offsets[:-1], dtype=int)
      self.num_targets = int(counts[chosen].sum())
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
    plans = self._make_rows()
    self._rows = plans[0] if plans else None
    self._rejected_rows = plans[1:]
    self.num_rows = self._epoch(0)[0].num_rows

  def _count_classes(self, chosen: np.ndarray) -> np.ndarray:
    """int64[C], targets of each class in the chosen documents.

    All labels and numbers are counted as the first class.
    """
    corpus, size = self.corpus, max(len(self._config.label_names), 1) + 1
    total = np.zeros(size, np.int64)
    if corpus.classes is None:
      return total[1:]
    is_chosen = np.zeros(len(corpus.firsts), bool)
    is_chosen[chosen] = True
    for begin in range(0, len(is_chosen), _DOCUMENTS):
      bounds = corpus.offsets[begin : begin + _DOCUMENTS + 1]
      counts = np.repeat(is_chosen[begin : begin + _DOCUMENTS], np.diff(bounds))
      part = corpus.classes[bounds[0] : bounds[-1]]
      total += np.bincount(part[counts], minlength=size)
    return total[1:]

  def batch(self, rows: np.ndarray) -> batch_lib.Batch:
    """The batch of the given rows, numbered on through the epochs."""
    epochs = rows // self.num_rows if self._training else np.zeros_like(rows)
    return by_key(epochs, rows - epochs * self.num_rows, self._epoch_batch)

  def describe(self) -> str:
    """One line for the log."""
    counts = dict(self.corpus.tally.unusable)
    if self.num_too_long:
      counts['too long'] = self.num_too_long
    line = (
      f'{self.name}: {len(self.starts):,} records{unusable.reasons(counts)}; '
      f'{self.num_tokens:,} tokens in {self.num_rows:,} rows'
    )
    if not self._config.tasks:
      line += f', {self.num_bytes / self.num_targets:.2f} bytes per target'
    if self.corpus.unknown:
      line += f'; {self.corpus.unknown:,} tokens unknown to the tokenizer'
    return f'{line}; {self.corpus.note}' if self.corpus.note else line

  def _epoch_batch(self, epoch: int, rows: np.ndarray) -> batch_lib.Batch:
    plan, order = self._epoch(epoch)
    numbers = rows if order is None else order[rows]
    pieces = plan.pieces(numbers)
    if self._config.objective != 'causal' and not self._config.pairs:
      pieces = transforms.random_firsts(pieces, [*self._seed, epoch])
    if self._reader is not None:
      batch = self._reader.batch(
        self.corpus, pieces, rows, [*self._seed, epoch], self._tokenizer
      )
      return self._with_values(batch, pieces)
    assemble = lambda pieces: transforms.assemble(
      self.corpus.tokens,
      pieces,
      len(rows),
      self._config,
      self._tokenizer,
      self.corpus.is_target,
      self.corpus.classes,
    )
    batch = assemble(pieces)
    for rejected in self._rejected_rows:
      batch = dataclasses.replace(
        batch, rejected=assemble(rejected.pieces(numbers))
      )
    return self._with_values(batch, pieces)

  def _with_values(
    self, batch: batch_lib.Batch, pieces: packing.Pieces
  ) -> batch_lib.Batch:
    """The batch with the numbers or labels of its rows, if there are any."""
    corpus = self.corpus
    if corpus.values is None:
      return batch
    places = np.searchsorted(corpus.offsets, pieces.starts, 'right') - 1
    shape = (len(batch.targets), 1, corpus.values.shape[1])
    values = np.zeros(shape, np.float32)
    values[pieces.rows, 0] = corpus.values[places]
    return dataclasses.replace(batch, values=values)

  def _make_epoch(self, epoch: int):
    """The packing plan of an epoch and the order of its rows (None: as is)."""
    random = np.random.default_rng([*self._seed, epoch])
    plan = self._rows
    if plan is None:
      width = transforms.text_width(self._config)
      order, begin = None, 0
      if self._shuffle:
        order = random.permutation(len(self.starts))
        begin = int(random.integers(min(width, self.num_tokens)))
      plan = packing.StreamPlan.make(
        self.starts, self.lengths, width, order, begin
      )
    return plan, random.permutation(plan.num_rows) if self._shuffle else None

  def _make_rows(self) -> list[packing.RowPlan]:
    """The packing plans if they are the same in every epoch; []: packed text.

    Of preferences two, whose pieces correspond.
    """
    config = self._config
    if not config.keeps_documents:
      width = transforms.text_width(config)
      if config.pack:
        return []
      return [packing.cut(self.starts, self.lengths, width)]
    order = np.arange(len(self.starts))
    if self._shuffle:
      # Which documents share a row is drawn once, to keep the number of rows
      # constant; the order of rows is drawn anew for every epoch.
      order = np.random.default_rng(self._seed).permutation(order)
    documents = [
      (starts[order], lengths[order], firsts[order])
      for starts, lengths, firsts in self._documents
    ]
    bounds = np.arange(len(order) + 1)
    if config.pack:
      sizes = [
        size
        for _, lengths, firsts in documents
        for size in transforms.pair_sizes(lengths, firsts, config)
      ]
      bounds = packing.next_fit(*zip(*sizes, strict=True))
    return [
      packing.RowPlan(bounds, starts, lengths, firsts)
      for starts, lengths, firsts in documents
    ]


def usable(
  corpus: cache.Corpus, config: config_lib.Data, only: int | None = None
) -> np.ndarray:
  """bool[N], documents that fit into a row; `only`: those of one task.

  Of preferences both documents of an example, or none.
  """
  lengths = np.diff(corpus.offsets) - 1
  fits = transforms.fits(lengths, corpus.firsts, config)
  if config.rejected_field:
    fits = np.repeat(fits.reshape(-1, 2).all(axis=1), 2)
  if only is not None:
    fits &= corpus.origins % len(config.tasks) == only
  return fits


def by_key(
  keys: np.ndarray,
  rows: np.ndarray,
  make: Callable[[int, np.ndarray], batch_lib.Batch],
) -> batch_lib.Batch:
  """The batch of rows that `make` makes key by key, in the order of `rows`."""
  slots = [np.flatnonzero(keys == key) for key in np.unique(keys)]
  batches = [make(int(keys[indices[0]]), rows[indices]) for indices in slots]
  if len(batches) == 1:
    return batches[0]
  order = np.argsort(np.concatenate(slots))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *batches)
