"""Text to token ids and back: bytes, characters or SentencePiece.

Every kind is one table, the bytes that each id stands for, and a way to
encode. Decoding joins the bytes, so it is exact and can be streamed.
"""

import argparse
import codecs
import functools
import hashlib
import io
import json
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from gemini_jax import config as config_lib
from gemini_jax import host

# A saved tokenizer is never near this; a wrong path may be.
_MAX_FILE_BYTES = 1 << 27
# SentencePiece holds its training text in memory: enough, not everything.
_MAX_TRAINING_CHARACTERS = 100_000_000
_LINE_CHARACTERS = 4096
# SentencePiece writes a space as this character.
_SPACE = '▁'


class Tokenizer:
  """What the kinds share.

  Attributes:
    pieces: the bytes of each id; special ids have none.
    pad_id: fills the rest of a row. Only segment 0 tells padding, so a model
      without one may lend the id of eos.
    bos_id: the first token of every document.
    eos_id: the last token of every document.
    unk_id: stands for what cannot be encoded; None where all can be.
    adds_space: whether encoding puts a space before a text.
  """

  adds_space = False

  def __init__(
    self,
    pieces: Sequence[bytes],
    pad_id: int = 0,
    bos_id: int = 1,
    eos_id: int = 2,
    unk_id: int | None = None,
  ):
    self.pieces = tuple(pieces)
    self.pad_id, self.bos_id, self.eos_id = pad_id, bos_id, eos_id
    self.unk_id = unk_id

  @property
  def vocab_size(self) -> int:
    """Number of ids, the special ones included."""
    return len(self.pieces)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of all that decides how text is encoded."""
    return hashlib.sha256(self.serialized()).hexdigest()[:32]

  def encode(self, text: str) -> np.ndarray:
    """int32[n], the ids of `text` without bos and eos."""
    raise NotImplementedError

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`; special and unknown ids add nothing.

    Bytes that are not UTF-8 become U+FFFD.
    """
    return b''.join(map(self.piece, ids)).decode('utf-8', 'replace')

  def piece(self, token: int) -> bytes:
    """The bytes of one id; none for an id outside the vocabulary."""
    return self.pieces[token] if 0 <= token < len(self.pieces) else b''

  def save(self, path: str | pathlib.Path):
    """Writes one file that `load` reads back."""
    pathlib.Path(path).write_bytes(self.serialized())


class Bytes(Tokenizer):
  """UTF-8 bytes after the three special ids."""

  _OFFSET = 3

  def __init__(self):
    super().__init__([b''] * self._OFFSET + [bytes([i]) for i in range(256)])

  def encode(self, text: str) -> np.ndarray:
    """int32[n], one id a byte."""
    values = np.frombuffer(text.encode('utf-8'), np.uint8)
    return values.astype(np.int32) + self._OFFSET

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    return json.dumps({'kind': 'bytes'}).encode()


class Characters(Tokenizer):
  """One id a character of the training texts; others become unk."""

  _OFFSET = 4

  def __init__(self, characters: str):
    self.characters = ''.join(sorted(set(characters)))
    encoded = [character.encode('utf-8') for character in self.characters]
    specials = [b'', b'', b'', '\ufffd'.encode()]
    super().__init__(specials + encoded, unk_id=self._OFFSET - 1)
    self._codes = _code_points(self.characters)

  def encode(self, text: str) -> np.ndarray:
    """int32[n], one id a character."""
    assert self.unk_id is not None
    codes = _code_points(text)
    if not self._codes.size:
      return np.full(codes.size, self.unk_id, np.int32)
    ranks = np.searchsorted(self._codes, codes)
    ranks = np.minimum(ranks, self._codes.size - 1)
    known = self._codes[ranks] == codes
    ids = np.where(known, ranks + self._OFFSET, self.unk_id)
    return ids.astype(np.int32)

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    content = {'kind': 'characters', 'characters': self.characters}
    return json.dumps(content).encode()


class SentencePiece(Tokenizer):
  """A SentencePiece model (Kudo and Richardson 2018), read from its proto."""

  def __init__(self, proto: bytes):
    try:
      model = sentencepiece.SentencePieceProcessor(model_proto=proto)
      size = model.vocab_size()
      pieces = [_piece_bytes(model, i) for i in range(size)]
    except (RuntimeError, ValueError) as error:
      # Of a damaged one some pieces are not UTF-8, or no byte.
      raise config_lib.ConfigError('not a SentencePiece model') from error
    config_lib.check(size > 0, 'not a SentencePiece model')
    config_lib.check(
      model.eos_id() >= 0, 'a SentencePiece model without an eos piece'
    )
    eos_id = model.eos_id()
    super().__init__(
      pieces,
      pad_id=model.pad_id() if model.pad_id() >= 0 else eos_id,
      bos_id=model.bos_id() if model.bos_id() >= 0 else eos_id,
      eos_id=eos_id,
      unk_id=model.unk_id(),
    )
    self._proto, self._model = proto, model
    # Most published models put a space before the text.
    self.adds_space = self.pieces_of('a')[:1] == b' '
    self._byte_ids = {
      self.pieces[i]: i for i in range(size) if model.is_byte(i)
    }

  def pieces_of(self, text: str) -> bytes:
    """What the ids of `text` stand for, before any space is taken off."""
    return b''.join(self.pieces[i] for i in self._model.encode(text))

  def encode(self, text: str) -> np.ndarray:
    """int32[n], the ids of the pieces."""
    exact = self._byte_ids and not self.adds_space
    parts = text.split(_SPACE) if exact else [text]
    ids = self._model.encode(parts[0])
    # A space is written as this character, so itself is written as bytes.
    for part in parts[1:]:
      ids += [self._byte_ids[bytes([b])] for b in _SPACE.encode()]
      ids += self._model.encode(part)
    return np.asarray(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, less the space that this model puts before it."""
    text = super().decode(ids)
    return text[1:] if self.adds_space and text[:1] == ' ' else text

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    return self._proto


class StreamDecoder:
  """Decodes ids one at a time, holding back incomplete characters.

  What `push` and `flush` return makes up the text that `decode` gives.

  Args:
    tokenizer: of the ids.
    continues: whether the ids continue a text, so that a space at their
      beginning is a part of it even where the tokenizer adds one.
  """

  def __init__(self, tokenizer: Tokenizer, continues: bool = False):
    self._piece = tokenizer.piece
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._drops_space = tokenizer.adds_space and not continues

  def push(self, token: int) -> str:
    """The characters that `token` completes, perhaps none."""
    return self._text(self._decoder.decode(self._piece(token)))

  def flush(self) -> str:
    """What is left: U+FFFD if the ids ended inside a character."""
    return self._text(self._decoder.decode(b'', final=True))

  def _text(self, characters: str) -> str:
    if not self._drops_space or not characters:
      return characters
    self._drops_space = False
    return characters.removeprefix(' ')


class TooLargeError(config_lib.ConfigError):
  """More pieces are asked for than the texts have; `most` they do have."""

  def __init__(self, message: str, most: int):
    super().__init__(message)
    self.most = most


def build(
  config: config_lib.Tokenizer, texts: Callable[[], Iterable[str]]
) -> Tokenizer:
  """The tokenizer that `config` asks for.

  Args:
    config: the tokenizer section; a vocabulary of fewer pieces is made where
      the texts have no more.
    texts: gives the training texts, for kinds that learn from them.

  Raises:
    ConfigError: the model cannot be read, or the vocabulary is too small for
      the texts.
  """
  config_lib.check(
    config.path is None or config.kind == 'sentencepiece',
    f'tokenizer.path={config.path!r} is for tokenizer.kind=sentencepiece, not '
    f'{config.kind}',
  )
  if config.kind == 'bytes':
    return Bytes()
  if config.kind == 'characters':
    return Characters(''.join(set().union(*texts())))
  if config.path is None:
    try:
      return train(texts(), config.vocab_size)
    except TooLargeError as error:
      logging.info('%s; training %d', error, error.most)
      return train(texts(), error.most)
  try:
    loaded = load(host.expand_path(config.path))
    config_lib.check(
      isinstance(loaded, SentencePiece),
      f'{config.path} is not a SentencePiece model',
    )
    return loaded
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'tokenizer.path: {error}') from error


def train(texts: Iterable[str], vocab_size: int) -> SentencePiece:
  """A byte-fallback BPE model of `texts` that decodes what it encodes.

  Raises:
    ConfigError: `vocab_size` is more than the texts can fill, or too few.
  """
  proto = io.BytesIO()
  failed: list[BaseException] = []

  def lines():
    # SentencePiece would tell an error of ours as one of its own.
    try:
      yield from _lines(texts)
    except BaseException as error:
      failed.append(error)
      raise

  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines(),
      model_writer=proto,
      model_type='bpe',
      vocab_size=vocab_size,
      byte_fallback=True,
      split_digits=True,
      # Together: text is never changed on its way in.
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=['\n'],
      max_sentence_length=4 * _LINE_CHARACTERS,
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      minloglevel=2,
    )
  except RuntimeError as error:
    if failed:
      raise failed[0] from None
    raise _refusal(vocab_size, str(error)) from error
  return SentencePiece(proto.getvalue())


def load(path: str | pathlib.Path) -> Tokenizer:
  """The tokenizer of a file: ours, or any SentencePiece model.

  Raises:
    ConfigError: the file cannot be read or holds something else.
  """
  path = pathlib.Path(path)
  try:
    content = host.read_file(path, _MAX_FILE_BYTES)
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  try:
    if not content.startswith(b'{'):
      return SentencePiece(content)
    return _from_json(content)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{path} is {error}') from error


def _from_json(content: bytes) -> Tokenizer:
  problem = 'not a tokenizer: it must hold kind bytes or characters'
  try:
    values = json.loads(content)
    kind, characters = values['kind'], values.get('characters', '')
    characters.encode('utf-8')
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
  ) as error:
    raise config_lib.ConfigError(problem) from error
  if kind == 'bytes':
    return Bytes()
  config_lib.check(kind == 'characters', problem)
  return Characters(characters)


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode('utf-32-le'), np.uint32)


def _piece_bytes(model, token: int) -> bytes:
  if model.is_control(token):
    return b''
  if model.is_unknown(token):
    return '\ufffd'.encode()
  piece = model.id_to_piece(token)
  if model.is_byte(token):
    return bytes([int(piece[1:-1], 16)])
  return piece.replace(_SPACE, ' ').encode('utf-8')


def _lines(texts: Iterable[str]) -> Iterator[str]:
  """Pieces of text that are short enough for SentencePiece's trainer."""
  left = _MAX_TRAINING_CHARACTERS
  lines = (line for text in texts for line in text.splitlines(keepends=True))
  for line in lines:
    for start in range(0, len(line), _LINE_CHARACTERS):
      yield line[start : start + _LINE_CHARACTERS]
    left -= len(line)
    if left <= 0:
      return


def _refusal(vocab_size: int, message: str) -> config_lib.ConfigError:
  """What SentencePiece's message means for tokenizer.vocab_size."""
  field = f'tokenizer.vocab_size={vocab_size}'
  if most := re.search(r'value <= (\d+)', message):
    return TooLargeError(
      f'{field} is too large for the training text; at most {most[1]}',
      int(most[1]),
    )
  if least := re.search(r'required_chars\. \d+ vs (\d+)', message):
    return config_lib.ConfigError(
      f'{field} is too small for the training text; at least {least[1]}'
    )
  return config_lib.ConfigError(
    f'{field} cannot be trained: {message.strip().splitlines()[-1]}'
  )


def main(arguments: Sequence[str] | None = None) -> int:
  """Trains a SentencePiece model on text files."""
  parser = argparse.ArgumentParser(
    prog='python -m gemini_jax.data.tokenizer', description=main.__doc__
  )
  parser.add_argument('--input', nargs='+', required=True, metavar='FILE')
  parser.add_argument('--vocab_size', type=int, default=2048)
  parser.add_argument('--output', required=True, metavar='PATH')
  flags = parser.parse_args(arguments)
  try:
    texts = [pathlib.Path(name).read_text('utf-8') for name in flags.input]
    num_bytes = sum(len(text.encode()) for text in texts)
    print(f'training {flags.vocab_size} pieces on {num_bytes:,} bytes')
    tokenizer = train(texts, flags.vocab_size)
    tokenizer.save(flags.output)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  num_tokens = sum(tokenizer.encode(text).size for text in texts)
  print(
    f'{flags.output}: {tokenizer.vocab_size} pieces, '
    f'{num_bytes / max(num_tokens, 1):.2f} bytes per token'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
