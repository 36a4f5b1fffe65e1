"""From texts to documents, and from pieces of documents to a batch.

A document is `bos tokens eos`, a pair `bos inputs eos targets eos`. Position k
of a decoder reads token k of a document and predicts token k + 1.

What a trained model is asked with (`question`) is cut out of such a row, so it
is laid out as the rows that the model has learned from.
"""

import dataclasses
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import packing
from gemini_jax.data import tokenizer as tokenizer_lib


class Slots(NamedTuple):
  """Places of the soft tokens of a picture, a sound or a video."""

  kind: str
  count: int


class Example(NamedTuple):
  """What a record gives to a task.

  Attributes:
    origin: number of both, to find the media again.
    sides: parts of the text, or of the inputs and of the targets.
    media: digests of the media, in order.
  """

  origin: int
  sides: tuple[tuple[str | Slots, ...], ...]
  media: bytes = b''

  @property
  def num_bytes(self) -> int:
    """UTF-8 bytes of the text that the targets hold."""
    texts = [part for part in self.sides[-1] if isinstance(part, str)]
    return sum(len(text.encode('utf-8')) for text in texts)


def document(
  sides: Sequence[Sequence[str | Slots]],
  tokenizer: tokenizer_lib.Tokenizer,
  placeholders: Mapping[str, int] = types.MappingProxyType({}),
) -> tuple[np.ndarray, int]:
  """Tokens of an example's sides, and where the first target stands.

  All of a text is a target: its first is 1, after bos.

  Args:
    sides: one of text, or inputs and targets.
    tokenizer: of the text.
    placeholders: token of each kind of medium.
  """
  return join([side(own, tokenizer, placeholders) for own in sides], tokenizer)


def join(
  sides: Sequence[np.ndarray], tokenizer: tokenizer_lib.Tokenizer
) -> tuple[np.ndarray, int]:
  """`document` of sides that are tokens already."""
  parts: list = [[tokenizer.bos_id]]
  for own in sides:
    parts += [own, [tokenizer.eos_id]]
  first = 1 if len(sides) == 1 else len(sides[0]) + 2
  return np.concatenate(parts).astype(np.int32), first


class Question(NamedTuple):
  """What a model reads before the first token that it writes.

  Attributes:
    decoder: int32[n], tokens of the decoder.
    encoder: int32[m], tokens of the encoder; None unless seq2seq.
  """

  decoder: np.ndarray
  encoder: np.ndarray | None = None


def question(
  inputs: np.ndarray,
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
) -> Question:
  """The row of an example, up to where it predicts its first target.

  Args:
    inputs: tokens of the inputs of a pair, or of the beginning of a text: its
      targets continue that.
    config: of the data.
    tokenizer: of the tokens.
  """
  # An example whose targets are empty has a row as any other.
  sides = [inputs, inputs[:0]] if config.pairs else [inputs]
  tokens, first = join(sides, tokenizer)
  if not config.pairs:
    first = len(inputs) + 1
  length = len(tokens)
  pieces = packing.Pieces(*np.array([[0], [0], [length - 1], [first]]))
  room = dataclasses.replace(
    config, sequence_length=length, inputs_length=length
  )
  row = assemble(tokens, pieces, 1, room, tokenizer)
  stop = int(np.argmax(row.weights[0] > 0)) + 1
  encoder = None
  if row.encoder is not None:
    encoder = row.encoder.tokens[0][row.encoder.segments[0] > 0]
  return Question(row.decoder.tokens[0, :stop], encoder)


def source(
  inputs: np.ndarray,
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
) -> np.ndarray:
  """int32[n], what an encoder reads of a text, or of the inputs of a pair.

  Where it is that of a latent alone, it reads the targets of the decoder, as in
  `Gemini.source`, and so whole texts.
  """
  if config.objective != 'seq2seq':
    return join([inputs], tokenizer)[0][1:]
  encoder = question(inputs, config, tokenizer).encoder
  assert encoder is not None
  return encoder


def side(
  parts: Sequence[str | Slots],
  tokenizer: tokenizer_lib.Tokenizer,
  placeholders: Mapping[str, int],
) -> np.ndarray:
  """Tokens of one side of an example; texts side by side are read as one."""
  found: list = [np.zeros(0, np.int32)]
  for is_text, group in itertools.groupby(parts, lambda p: isinstance(p, str)):
    if is_text:
      found.append(tokenizer.encode(''.join(map(str, group))))
      continue
    for slots in group:
      assert isinstance(slots, Slots)
      found.append(np.full(slots.count, placeholders[slots.kind]))
  return np.concatenate(found).astype(np.int32)


def leave_out(
  tokens: np.ndarray,
  pieces: packing.Pieces,
  leaves: Callable[[int, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, packing.Pieces]:
  """The pieces, copied, without some of their inputs.

  Args:
    tokens: all of them.
    pieces: of pairs, in any rows.
    leaves: of the number of a piece and the tokens of its inputs, bool: those
      that are left out.
  """
  copies, firsts = [], []
  for i, (start, length, first) in enumerate(zip(*pieces[1:], strict=True)):
    own = tokens[start : start + length + 1]
    keeps = np.ones(len(own), bool)
    # Between bos and the eos of the inputs.
    keeps[1 : first - 1] = ~leaves(i, own[1 : first - 1])
    copies.append(own[keeps])
    firsts.append(first - np.count_nonzero(~keeps))
  sizes = np.array([len(copy) for copy in copies], np.int64)
  return np.concatenate([*copies, tokens[:0]]), packing.Pieces(
    pieces.rows,
    np.cumsum(sizes) - sizes,
    sizes - 1,
    np.asarray(firsts, np.int64),
  )


def text_width(config: config_lib.Data) -> int:
  """Positions of a row that texts are cut to.

  With seq2seq either half of a text may be nearly all of it.
  """
  if config.objective == 'seq2seq':
    return min(config.inputs_length, config.sequence_length)
  return config.sequence_length


def pair_sizes(
  lengths: np.ndarray, firsts: np.ndarray, config: config_lib.Data
) -> list[tuple[np.ndarray, int]]:
  """What pairs take of each capacity of a row, and that capacity."""
  if config.objective == 'seq2seq':
    return [
      (firsts - 1, config.inputs_length),
      (lengths + 1 - firsts, config.sequence_length),
    ]
  return [(lengths, config.sequence_length)]


def fits(
  lengths: np.ndarray, firsts: np.ndarray, config: config_lib.Data
) -> np.ndarray:
  """bool[N], documents that can be used: texts are cut, pairs are not."""
  if not config.pairs:
    return np.ones(len(lengths), bool)
  sizes = pair_sizes(lengths, firsts, config)
  return np.all([size <= capacity for size, capacity in sizes], axis=0)


def random_firsts(
  pieces: packing.Pieces, seed: Sequence[int]
) -> packing.Pieces:
  """Each piece cut in two at a random target, the same for the same seed."""
  shares = _uniform(pieces.starts, seed)
  firsts = 1 + (shares * pieces.lengths).astype(np.int64)
  return pieces._replace(firsts=firsts)


def assemble(
  tokens: np.ndarray,
  pieces: packing.Pieces,
  num_rows: int,
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
) -> batch_lib.Batch:
  """The batch of `num_rows` rows that hold `pieces` of `tokens`.

  causal and prefix: the decoder reads the pieces; targets before the first
  have weight 0, and prefix marks the tokens before it. seq2seq: the encoder
  reads what stands before the first target, ended by eos, and the decoder
  writes the rest, begun by bos.
  """
  rows, starts, lengths, firsts = pieces
  width = config.sequence_length
  if config.objective == 'seq2seq':
    return _assemble_seq2seq(tokens, pieces, num_rows, config, tokenizer)
  place = _Place.make(rows, lengths, num_rows, width)
  sources = place.spread(starts) + place.within
  firsts = place.spread(firsts)
  prefix = None
  if config.objective == 'prefix':
    prefix = place.fill(place.within < firsts, False, np.bool_)
  return batch_lib.Batch(
    decoder=place.sequence(tokens[sources], tokenizer.pad_id),
    targets=place.fill(tokens[sources + 1], tokenizer.pad_id),
    weights=place.fill(place.within >= firsts - 1, 0, np.float32),
    prefix=prefix,
  )


def _assemble_seq2seq(tokens, pieces, num_rows, config, tokenizer):
  rows, starts, lengths, firsts = pieces
  # Inputs of a pair end with an eos of their own, pieces of a text get one.
  own_eos = 1 if config.pairs else 0
  encoder = _Place.make(rows, firsts - own_eos, num_rows, config.inputs_length)
  sources = encoder.spread(starts) + 1 + encoder.within
  inputs = tokens[sources]
  inputs[encoder.ends - 1] = tokenizer.eos_id
  decoder = _Place.make(
    rows, lengths + 1 - firsts, num_rows, config.sequence_length
  )
  sources = decoder.spread(starts + firsts) + decoder.within
  shifted = tokens[sources - 1]
  shifted[decoder.within == 0] = tokenizer.bos_id
  return batch_lib.Batch(
    decoder=decoder.sequence(shifted, tokenizer.pad_id),
    targets=decoder.fill(tokens[sources], tokenizer.pad_id),
    weights=decoder.fill(1, 0, np.float32),
    encoder=encoder.sequence(inputs, tokenizer.pad_id),
  )


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where every token of the pieces stands in a [num_rows, width] array."""

  shape: tuple[int, int]
  lengths: np.ndarray
  ends: np.ndarray  # [P] of the pieces, among all their tokens.
  target: np.ndarray  # [N] index of each token in the flat array.
  within: np.ndarray  # [N] index of each token in its piece.
  ordinals: np.ndarray  # [P] of the pieces in their rows, from 1.

  @classmethod
  def make(cls, rows, lengths, num_rows, width):
    ends = np.cumsum(lengths)
    begins = ends - lengths
    first = np.searchsorted(rows, rows)
    within = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    target = np.repeat(rows * width + begins - begins[first], lengths) + within
    ordinals = np.arange(len(rows)) - first + 1
    return cls((num_rows, width), lengths, ends, target, within, ordinals)

  def spread(self, values: np.ndarray) -> np.ndarray:
    """[N] the value of each token's piece."""
    return np.repeat(values, self.lengths)

  def fill(
    self, values, rest, dtype: type[np.generic] = np.int32
  ) -> np.ndarray:
    """[num_rows, width] of values of the tokens, and `rest` elsewhere."""
    flat = np.full(self.shape, rest, dtype).reshape(-1)
    flat[self.target] = values
    return flat.reshape(self.shape)

  def sequence(self, tokens: np.ndarray, pad_id: int) -> batch_lib.Sequence:
    return batch_lib.Sequence(
      tokens=self.fill(tokens, pad_id),
      positions=self.fill(self.within, 0),
      segments=self.fill(self.spread(self.ordinals), 0),
    )


def _uniform(values: np.ndarray, seed: Sequence[int]) -> np.ndarray:
  """float64 in [0, 1), a hash of value and seed (splitmix64, Steele 2014)."""
  state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
  x = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + state
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
