"""SentencePiece models put together, changed, and as a `tokenizer.json`.

The types of pieces have the same numbers in SentencePiece's proto and in GGUF.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import message
from sentencepiece import sentencepiece_model_pb2

from gemini_jax import config as config_lib
from gemini_jax.data import (
  sentencepiece_tokenizer,
  token_roles,
  tokenizer_json,
)

# Generated code, whose classes a type checker does not see.
_MODEL: Any = vars(sentencepiece_model_pb2)['ModelProto']

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
SPACE = '▁'
# More added tokens than that are no tokenizer.
_MAX_ADDED = 1 << 17


class Pieces(NamedTuple):
  """The vocabulary of a model.

  Attributes:
    tokens: the text of each piece; spaces are `SPACE`.
    scores: float32[n].
    types: int32[n].
  """

  tokens: Sequence[str]
  scores: np.ndarray
  types: np.ndarray


def build(
  pieces: Pieces,
  kind: int,
  adds_space: bool,
  removes_spaces: bool = False,
  charsmap: bytes = b'',
) -> bytes:
  """The proto of a model.

  Args:
    pieces: its vocabulary.
    kind: BPE or UNIGRAM.
    adds_space: whether a space is prepended to a text.
    removes_spaces: whether several spaces become one, and those at the ends of
      a text none.
    charsmap: compiled rules of the normalizer.
  """
  proto = _MODEL()
  for token, score, type_ in zip(*pieces, strict=True):
    proto.pieces.add(piece=token, score=float(score), type=int(type_))
  spec = proto.trainer_spec
  spec.model_type, spec.vocab_size = kind, len(proto.pieces)
  spec.byte_fallback = BYTE in pieces.types
  (unknown,) = np.flatnonzero(pieces.types == UNKNOWN)[:1].tolist() or (0,)
  spec.unk_id, spec.unk_piece = unknown, pieces.tokens[unknown]
  normalizer = proto.normalizer_spec
  normalizer.name = 'identity'
  normalizer.add_dummy_prefix = adds_space
  normalizer.remove_extra_whitespaces = removes_spaces
  normalizer.precompiled_charsmap = charsmap
  return proto.SerializeToString()


def parse(proto: bytes) -> Any:
  """The message in the content of a `.model` file.

  Raises:
    ConfigError: it is none.
  """
  try:
    return _MODEL.FromString(proto)
  except (message.DecodeError, ValueError) as error:
    raise config_lib.ConfigError('not a SentencePiece model') from error


def pieces_of(made: sentencepiece_tokenizer.SentencePiece) -> Pieces:
  """The vocabulary of a tokenizer."""
  pieces = parse(made.proto).pieces
  return Pieces(
    [piece.piece for piece in pieces],
    np.array([piece.score for piece in pieces], np.float32),
    np.array([piece.type for piece in pieces], np.int32),
  )


def split_added(
  made: sentencepiece_tokenizer.SentencePiece, size: int
) -> tuple[bytes, list[str]]:
  """The proto without added pieces whose id is not below `size`.

  Returns:
    The proto, and the texts of these pieces by id. It is the whole proto if
    one of them is an ordinary piece.
  """
  proto = parse(made.proto)
  last = proto.pieces[size:]
  if any(piece.type in (NORMAL, UNKNOWN, BYTE) for piece in last):
    return made.proto, []
  dropped = [piece.piece for piece in last if piece.type != UNUSED]
  del proto.pieces[size:]
  return proto.SerializeToString(), dropped


def from_files(
  content: bytes,
  named: Mapping[str, Any],
  models: tuple[Mapping[str, Any], ...],
  template: str,
) -> sentencepiece_tokenizer.SentencePiece:
  """The tokenizer of a `.model` file and of what stands beside it.

  Args:
    content: of the file.
    named: `tokenizer_config.json`; its `added_tokens_decoder` adds pieces and
      says which are special.
    models: `generation_config.json` and `config.json`.
    template: of a chat.

  Raises:
    ConfigError: a file is damaged.
  """
  proto = parse(content)
  for i, text, special in _added(named):
    while len(proto.pieces) <= i:
      unused = f'<unused id {len(proto.pieces)}>'
      proto.pieces.add(piece=unused, score=0.0, type=UNUSED)
    if proto.pieces[i].type != UNKNOWN:
      proto.pieces[i].piece = text.replace(' ', SPACE)
      proto.pieces[i].type = CONTROL if special else USER_DEFINED
  ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  by_type = {  # What the proto itself says, where the files say nothing.
    f'{role}_token': ids_of_spec
    for role, ids_of_spec in (
      ('bos', proto.trainer_spec.bos_piece),
      ('eos', proto.trainer_spec.eos_piece),
    )
    if ids.get(ids_of_spec) is not None
  }
  roles = token_roles.from_files(
    by_type | dict(named), models, ids.get, template
  )
  return sentencepiece_tokenizer.SentencePiece(proto.SerializeToString(), roles)


def _added(named: Mapping[str, Any]) -> Iterable[tuple[int, str, bool]]:
  """Id, text, and whether it is special, of each added token, by id."""
  added = named.get('added_tokens_decoder') or {}
  problem = (
    'beside an added_tokens_decoder that is not {id: {content, special}}'
  )
  config_lib.check(isinstance(added, dict) and len(added) < _MAX_ADDED, problem)
  result = []
  for i, token in added.items():
    config_lib.check(
      i.isdecimal()
      and len(i) < 8
      and isinstance(token, dict)
      and isinstance(token.get('content'), str)
      and bool(token['content']),
      problem,
    )
    result.append((int(i), token['content'], token.get('special') is True))
  result.sort()
  config_lib.check(
    not result or result[-1][0] < 1 << 22,
    f'{problem}, with ids below 4,194,304',
  )
  return result


def library_content(
  made: sentencepiece_tokenizer.SentencePiece,
) -> dict[str, Any]:
  """The content of a `tokenizer.json` that encodes as a model does."""
  proto = parse(made.proto)
  tokens, scores, types = pieces_of(made)
  falls_back = bool(proto.trainer_spec.byte_fallback)
  unknown = int(np.flatnonzero(types == UNKNOWN)[0])
  if proto.trainer_spec.model_type == BPE:
    model = {
      'type': 'BPE',
      'unk_token': tokens[unknown],
      'fuse_unk': True,
      'byte_fallback': falls_back,
      'vocab': {token: i for i, token in enumerate(tokens)},
      'merges': _merges(tokens, scores, types),
    }
  else:
    model = {
      'type': 'Unigram',
      'unk_id': unknown,
      'byte_fallback': falls_back,
      'vocab': [
        [token, float(score)]
        for token, score in zip(tokens, scores, strict=True)
      ],
    }
  replace = lambda pattern, content: {
    'type': 'Replace',
    'pattern': pattern,
    'content': content,
  }
  spec, steps = proto.normalizer_spec, []
  if spec.precompiled_charsmap:
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    steps.append({'type': 'Precompiled', 'precompiled_charsmap': charsmap})
  if spec.remove_extra_whitespaces:
    steps.append({'type': 'Strip', 'strip_left': True, 'strip_right': True})
    steps.append(replace({'Regex': ' {2,}'}, ' '))
  if spec.add_dummy_prefix:
    steps.append({'type': 'Prepend', 'prepend': SPACE})
  steps.append(replace({'String': ' '}, SPACE))
  decoders = [
    replace({'String': SPACE}, ' '),
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
  ]
  if made.adds_space:
    decoders.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
  return tokenizer_json.new_content(
    model,
    [
      (i, token, type_ != USER_DEFINED)
      for i, (token, type_) in enumerate(
        zip(tokens, types.tolist(), strict=True)
      )
      if type_ in (UNKNOWN, CONTROL, USER_DEFINED)
    ],
    (made.bos_id, tokens[made.bos_id]) if made.adds_bos else None,
    normalizer={'type': 'Sequence', 'normalizers': steps},
    decoder={'type': 'Sequence', 'decoders': decoders},
  )


def _merges(
  tokens: Sequence[str], scores: np.ndarray, types: np.ndarray
) -> list[list[str]]:
  """All pairs of pieces that make a piece, the best piece first."""
  known = {
    token
    for token, type_ in zip(tokens, types, strict=True)
    if type_ in (NORMAL, USER_DEFINED, UNUSED)
  }
  merges = []
  for i in np.argsort(-scores, kind='stable').tolist():
    token = tokens[i]
    if token in known:
      for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        if left in known and right in known:
          merges.append([left, right])
  return merges
