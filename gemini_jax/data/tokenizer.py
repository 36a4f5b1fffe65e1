"""Text to token ids and back: what all tokenizers share, bytes, characters.

Every kind of tokenizer has a table of the bytes of each id, and its own way to
encode. Decoding concatenates bytes, so it is exact and can be streamed.
"""

import base64
import codecs
import functools
import hashlib
import json
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import token_roles

# Saved tokenizers are far smaller; a wrong path may name a huge file.
_MAX_FILE_BYTES = 1 << 27


class Encoded(NamedTuple):
  """Token ids and the characters that each stands for.

  Attributes:
    ids: int32[n].
    spans: int64[n, 2], index of the first character and of the one after the
      last. Tokens that are bytes of one character have the same span.
  """

  ids: np.ndarray
  spans: np.ndarray


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
    adds_bos: whether a plain text begins with `bos_id`; False for models that
      were trained without.
    end_ids: each of them ends what a model writes; `eos_id` is the first.
    chat_template: Jinja template of a conversation; '' if there is none.
    special_ids: the texts that a chat template writes for special ids.
  """

  adds_space = False
  adds_bos = True
  chat_template = ''
  special_ids: Mapping[str, int] = types.MappingProxyType({})

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
    self.end_ids: tuple[int, ...] = (eos_id,)

  @property
  def vocab_size(self) -> int:
    """Number of ids, the special ones included."""
    return len(self.pieces)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of all that encoding depends on."""
    return hashlib.sha256(self.serialized()).hexdigest()[:32]

  def encode(self, text: str) -> np.ndarray:
    """int32[n], the ids of `text` without bos and eos.

    Text never becomes a special id.
    """
    return self.encode_spans(text).ids

  def encode_spans(self, text: str) -> Encoded:
    """As `encode`, with the characters of each token."""
    raise NotImplementedError

  def encode_chat(
    self, text: str, quoted: Sequence[tuple[int, int]] = ()
  ) -> Encoded:
    """The ids of what a chat template wrote, special ids among them.

    Args:
      text: with special ids written as in `special_ids`.
      quoted: spans of characters within which no special id is recognised,
        since they come from a message.
    """
    is_quoted = lambda match: any(
      match.start() < stop and start < match.end() for start, stop in quoted
    )
    parts, end = [], 0
    for match in self.special_pattern.finditer(text):
      if is_quoted(match):
        continue
      parts.append(self._between(text, end, match.start()))
      ids = np.array([self.special_ids[match[0]]], np.int32)
      parts.append(Encoded(ids, np.array([match.span()])))
      end = match.end()
    parts.append(self._between(text, end, len(text)))
    return Encoded(*map(np.concatenate, zip(*parts, strict=True)))

  def _between(self, text: str, start: int, stop: int) -> Encoded:
    """Plain text between special ids."""
    if start == stop:
      return Encoded(np.zeros(0, np.int32), np.zeros((0, 2), np.int64))
    encoded = self.encode_spans(text[start:stop])
    return encoded._replace(spans=encoded.spans + start)

  @functools.cached_property
  def special_pattern(self) -> re.Pattern:
    """Matches the text of any special id."""
    longest_first = sorted(self.special_ids, key=len, reverse=True)
    return re.compile('|'.join(map(re.escape, longest_first)) or '(?!)')

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

  def encode_spans(self, text: str) -> Encoded:
    """As `encode`, with the characters of each token."""
    starts = character_of_bytes(text)
    return Encoded(self.encode(text), np.stack([starts, starts + 1], 1))

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

  def encode_spans(self, text: str) -> Encoded:
    """As `encode`, with the characters of each token."""
    starts = np.arange(len(text))
    return Encoded(self.encode(text), np.stack([starts, starts + 1], 1))

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    content = {'kind': 'characters', 'characters': self.characters}
    return json.dumps(content).encode()


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
      return _sentencepiece(content)
    return _from_json(content)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{path} is {error}') from error


def _from_json(content: bytes) -> Tokenizer:
  try:
    values = json.loads(content)
    kind = values['kind']
    known = kind in _KINDS
    config_lib.check(known, f'not a tokenizer: kind {kind!r:.80}')
    return _KINDS[kind](values)
  except config_lib.ConfigError:
    raise
  except host.MALFORMED as error:
    raise config_lib.ConfigError(
      f'not a tokenizer: it must be JSON of kind {", ".join(_KINDS)}'
    ) from error


def _characters(values: dict[str, Any]) -> Tokenizer:
  characters = values['characters']
  characters.encode('utf-8')
  return Characters(characters)


# Modules that extend a class of this one are imported where they are used.
def _sentencepiece(
  proto: bytes, roles: token_roles.Roles | None = None
) -> Tokenizer:
  from gemini_jax.data import sentencepiece_tokenizer

  return sentencepiece_tokenizer.SentencePiece(proto, roles)


def _sentencepiece_with_roles(values: dict[str, Any]) -> Tokenizer:
  proto = base64.b64decode(values['proto'], validate=True)
  return _sentencepiece(proto, token_roles.Roles.from_json(values['roles']))


def _library(values: dict[str, Any]) -> Tokenizer:
  from gemini_jax.data import library_tokenizer

  return library_tokenizer.LibraryTokenizer(
    values['tokenizer'], token_roles.Roles.from_json(values['roles'])
  )


# What reads the JSON of each kind.
_KINDS = {
  'bytes': lambda values: Bytes(),
  'characters': _characters,
  'sentencepiece': _sentencepiece_with_roles,
  'huggingface': _library,
}


def character_of_bytes(text: str) -> np.ndarray:
  """int64[n], the index of the character that each byte of UTF-8 belongs to."""
  sizes = [len(character.encode('utf-8')) for character in text]
  return np.repeat(np.arange(len(text)), sizes)


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode('utf-32-le'), np.uint32)
