"""The media of a batch, read from the records when the batch is made."""

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

# Media of a source that are kept in memory, in bytes, and what each takes
# beside its values, which is all of a number.
_MAX_KEPT_BYTES = 1 << 28
_KEPT_OVERHEAD = 512


def layout(
  tasks: Sequence[task_lib.Task],
  config: config_lib.Data,
  model: config_lib.Model,
) -> tuple[dict[str, int], Any]:
  """The placeholder of each kind, and all that soft token counts depend on.

  Raises:
    ConfigError: the model cannot read or generate a kind, or rows are packed.
  """
  kinds = sorted(
    {
      kind
      for task in tasks
      for kind in (*task.kinds('inputs'), *task.kinds('targets'))
    }
  )
  for kind in kinds:
    config_lib.check(
      kind in model.kinds,
      f'data.tasks={config.tasks}: the model reads no {kind}; set model.{kind}',
    )
  for task in tasks:
    for kind in task.kinds('targets'):
      config_lib.check(
        model.writes(kind),
        f'data.tasks={config.tasks}: the model writes no {kind}'
        + (
          f'; set model.{kind}.autoencoder.dim'
          if kind in ('image', 'audio')
          else ''
        ),
      )
      config_lib.check(
        len(task.targets) == 1,
        f'data.tasks={config.tasks}: targets with a medium ({kind}) can hold '
        'nothing else',
      )
  config_lib.check(
    not (kinds and config.pack),
    f'data.tasks={config.tasks} holds media; set data.pack=False',
  )
  # Of a number there is no section.
  parts = [getattr(model, kind) for kind in kinds if kind != task_lib.NUMBER]
  if 'video' in kinds:
    parts.append(model.image)
  if config.normalization.fields:
    parts.append(config.normalization)
  return {kind: model.placeholder(kind) for kind in kinds}, (
    config.audio_sample_rate if 'audio' in kinds else None,
    # It does not apply to sounds.
    config.max_media_pixels if {'image', 'video'}.intersection(kinds) else None,
    model.vocab_size if kinds else None,
    parts,
  )


def sequence_parts(
  config: config_lib.Data,
) -> dict[str, tuple[task_lib.Part, ...]]:
  """The parts of an example that each sequence of a batch holds."""
  if config.objective == 'seq2seq':
    return {'encoder': ('inputs',), 'decoder': ('targets',)}
  return {'decoder': ('inputs', 'targets')}


def blank(
  config: config_lib.Data, model: config_lib.Model, num_rows: int
) -> dict[str, dict[str, batch_lib.Media]]:
  """Arrays for the media of each sequence of a batch, by kind, all zero."""
  if not config.tasks:
    return {}
  tasks = task_lib.from_config(config)
  return {
    name: {
      kind: batch_lib.blank_media(kind, model, num_rows, count)
      for kind, count in task_lib.max_media(tasks, parts).items()
    }
    for name, parts in sequence_parts(config).items()
  }


@dataclasses.dataclass(frozen=True)
class MediaReader:
  """Makes batches with media, which it reads from the records of a source.

  Attributes:
    source: of the records.
    tasks: of the data.
    config: of the data.
    model: config of the model.
    training: whether to drop kinds at random and to augment media.
    kept: media in memory, by the index of the record and the piece.
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
      corpus: tokens of the source.
      pieces: at most one a row.
      rows: indices of the rows, for their random numbers.
      seed: of the random numbers.
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
    dropped = [
      self._dropped_kinds(task, random)
      for (task, _), random in zip(examples, randoms, strict=True)
    ]

    def leaves(i, inputs):
      if dropped[i] is None:
        return np.ones(len(inputs), bool)
      ids = [self.model.placeholder(kind) for kind in dropped[i]]
      return np.isin(inputs, ids)

    kept, pieces = transforms.leave_out(corpus.tokens, pieces, leaves)
    batch = transforms.assemble(
      *(corpus.tokens[kept], pieces, len(rows), self.config, tokenizer),
      classes=None if corpus.classes is None else corpus.classes[kept],
    )
    filled = blank(self.config, self.model, len(rows))
    for name, parts in sequence_parts(self.config).items():
      self._fill(
        filled[name],
        parts,
        pieces.rows,
        examples,
        dropped,
        randoms,
        corpus.origins,
      )
      self._check_slots(getattr(batch, name).tokens, filled[name])
    return dataclasses.replace(
      batch,
      **{
        name: dataclasses.replace(getattr(batch, name), media=by_kind)
        for name, by_kind in filled.items()
      },
    )

  def _dropped_kinds(
    self, task: task_lib.Task, random: np.random.Generator
  ) -> tuple[str, ...] | None:
    """Kinds of media to drop from a row's inputs; None: drop all inputs."""
    config = self.config
    if not self.training:
      return config.drop_kinds
    kinds = [
      kind
      for kind in dict.fromkeys(task.kinds('inputs'))
      if kind not in config.drop_kinds
    ]
    # The same number of draws for every row.
    drop_inputs, drop, which = random.random(3)
    if drop_inputs < config.inputs_dropout:
      return None
    if len(kinds) > 1 and drop < config.media_dropout:
      return (*config.drop_kinds, kinds[int(which * len(kinds))])
    return config.drop_kinds

  def _fill(
    self, filled, parts, rows, examples, dropped, randoms, origins
  ) -> None:
    """Writes the media in the given parts of each row's example to `filled`."""
    for row, (task, index), kinds, random in zip(
      rows.tolist(), examples, dropped, randoms, strict=True
    ):
      record = self._record(index)
      counts = dict.fromkeys(filled, 0)
      for part in parts:
        is_input = part == 'inputs'
        for piece in task.media(part):
          kind = piece.kind
          is_dropped = is_input and (kinds is None or kind in kinds)
          if kind not in filled or is_dropped:
            continue
          value, size = self._read(index, record, piece)
          if self.training and is_input and kind in config_lib.MEDIA:
            value = self._augmented(kind, value, size, random)
            if self._mixes() and not counts[kind]:
              value = self._mixed(task, piece, value, size, random, origins)
          filled[kind].values[row, counts[kind]] = value
          filled[kind].sizes[row, counts[kind]] = size
          counts[kind] += 1

  def _check_slots(
    self, tokens: np.ndarray, filled: dict[str, batch_lib.Media]
  ) -> None:
    """ConfigError if a medium's size has changed since tokenization."""
    for kind, media_BM in filled.items():
      slots = np.sum(tokens == self.model.placeholder(kind), axis=1)
      counts = [
        sum(self.model.tokens_of(kind, size) for size in sizes)
        for sizes in media_BM.sizes.tolist()
      ]
      config_lib.check(
        slots.tolist() == counts,
        f'{self.source.name} has changed: the size of one of its {kind} files '
        'is not what it was; touch the list that names it, to tokenize anew',
      )

  def _record(self, index: int) -> Callable[[], dict[str, Any]]:
    """A function that reads a record when it is first needed."""
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
    """A medium of a record, from memory if it was read before."""
    key = index, piece
    if key in self.kept:
      return self.kept[key]
    try:
      read = fields.medium_of(
        self.source, record(), piece, self.config, self.model
      )
    except unusable.UnusableError as error:
      # It was readable when the source was tokenized.
      raise config_lib.ConfigError(
        f'{self.source.name} has changed: {error}'
      ) from error
    size = read.values.nbytes + _KEPT_OVERHEAD
    if size * (len(self.kept) + 1) <= _MAX_KEPT_BYTES:
      self.kept[key] = read
    return read

  def _mixes(self) -> list[tuple[Any, float]]:
    """The ways in which two media become one, each with its alpha."""
    augment = self.config.augment
    ways = (
      (augmentation.mixup, augment.mixup_alpha),
      (augmentation.cutmix, augment.cutmix_alpha),
    )
    return [way for way in ways if way[1]]

  def _mixed(self, task, piece, value, size, random, origins) -> np.ndarray:
    """A medium mixed with that of a random example of the same task.

    The row keeps its own targets, and so its medium gets the larger share. The
    other example is drawn from the whole source, not from the batch, so that
    rows do not depend on the number of processes.
    """
    number = self.tasks.index(task)
    same = origins[origins % len(self.tasks) == number]
    index = int(random.choice(same)) // len(self.tasks)
    other, other_size = self._read(index, self._record(index), piece)
    other = self._augmented(piece.kind, other, other_size, random)
    ways = self._mixes()
    # With one way nothing is drawn for it.
    mix, alpha = ways[random.integers(len(ways))]
    mixed, weight = mix(value, size, other, other_size, random, alpha)
    return mixed if weight >= 0.5 else value
