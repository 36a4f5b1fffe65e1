"""Tokenizers that SentencePiece runs, from the proto of a model."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_pb2

from gemini_jax import config as config_lib
from gemini_jax.data import token_roles, tokenizer

# Generated code, whose classes a type checker does not see.
_TEXT: Any = vars(sentencepiece_pb2)['SentencePieceText']
# SentencePiece writes a space as this character.
_SPACE = '▁'


class SentencePiece(tokenizer.Tokenizer):
  """A SentencePiece model (Kudo and Richardson 2018), from its proto.

  Args:
    proto: the content of a `.model` file.
    roles: ids with a role and the chat template; None: ids as in the proto.
  """

  def __init__(self, proto: bytes, roles: token_roles.Roles | None = None):
    try:
      model = sentencepiece.SentencePieceProcessor(model_proto=proto)
      size = model.vocab_size()
      pieces = [_piece_bytes(model, i) for i in range(size)]
      special_ids = {
        model.id_to_piece(i): i
        for i in range(size)
        if model.is_control(i) or model.is_unknown(i)
      }
    except (RuntimeError, ValueError) as error:
      # In a damaged model, pieces may be no UTF-8 or not a byte.
      raise config_lib.ConfigError('not a SentencePiece model') from error
    config_lib.check(size > 0, 'not a SentencePiece model')
    if roles is None:
      config_lib.check(
        model.eos_id() >= 0, 'a SentencePiece model without an eos piece'
      )
      own = roles_of_model(model)
    else:
      roles.check(size)
      own = roles
    super().__init__(pieces, own.pad_id, own.bos_id, own.eos_id, model.unk_id())
    self.end_ids, self.adds_bos = own.end_ids, own.adds_bos
    self.chat_template = own.chat_template
    self.special_ids = special_ids
    self.proto, self._model, self._roles = proto, model, roles
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
    parts = self._parts(text)
    ids = self._model.encode(parts[0])
    for part in parts[1:]:
      ids += [self._byte_ids[bytes([b])] for b in _SPACE.encode()]
      ids += self._model.encode(part)
    return np.asarray(ids, np.int32)

  def encode_spans(self, text: str) -> tokenizer.Encoded:
    """As `encode`, with the characters of each token."""
    ids, spans, begin = [], [], 0
    for i, part in enumerate(self._parts(text)):
      if i:
        ids += [self._byte_ids[bytes([b])] for b in _SPACE.encode()]
        spans += [(begin, begin + 1)] * len(_SPACE.encode())
        begin += 1
      encoded = _TEXT.FromString(
        self._model.encode(part, out_type='serialized_proto')
      )
      # Its spans are of bytes.
      characters = begin + np.append(
        tokenizer.character_of_bytes(part), len(part)
      )
      for piece in encoded.pieces:
        ids.append(piece.id)
        start, stop = characters[[piece.begin, piece.end]].tolist()
        # All bytes of a character but the last are given as empty.
        spans.append((start, max(stop, start + 1)))
      begin += len(part)
    return tokenizer.Encoded(
      np.asarray(ids, np.int32), np.asarray(spans, np.int64).reshape(-1, 2)
    )

  def _parts(self, text: str) -> list[str]:
    """The text, cut at characters that SentencePiece would take for spaces."""
    exact = self._byte_ids and not self.adds_space
    return text.split(_SPACE) if exact else [text]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, without the space that this model prepends."""
    text = super().decode(ids)
    return text[1:] if self.adds_space and text[:1] == ' ' else text

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    if self._roles is None:
      return self.proto
    content = {
      'kind': 'sentencepiece',
      'proto': base64.b64encode(self.proto).decode(),
      'roles': self._roles.to_json(),
    }
    return json.dumps(content).encode()


def roles_of_model(model: Any) -> token_roles.Roles:
  """Ids with a role of a `SentencePieceProcessor` that has an eos piece."""
  eos_id = model.eos_id()
  return token_roles.Roles(
    bos_id=model.bos_id() if model.bos_id() >= 0 else eos_id,
    eos_id=eos_id,
    pad_id=model.pad_id() if model.pad_id() >= 0 else eos_id,
  )


def _piece_bytes(model, token: int) -> bytes:
  if model.is_control(token):
    return b''
  if model.is_unknown(token):
    return '\ufffd'.encode()
  piece = model.id_to_piece(token)
  if model.is_byte(token):
    return bytes([int(piece[1:-1], 16)])
  return piece.replace(_SPACE, ' ').encode('utf-8')
