"""Text to token ids and back: bytes, characters or SentencePiece.

Every kind of tokenizer has a table of the bytes of each id, and its own way to
encode. Decoding concatenates bytes, so it is exact and can be streamed.
"""

import codecs
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from gemini_jax import config as config_lib
from gemini_jax import host

# Saved tokenizers are far smaller; a wrong path may name a huge file.
_MAX_FILE_BYTES = 1 << 27
# SentencePiece writes a space as this character.
_SPACE = '▁'


class Tokenizer:
  """The common part of all kinds of tokenizers.

  Attributes:
    pieces: the bytes of each id; empty for special ids.
    pad_id: fills the rest of a row. Padding is recognised by segment 0, so this
      may be the id of eos.
    bos_id: the first token of every document.
    eos_id: the last token of every document.
    unk_id: stands for text that cannot be encoded; None if there is none.
    adds_space: whether encoding prepends a space to a text.
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
    """Hex digest of all that encoding depends on."""
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
    """The bytes of one id; empty for an id outside the vocabulary."""
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
  """One id for each character of the training texts; others become unk."""

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
  """A SentencePiece model (Kudo and Richardson 2018), from its proto."""

  def __init__(self, proto: bytes):
    try:
      model = sentencepiece.SentencePieceProcessor(model_proto=proto)
      size = model.vocab_size()
      pieces = [_piece_bytes(model, i) for i in range(size)]
    except (RuntimeError, ValueError) as error:
      # In a damaged model, pieces may be no UTF-8 or not a byte.
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
    # Most published models prepend a space to the text.
    self.adds_space = self.pieces_of('a')[:1] == b' '
    self._byte_ids = {
      self.pieces[i]: i for i in range(size) if model.is_byte(i)
    }

  def pieces_of(self, text: str) -> bytes:
    """The bytes of the ids of `text`, with the prepended space, if any."""
    return b''.join(self.pieces[i] for i in self._model.encode(text))

  def encode(self, text: str) -> np.ndarray:
    """int32[n], the ids of the pieces."""
    exact = self._byte_ids and not self.adds_space
    parts = text.split(_SPACE) if exact else [text]
    ids = self._model.encode(parts[0])
    # SentencePiece writes spaces as this character, so the character itself is
    # encoded as bytes.
    for part in parts[1:]:
      ids += [self._byte_ids[bytes([b])] for b in _SPACE.encode()]
      ids += self._model.encode(part)
    return np.asarray(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, without the space that this model prepends."""
    text = super().decode(ids)
    return text[1:] if self.adds_space and text[:1] == ' ' else text

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    return self._proto


class StreamDecoder:
  """Decodes ids one at a time; incomplete characters are held back.

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
    """The characters that `token` completes; may be empty."""
    return self._text(self._decoder.decode(self._piece(token)))

  def flush(self) -> str:
    """The rest: U+FFFD if the ids ended inside a character."""
    return self._text(self._decoder.decode(b'', final=True))

  def _text(self, characters: str) -> str:
    if not self._drops_space or not characters:
      return characters
    self._drops_space = False
    return characters.removeprefix(' ')


def load(path: str | pathlib.Path) -> Tokenizer:
  """The tokenizer in a file: one that `save` wrote, or any SentencePiece model.

  Raises:
    ConfigError: the file cannot be read or is not a tokenizer.
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
  except host.MALFORMED as error:
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
