"""From texts to tokenized documents, and from pieces of documents to a batch.

A document is `bos text eos`, without bos if the tokenizer adds none, or `bos
inputs eos targets eos`. Position k of a decoder reads token k of a document and
predicts token k + 1.

The prompt of a trained model (`question`) is cut out of such a row, so that its
layout is that of training.
"""

import dataclasses
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import chat, packing
from gemini_jax.data import tokenizer as tokenizer_lib


class Slots(NamedTuple):
  """Placeholders of the soft tokens of a picture, a sound or a video."""

  kind: str
  count: int


class Classes(NamedTuple):
  """Targets that are classes, by number: of an example or of its words."""

  ids: tuple[int, ...]
  are_of_words: bool = False


class Values(NamedTuple):
  """Targets that are numbers: float32[K], as of `batch.Batch.values`."""

  numbers: np.ndarray


Piece = str | Slots | Classes | Values
# Of a conversation, or the parts `(text,)` or `(inputs, targets)`.
Document = chat.Document | tuple[tuple[Piece, ...], ...]


class Example(NamedTuple):
  """An example of a task, not tokenized.

  Attributes:
    origin: number of the record and task, to find the media again.
    parts: `(text,)`, `(inputs, targets)` or `(inputs, targets, rejected)`,
      each a sequence of texts and media.
    media: digests of the media, in order.
    conversations: instead of `parts`, one, or of a preference two.
  """

  origin: int
  parts: tuple[tuple[Piece, ...], ...]
  media: bytes = b''
  conversations: tuple[chat.Document, ...] = ()

  @property
  def documents(self) -> tuple[Document, ...]:
    """What its documents are made of.

    Of a preference there are two: the preferred one, then the rejected one.
    """
    if self.conversations:
      return self.conversations
    inputs, *targets = self.parts
    return tuple((inputs, part) for part in targets) or (self.parts,)


def num_bytes(document: Document) -> int:
  """UTF-8 bytes of the text in the targets of a document."""
  if isinstance(document, chat.Document):
    return document.num_bytes
  texts = [piece for piece in document[-1] if isinstance(piece, str)]
  return sum(len(text.encode('utf-8')) for text in texts)


def document(
  parts: Sequence[Sequence[str | Slots]],
  tokenizer: tokenizer_lib.Tokenizer,
  placeholders: Mapping[str, int] = types.MappingProxyType({}),
) -> tuple[np.ndarray, int]:
  """Tokens of an example, and the index of the first target.

  Every token of a plain text is a target, so that index is 1, after bos.

  Args:
    parts: `(text,)` or `(inputs, targets)`.
    tokenizer: encodes text.
    placeholders: token id of each kind of medium.
  """
  return join(
    [encode(part, tokenizer, placeholders) for part in parts], tokenizer
  )


def join(
  parts: Sequence[np.ndarray], tokenizer: tokenizer_lib.Tokenizer
) -> tuple[np.ndarray, int]:
  """As `document`, of parts that are token ids already."""
  tokens: list = [[tokenizer.bos_id]] if _has_bos(parts, tokenizer) else []
  for part in parts:
    tokens += [part, [tokenizer.eos_id]]
  first = 1 if len(parts) == 1 else len(parts[0]) + 2
  return np.concatenate(tokens).astype(np.int32), first


def _has_bos(
  parts: Sequence[np.ndarray], tokenizer: tokenizer_lib.Tokenizer
) -> bool:
  """Whether a document begins with bos.

  Pairs do, whatever the tokenizer, and so does an empty text, since a model
  must read something.
  """
  return len(parts) > 1 or tokenizer.adds_bos or not len(parts[0])


class Question(NamedTuple):
  """What a model reads before the first token that it generates.

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
  """The row of an example, up to the position that predicts the first target.

  Args:
    inputs: tokens of the inputs, or of the beginning of a plain text that the
      model continues.
    config: of the data.
    tokenizer: of the tokens.
  """
  # An example with empty targets is laid out like any other.
  parts = [inputs, inputs[:0]] if config.pairs else [inputs]
  tokens, first = join(parts, tokenizer)
  if not config.pairs:
    first = len(inputs) + _has_bos(parts, tokenizer)
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


def encoder_tokens(
  inputs: np.ndarray,
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
) -> np.ndarray:
  """int32[n], tokens that the encoder reads.

  With seq2seq those of the inputs. Otherwise the encoder serves the latent
  alone and reads the whole text, as in `Gemini.encoder_inputs`.
  """
  if config.objective != 'seq2seq':
    return np.append(inputs, tokenizer.eos_id).astype(np.int32)
  encoder = question(inputs, config, tokenizer).encoder
  assert encoder is not None
  return encoder


def encode(
  pieces: Sequence[Piece],
  tokenizer: tokenizer_lib.Tokenizer,
  placeholders: Mapping[str, int],
) -> np.ndarray:
  """Tokens of texts and media; adjacent texts are encoded as one."""
  tokens: list = [np.zeros(0, np.int32)]
  for is_text, group in itertools.groupby(pieces, lambda p: isinstance(p, str)):
    if is_text:
      tokens.append(tokenizer.encode(''.join(map(str, group))))
      continue
    for slots in group:
      assert isinstance(slots, Slots)
      tokens.append(np.full(slots.count, placeholders[slots.kind]))
  return np.concatenate(tokens).astype(np.int32)


def leave_out(
  tokens: np.ndarray,
  pieces: packing.Pieces,
  leaves: Callable[[int, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, packing.Pieces]:
  """The pieces without some tokens of their inputs.

  Args:
    tokens: tokens of all documents.
    pieces: whole documents of inputs and targets, in any rows.
    leaves: maps the index of a piece and the tokens of its inputs to bool[n],
      true for tokens to leave out.

  Returns:
    int64[n], the indices of the tokens that are left, and pieces of these.
  """
  kept, firsts = [], []
  for i, (start, length, first) in enumerate(zip(*pieces[1:], strict=True)):
    document = tokens[start : start + length + 1]
    keeps = np.ones(len(document), bool)
    # Between bos and the eos of the inputs.
    keeps[1 : first - 1] = ~leaves(i, document[1 : first - 1])
    kept.append(start + np.flatnonzero(keeps))
    firsts.append(first - np.count_nonzero(~keeps))
  sizes = np.array([len(indices) for indices in kept], np.int64)
  return np.concatenate([*kept, np.zeros(0, np.int64)]), packing.Pieces(
    pieces.rows,
    np.cumsum(sizes) - sizes,
    sizes - 1,
    np.asarray(firsts, np.int64),
  )


def text_width(config: config_lib.Data) -> int:
  """Length that plain texts are cut to.

  With seq2seq a text is cut in two at random, and nearly all of it may fall to
  either the encoder or the decoder.
  """
  if config.objective == 'seq2seq':
    return min(config.inputs_length, config.sequence_length)
  return config.sequence_length


def pair_sizes(
  lengths: np.ndarray, firsts: np.ndarray, config: config_lib.Data
) -> list[tuple[np.ndarray, int]]:
  """Lengths of documents and the capacity of a row, for each sequence of it."""
  if config.objective == 'seq2seq':
    return [
      (firsts - 1, config.inputs_length),
      (lengths + 1 - firsts, config.sequence_length),
    ]
  return [(lengths, config.sequence_length)]


def fits(
  lengths: np.ndarray, firsts: np.ndarray, config: config_lib.Data
) -> np.ndarray:
  """bool[N], documents that fit into a row; plain texts are cut to fit."""
  if not config.keeps_documents:
    return np.ones(len(lengths), bool)
  sizes = pair_sizes(lengths, firsts, config)
  return np.all([size <= capacity for size, capacity in sizes], axis=0)


def random_firsts(
  pieces: packing.Pieces, seed: Sequence[int]
) -> packing.Pieces:
  """Pieces cut into inputs and targets at a random place, by the seed."""
  shares = _uniform(pieces.starts, seed)
  firsts = 1 + (shares * pieces.lengths).astype(np.int64)
  return pieces._replace(firsts=firsts)


def assemble(
  tokens: np.ndarray,
  pieces: packing.Pieces,
  num_rows: int,
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
  is_target: np.ndarray | None = None,
  classes: np.ndarray | None = None,
) -> batch_lib.Batch:
  """The batch of `num_rows` rows that hold `pieces` of `tokens`.

  Of a conversation, `is_target` says which tokens have loss weight 1. Where
  targets are `classes` (of `class_targets`), they take the place of tokens.
  causal and prefix: the decoder reads the pieces; positions that predict
  tokens of the inputs have loss weight 0, and `prefix` marks the inputs.
  seq2seq: the encoder reads the inputs, ended by eos, and the decoder predicts
  the targets, begun by bos.
  """
  rows, starts, lengths, firsts = pieces
  width = config.sequence_length
  if config.objective == 'seq2seq':
    return _assemble_seq2seq(
      tokens, pieces, num_rows, config, tokenizer, classes
    )
  place = _Place.make(rows, lengths, num_rows, width)
  sources = place.spread(starts) + place.within
  firsts = place.spread(firsts)
  prefix = None
  if config.objective == 'prefix':
    prefix = place.fill(place.within < firsts, False, np.bool_)
  weights = place.within >= firsts - 1
  targets, rest = tokens[sources + 1], tokenizer.pad_id
  if is_target is not None:
    weights = is_target[sources + 1]
  if classes is not None:
    targets, weights, rest = (*_numbered(classes[sources + 1]), 0)
  return batch_lib.Batch(
    decoder=place.sequence(tokens[sources], tokenizer.pad_id),
    targets=place.fill(targets, rest),
    weights=place.fill(weights, 0, np.float32),
    prefix=prefix,
  )


def _numbered(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """int32[n] and bool[n]: classes, 0 where there is none, and whether."""
  return np.maximum(classes.astype(np.int32), 1) - 1, classes > 0


def _assemble_seq2seq(tokens, pieces, num_rows, config, tokenizer, classes):
  rows, starts, lengths, firsts = pieces
  # Inputs end with an eos already; the first part of a plain text gets one.
  has_eos = 1 if config.pairs else 0
  encoder = _Place.make(rows, firsts - has_eos, num_rows, config.inputs_length)
  sources = encoder.spread(starts) + 1 + encoder.within
  inputs = tokens[sources]
  inputs[encoder.ends - 1] = tokenizer.eos_id
  decoder = _Place.make(
    rows, lengths + 1 - firsts, num_rows, config.sequence_length
  )
  sources = decoder.spread(starts + firsts) + decoder.within
  shifted = tokens[sources - 1]
  shifted[decoder.within == 0] = tokenizer.bos_id
  targets, weights, rest = tokens[sources], 1, tokenizer.pad_id
  if classes is not None:
    targets, weights, rest = (*_numbered(classes[sources]), 0)
  return batch_lib.Batch(
    decoder=decoder.sequence(shifted, tokenizer.pad_id),
    targets=decoder.fill(targets, rest),
    weights=decoder.fill(weights, 0, np.float32),
    encoder=encoder.sequence(inputs, tokenizer.pad_id),
  )


@dataclasses.dataclass(frozen=True)
class _Place:
  """The index of every token of the pieces in a [num_rows, width] array."""

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
    """[N], the value of the piece that each token belongs to."""
    return np.repeat(values, self.lengths)

  def fill(
    self, values, rest, dtype: type[np.generic] = np.int32
  ) -> np.ndarray:
    """[num_rows, width] with the values of tokens, and `rest` elsewhere."""
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
