"""Pictures, sounds and videos of a batch: read for each row when it is due."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import (
  augmentation,
  cache,
  fields,
  medium,
  packing,
  sources,
  transforms,
  unusable,
)
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib

_INPUTS, _TARGETS = 0, 1
# Bytes of the media of a source that stay in memory, for each kind.
_MOST_KEPT = 1 << 28


def layout(
  tasks: Sequence[task_lib.Task],
  config: config_lib.Data,
  model: config_lib.Model,
) -> tuple[dict[str, int], Any]:
  """The token of each kind of medium, and all that their number depends on.

  Raises:
    ConfigError: the model cannot read or write a kind, or rows are packed.
  """
  kinds = sorted(
    {kind for t in tasks for s in range(len(t.sides)) for kind in t.kinds(s)}
  )
  for kind in kinds:
    config_lib.check(
      kind in model.kinds,
      f'data.tasks={config.tasks}: the model reads no {kind}; set model.{kind}',
    )
  for task in tasks:
    for kind in task.kinds(_TARGETS) if len(task.sides) > 1 else ():
      config_lib.check(
        model.writes(kind),
        f'data.tasks={config.tasks}: the model writes no {kind}'
        + ('' if kind == 'video' else f'; set model.{kind}.autoencoder.dim'),
      )
      config_lib.check(
        len(task.targets) == 1,
        f'data.tasks={config.tasks}: what is written beside a medium ({kind}) '
        'can be nothing else',
      )
  config_lib.check(
    not (kinds and config.pack),
    f'data.tasks={config.tasks} holds media; set data.pack=False',
  )
  parts = [getattr(model, kind) for kind in kinds]
  if 'video' in kinds:
    parts.append(model.image)
  return {kind: model.placeholder(kind) for kind in kinds}, (
    config.audio_sample_rate if 'audio' in kinds else None,
    # Of sounds nothing depends on it.
    config.max_media_pixels if {'image', 'video'}.intersection(kinds) else None,
    model.vocab_size if kinds else None,
    parts,
  )


def sides(config: config_lib.Data) -> dict[str, tuple[int, ...]]:
  """The sides of a task that each sequence of a batch reads."""
  if config.objective == 'seq2seq':
    return {'encoder': (_INPUTS,), 'decoder': (_TARGETS,)}
  return {'decoder': (_INPUTS, _TARGETS)}


def blank(
  config: config_lib.Data, model: config_lib.Model, num_rows: int
) -> dict[str, dict[str, batch_lib.Media]]:
  """Media of the sequences of a batch, by kind, of nothing."""
  if not config.tasks:
    return {}
  tasks = task_lib.of(config)
  return {
    name: {
      kind: batch_lib.blank_media(kind, model, num_rows, most)
      for kind, most in task_lib.most(tasks, own).items()
    }
    for name, own in sides(config).items()
  }


@dataclasses.dataclass(frozen=True)
class MediaReader:
  """What the media of one source are read from.

  Attributes:
    source: of the records.
    tasks: what is read of each.
    config: of the data.
    model: what reads and writes media.
    training: whether kinds are dropped and media augmented.
    kept: media that were read, by the number of the record and the piece.
  """

  source: sources.Source
  tasks: Sequence[task_lib.Task]
  config: config_lib.Data
  model: config_lib.Model
  training: bool
  kept: dict[tuple[int, task_lib.Piece], medium.Medium] = dataclasses.field(
    default_factory=dict, repr=False
  )

  def batch(
    self,
    corpus: cache.Corpus,
    pieces: packing.Pieces,
    rows: np.ndarray,
    seed: Sequence[int],
    tokenizer: tokenizer_lib.Tokenizer,
  ) -> batch_lib.Batch:
    """As `transforms.assemble`, with media; a piece is a whole document.

    Args:
      corpus: of the source.
      pieces: at most one of each row.
      rows: numbers of the rows, for their randomness.
      seed: of it.
      tokenizer: of the run.
    """
    places = np.searchsorted(corpus.offsets, pieces.starts, 'right') - 1
    origins = corpus.origins[places]
    examples = [
      (self.tasks[origin % len(self.tasks)], origin // len(self.tasks))
      for origin in origins.tolist()
    ]
    randoms = [
      np.random.default_rng([*seed, row]) for row in rows[pieces.rows].tolist()
    ]
    absent = [
      self._absent(task, random)
      for (task, _), random in zip(examples, randoms, strict=True)
    ]

    def leaves(i, inputs):
      if absent[i] is None:
        return np.ones(len(inputs), bool)
      ids = [self.model.placeholder(kind) for kind in absent[i]]
      return np.isin(inputs, ids)

    tokens, pieces = transforms.leave_out(corpus.tokens, pieces, leaves)
    batch = transforms.assemble(
      tokens, pieces, len(rows), self.config, tokenizer
    )
    found = blank(self.config, self.model, len(rows))
    for name, own in sides(self.config).items():
      self._fill(
        found[name], own, pieces.rows, examples, absent, randoms, corpus.origins
      )
      self._check_slots(getattr(batch, name).tokens, found[name])
    return dataclasses.replace(
      batch,
      **{
        name: dataclasses.replace(getattr(batch, name), media=own)
        for name, own in found.items()
      },
    )

  def _absent(
    self, task: task_lib.Task, random: np.random.Generator
  ) -> tuple[str, ...] | None:
    """Kinds that are left out of a row's inputs; None: all of the inputs."""
    config = self.config
    if not self.training:
      return config.drop_kinds
    kinds = [
      kind
      for kind in dict.fromkeys(task.kinds(_INPUTS))
      if kind not in config.drop_kinds
    ]
    # As many draws for every row.
    blind, drop, which = random.random(3)
    if blind < config.inputs_dropout:
      return None
    if len(kinds) > 1 and drop < config.media_dropout:
      return (*config.drop_kinds, kinds[int(which * len(kinds))])
    return config.drop_kinds

  def _fill(
    self, found, own_sides, rows, examples, absent, randoms, origins
  ) -> None:
    """Puts what the given sides of each row's example hold in its place."""
    for row, (task, index), out, random in zip(
      rows.tolist(), examples, absent, randoms, strict=True
    ):
      record = self._record(index)
      counts = dict.fromkeys(found, 0)
      for side in own_sides:
        for piece in task.sides[side]:
          kind = piece.kind
          left_out = side == _INPUTS and (out is None or kind in out)
          if kind not in found or left_out:
            continue
          value, size = self._read(index, record, piece)
          if self.training and side == _INPUTS:
            value = self._augmented(kind, value, size, random)
            if self.config.augment.mixup_alpha and not counts[kind]:
              value = self._mixed(task, piece, value, size, random, origins)
          found[kind].values[row, counts[kind]] = value
          found[kind].sizes[row, counts[kind]] = size
          counts[kind] += 1

  def _check_slots(
    self, tokens: np.ndarray, found: dict[str, batch_lib.Media]
  ) -> None:
    """ConfigError if media are not of the sizes that were tokenized."""
    for kind, own in found.items():
      slots = np.sum(tokens == self.model.placeholder(kind), axis=1)
      counts = [
        sum(self.model.tokens_of(kind, size) for size in sizes)
        for sizes in own.sizes.tolist()
      ]
      config_lib.check(
        slots.tolist() == counts,
        f'{self.source.name} has changed: a file of its {kind}s is not as '
        'large as it was; touch the list that names it, to read all again',
      )

  def _record(self, index: int) -> Callable[[], dict[str, Any]]:
    """Reads a record once, when it is needed."""
    return functools.cache(functools.partial(self.source.__getitem__, index))

  def _augmented(self, kind, value, size, random) -> np.ndarray:
    return augmentation.apply(
      kind,
      value,
      size,
      self.config.augment,
      random,
      self.model.audio.sample_rate,
    )

  def _read(
    self,
    index: int,
    record: Callable[[], dict[str, Any]],
    piece: task_lib.Piece,
  ) -> medium.Medium:
    """A medium of a record, which is read if it is not in memory."""
    key = index, piece
    if key in self.kept:
      return self.kept[key]
    try:
      found = fields.medium_of(
        self.source, record(), piece, self.config, self.model
      )
    except unusable.UnusableError as error:
      # It could be read when the source was tokenized.
      raise config_lib.ConfigError(
        f'{self.source.name} has changed: {error}'
      ) from error
    if found.values.nbytes * (len(self.kept) + 1) <= _MOST_KEPT:
      self.kept[key] = found
    return found

  def _mixed(self, task, piece, value, size, random, origins) -> np.ndarray:
    """A medium mixed with that of a random example of the same task.

    A row keeps its targets, and so the larger share (MixUp, Zhang et al. 2018,
    as far as texts allow). The other is not of the batch: rows are the same on
    any number of processes.
    """
    number = self.tasks.index(task)
    same = origins[origins % len(self.tasks) == number]
    index = int(random.choice(same)) // len(self.tasks)
    other, other_size = self._read(index, self._record(index), piece)
    mixed, weight = augmentation.mixup(
      value,
      size,
      self._augmented(piece.kind, other, other_size, random),
      other_size,
      random,
      self.config.augment.mixup_alpha,
    )
    return mixed if weight >= 0.5 else value
