"""Tokenizers that the library `tokenizers` runs: BPE and unigram models.

The content of a `tokenizer.json` decides how text is cut; this module takes
from it what our contract needs: the bytes of each id, and which are special.
Files are hostile, so parts that could make text grow without bound, pad it or
change it at random are refused or removed.
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import token_roles, tokenizer, tokenizer_json

MODELS = ('BPE', 'Unigram')
# Published vocabularies have at most some hundred thousand ids.
_MAX_IDS = 1 << 22
# How much longer a text may become by a normalizer, and its steps.
_MAX_GROWTH = 1 << 12
_MAX_STEPS = 64
_SPACE = '▁'
# What every tokenizer must encode before it is used.
_PROBE = (
  "It's  a\n\n\tpröbe: 漢字 😀 <|x|> ▁ " + 'a' * 50 + '!' + '1' * 50 + ' '
)


class LibraryTokenizer(tokenizer.Tokenizer):
  """A model of the library `tokenizers`.

  Args:
    content: of a `tokenizer.json`.
    roles: ids with a role and the chat template.

  Raises:
    ConfigError: the library refuses the content, or it is no BPE or unigram
      model whose ids have bytes of their own.
  """

  def __init__(self, content: Mapping[str, Any], roles: token_roles.Roles):
    self.content, self.roles = checked(content), roles
    self._library = load_library(self.content)
    self._lock = threading.Lock()
    pieces, self.special_ids = _table(self._library, self.content)
    roles.check(len(pieces))
    super().__init__(
      pieces, roles.pad_id, roles.bos_id, roles.eos_id, roles.unk_id
    )
    self.end_ids, self.adds_bos = roles.end_ids, roles.adds_bos
    self.chat_template = roles.chat_template
    self.adds_space = _strips_space(self.content.get('decoder'))
    self.encode(_PROBE)

  def encode(self, text: str) -> np.ndarray:
    """int32[n], ids without special ones."""
    return np.asarray(self._encode(text, specials=False).ids, np.int32)

  def encode_spans(self, text: str) -> tokenizer.Encoded:
    """As `encode`, with the characters of each token."""
    return _encoded(self._encode(text, specials=False))

  def encode_chat(
    self, text: str, quoted: Iterable[tuple[int, int]] = ()
  ) -> tokenizer.Encoded:
    """The ids of what a chat template wrote, special ids among them."""
    if quoted:
      return super().encode_chat(text, tuple(quoted))
    return _encoded(self._encode(text, specials=True))

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, without the space that this model prepends."""
    text = super().decode(ids)
    return text[1:] if self.adds_space and text[:1] == ' ' else text

  def split_added(self, size: int) -> tuple[dict[str, Any], list[str]]:
    """The content without added tokens whose id is not below `size`.

    Returns:
      The content, and the texts of these tokens by id.
    """
    with library_errors('not a tokenizer.json'):
      added = self._library.get_added_tokens_decoder()
    dropped = [added[i].content for i in sorted(added) if i >= size]
    names = set(dropped)
    model = dict(self.content['model'])
    if model['type'] == 'BPE':
      model['vocab'] = {
        token: i for token, i in model['vocab'].items() if token not in names
      }
    else:
      model['vocab'] = [
        [token, score] for token, score in model['vocab'] if token not in names
      ]
    kept = [
      token
      for token in self.content.get('added_tokens', [])
      if token['content'] not in names
    ]
    return self.content | {'model': model, 'added_tokens': kept}, dropped

  def serialized(self) -> bytes:
    """The content of the file that `load` reads."""
    values = {
      'kind': 'huggingface',
      'roles': self.roles.to_json(),
      'tokenizer': self.content,
    }
    return to_json(values)

  def _encode(self, text: str, specials: bool) -> Any:
    with self._lock, library_errors('cannot encode a text'):
      self._library.encode_special_tokens = not specials
      return self._library.encode(text, add_special_tokens=False)


def to_json(values: Any) -> bytes:
  """Compact JSON in UTF-8.

  Raises:
    ConfigError: a string is not Unicode.
  """
  try:
    text = json.dumps(values, ensure_ascii=False, separators=(',', ':'))
    return text.encode()
  except (UnicodeError, RecursionError) as error:
    raise config_lib.ConfigError(
      'a tokenizer with text that is not Unicode'
    ) from error


def load_library(content: Mapping[str, Any]) -> Any:
  """A `tokenizers.Tokenizer` of the content of a `tokenizer.json`.

  Raises:
    ConfigError: it refuses the content, or is not installed.
  """
  library = config_lib.optional(
    'tokenizers', 'tokenizers from Hugging Face and GGUF need it', 'weights'
  )
  text = to_json(content).decode()
  with library_errors('not a tokenizer.json'):
    return library.Tokenizer.from_str(text)


@contextlib.contextmanager
def library_errors(problem: str) -> Iterator[None]:
  """Turns what the library raises into ConfigErrors."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit, MemoryError, config_lib.ConfigError):
    raise
  except BaseException as error:
    # It raises Exception itself, and a panic of Rust is a BaseException.
    reason = ' '.join(str(error).split())[:200]
    raise config_lib.ConfigError(f'{problem}: {reason}') from error


def _encoded(encoding: Any) -> tokenizer.Encoded:
  spans = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
  return tokenizer.Encoded(np.asarray(encoding.ids, np.int32), spans)


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
  """The content without what would pad, cut or change texts at random.

  Raises:
    ConfigError: it has not the structure of a `tokenizer.json`.
  """
  model = content.get('model') if isinstance(content, dict) else None
  config_lib.check(
    isinstance(model, dict)
    and isinstance(content.get('added_tokens', []), list),
    'not a tokenizer.json: it must be an object with a model',
  )
  assert isinstance(model, dict)
  # Early files leave out the type of BPE.
  kind = model.get('type') or ('BPE' if 'merges' in model else None)
  config_lib.check(
    kind in MODELS,
    f'a tokenizer.json whose model is {kind!r:.80}; supported are '
    f'{", ".join(MODELS)}',
  )
  growth, steps = _growth(content.get('normalizer'))
  config_lib.check(
    growth <= _MAX_GROWTH and steps <= _MAX_STEPS,
    f'a tokenizer.json whose normalizer has {steps} steps and can make a text '
    f'{growth:,} times longer',
  )
  # Subwords are not dropped at random.
  model = model | {'type': kind}
  if kind == 'BPE':
    model['dropout'] = None
  return dict(content) | {'model': model, 'padding': None, 'truncation': None}


def _growth(step: Any) -> tuple[int, int]:
  """How many times longer a normalizer can make a text, and its steps."""
  if not isinstance(step, dict):
    return 1, 1
  if isinstance(steps := step.get('normalizers'), list):
    growth, count = 1, 0
    for inner in steps[: _MAX_STEPS + 1]:
      more, added = _growth(inner)
      growth, count = growth * more, count + added
    return growth, count
  if step.get('type') == 'Precompiled':
    return _charsmap_growth(step.get('precompiled_charsmap')), 1
  content = step.get('content', step.get('prepend', ''))
  # A pattern may match between all characters.
  return (len(content) + 1 if isinstance(content, str) else 1), 1


def _charsmap_growth(charsmap: Any) -> int:
  """Bytes of the longest text that SentencePiece's rules make of a character.

  The rules are a trie, its size in front, and texts that end with a 0.
  """
  try:
    content = base64.b64decode(charsmap or '')
  except (ValueError, TypeError):
    return 1  # The library refuses it.
  texts = content[4 + int.from_bytes(content[:4], 'little') :]
  return max(map(len, texts.split(b'\0')))


def _table(
  library: Any, content: Mapping[str, Any]
) -> tuple[list[bytes], dict[str, int]]:
  """The bytes of each id, and the special ids by their text.

  Raises:
    ConfigError: the decoder is not known, or ids are too far apart.
  """
  to_bytes = _decoder(content.get('decoder'))
  with library_errors('not a tokenizer.json'):
    ids = library.get_vocab(with_added_tokens=True)
    added = library.get_added_tokens_decoder()
  size = max([*ids.values(), *added], default=-1) + 1
  config_lib.check(
    0 < size <= min(_MAX_IDS, 2 * len(ids) + 1000),
    f'a tokenizer.json with {len(ids):,} tokens and ids up to {size - 1:,}',
  )
  pieces = [b''] * size
  for text, i in ids.items():
    pieces[i] = to_bytes(text)
  unknown = content['model'].get('unk_token')
  if isinstance(unknown, str) and unknown in ids:
    pieces[ids[unknown]] = '\ufffd'.encode()
  specials = {}
  for i, token in added.items():
    pieces[i] = b'' if token.special else token.content.encode()
    if token.special:
      specials[token.content] = i
  return pieces, specials


def _decoder(decoder: Any):
  """The function from the text of a token to its bytes.

  Raises:
    ConfigError: the decoder does more than that.
  """
  steps = _steps(decoder)
  kinds = [step.get('type') for step in steps]
  replaced = {
    'Metaspace': lambda step: (step.get('replacement', _SPACE), ' '),
    'Replace': lambda step: (step['pattern'].get('String'), step['content']),
  }
  try:
    pairs = [
      replaced[kind](step)
      for kind, step in zip(kinds, steps, strict=True)
      if kind in replaced
    ]
    known = ('ByteLevel', 'ByteFallback', 'Fuse', 'Strip', *replaced)
    plain = all(
      pair and all(type(s) is str and s for s in pair) for pair in pairs
    )
    growth = max([len(content) for _, content in pairs], default=1)
  except (LookupError, TypeError, AttributeError):
    plain, known, growth = False, (), 0
  config_lib.check(
    plain and bool(kinds) and set(kinds) <= set(known) and growth <= 16,
    f'a tokenizer.json whose decoder is {kinds!r:.200}; supported are '
    'ByteLevel, Metaspace, and Replace, ByteFallback, Fuse and Strip',
  )
  if 'ByteLevel' in kinds:
    return _from_byte_level
  falls_back = 'ByteFallback' in kinds

  def to_bytes(text: str) -> bytes:
    if falls_back and (byte := as_byte(text)) is not None:
      return byte
    for pattern, content in pairs:
      text = text.replace(pattern, content)
    return text.encode()

  return to_bytes


def is_byte_level(content: Mapping[str, Any]) -> bool:
  """Whether tokens are in GPT-2's characters for bytes."""
  return any(
    step.get('type') == 'ByteLevel' for step in _steps(content.get('decoder'))
  )


def _steps(decoder: Any) -> list[dict[str, Any]]:
  """The decoders of a sequence, or the only one."""
  if not isinstance(decoder, dict):
    return []
  if decoder.get('type') != 'Sequence':
    return [decoder]
  steps = decoder.get('decoders')
  return (
    [s for s in steps if isinstance(s, dict)] if type(steps) is list else []
  )


def _strips_space(decoder: Any) -> bool:
  """Whether decoding drops the space at the beginning of a text."""
  return any(
    (step.get('type') == 'Strip' and step.get('start') == 1)
    or (
      step.get('type') == 'Metaspace'
      and step.get('prepend_scheme', 'always') != 'never'
      and step.get('add_prefix_space', True) is not False
    )
    for step in _steps(decoder)
  )


def as_byte(token: str) -> bytes | None:
  """The byte of a token such as <0x0A>; None for other tokens."""
  if len(token) == 6 and token.startswith('<0x') and token.endswith('>'):
    try:
      return bytes.fromhex(token[3:5])
    except ValueError:
      return None
  return None


def _from_byte_level(token: str) -> bytes:
  """The bytes of a token in GPT-2's characters for bytes."""
  try:
    return bytes([tokenizer_json.BYTE_OF[character] for character in token])
  except KeyError:
    return token.encode()
