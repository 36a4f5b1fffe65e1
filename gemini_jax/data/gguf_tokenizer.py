"""Tokenizers from and to the metadata of a GGUF file.

`tokenizer.ggml.model` is gpt2 (byte-level BPE, cut as `tokenizer.ggml.pre`
says), llama or t5 (SentencePiece's BPE and unigram models) or gemma4 (BPE on
text with spaces as symbols).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import (
  library_tokenizer,
  pre_tokenizers,
  sentencepiece_model,
  sentencepiece_tokenizer,
  token_roles,
  tokenizer,
  tokenizer_json,
)

MODELS = ('gpt2', 'llama', 'gemma4', 't5')
_MAX_TOKENS = 1 << 22
_PREFIX = 'tokenizer.ggml.'
# Special tokens that end what a model writes, whatever the file says.
_ENDS = (
  *('<|eot_id|>', '<|im_end|>', '<|end|>', '<|return|>', '<|call|>'),
  *('<end_of_turn>', '<|endoftext|>', '</s>', '<|eom_id|>', '<EOT>', '[EOT]'),
  *('[EOS]', '<|end_of_text|>', '<end_of_utterance>', '<eos>', '<turn|>'),
  '<\uff5cend▁of▁sentence\uff5c>',
)


def from_gguf(metadata: Mapping[str, Any]) -> tokenizer.Tokenizer:
  """The tokenizer that the metadata of a file describe.

  Raises:
    ConfigError: a field is missing or damaged, or the kind is not supported.
  """
  kind = metadata.get(f'{_PREFIX}model')
  config_lib.check(
    kind in MODELS,
    f'{_PREFIX}model={kind!r:.80} is not supported; supported are '
    f'{", ".join(MODELS)}',
  )
  tokens = _strings(metadata, 'tokens')
  size = len(tokens)
  config_lib.check(
    0 < size <= _MAX_TOKENS, f'{_PREFIX}tokens has {size:,} entries'
  )
  tokens = [token or f'[EMPTY_{i}]' for i, token in enumerate(tokens)]
  config_lib.check(
    len(set(tokens)) == size, f'{_PREFIX}tokens has the same token twice'
  )
  types = _numbers(metadata, 'token_type', size, np.int32)
  if types is None:
    types = np.full(size, sentencepiece_model.NORMAL, np.int32)
  make = _byte_pair if kind in ('gpt2', 'gemma4') else _sentencepiece
  return make(str(kind), metadata, tokens, types)


def _byte_pair(
  kind: str, metadata: Mapping[str, Any], tokens: list[str], types: np.ndarray
) -> tokenizer.Tokenizer:
  name = metadata.get(f'{_PREFIX}pre', 'default')
  name = 'gemma4' if kind == 'gemma4' else name
  rules = pre_tokenizers.BY_NAME.get(name) if isinstance(name, str) else None
  known = ', '.join(sorted(pre_tokenizers.BY_NAME))
  if rules is None:
    raise config_lib.ConfigError(
      f'{_PREFIX}pre={name!r:.80} is not known; known are {known}'
    )
  roles = _roles(metadata, tokens, types, rules.adds_bos)
  merges = []
  for merge in _strings(metadata, 'merges'):
    # The first part may be a space.
    cut = merge.find(' ', 1)
    config_lib.check(
      cut > 0, f'{_PREFIX}merges: {merge!r:.80} is not two tokens'
    )
    merges.append([merge[:cut], merge[cut + 1 :]])
  unknown = None if roles.unk_id is None else tokens[roles.unk_id]
  model = {
    'type': 'BPE',
    'unk_token': None if rules.is_byte_level else unknown,
    'byte_fallback': not rules.is_byte_level,
    'fuse_unk': not rules.is_byte_level,
    'ignore_merges': rules.ignore_merges,
    'vocab': {token: i for i, token in enumerate(tokens)},
    'merges': merges,
  }
  content = tokenizer_json.new_content(
    model,
    _added(tokens, types),
    (roles.bos_id, tokens[roles.bos_id]) if roles.adds_bos else None,
    **pre_tokenizers.sections(rules),
  )
  return library_tokenizer.LibraryTokenizer(content, roles)


def _sentencepiece(
  kind: str, metadata: Mapping[str, Any], tokens: list[str], types: np.ndarray
) -> tokenizer.Tokenizer:
  scores = _numbers(metadata, 'scores', len(tokens), np.float32)
  if scores is None:
    raise config_lib.ConfigError(f'{_PREFIX}scores is missing')
  config_lib.check(
    bool(np.isfinite(scores).all()), f'{_PREFIX}scores are not all finite'
  )
  is_bpe = kind == 'llama'
  roles = _roles(metadata, tokens, types, adds_bos=is_bpe)
  unknown = 0 if roles.unk_id is None else roles.unk_id
  types = np.where(types == sentencepiece_model.UNKNOWN, 1, types)
  types[unknown] = sentencepiece_model.UNKNOWN
  known = set(tokens)
  spell = lambda token: token.replace(' ', sentencepiece_model.SPACE)
  tokens = [
    token if spell(token) in known else spell(token) for token in tokens
  ]
  charsmap = metadata.get(f'{_PREFIX}precompiled_charsmap', ())
  removes = _flag(metadata, 'remove_extra_whitespaces', not is_bpe)
  proto = sentencepiece_model.build(
    sentencepiece_model.Pieces(tokens, scores, types),
    sentencepiece_model.BPE if is_bpe else sentencepiece_model.UNIGRAM,
    _flag(metadata, 'add_space_prefix', True),
    removes and not is_bpe,
    np.asarray(charsmap).astype(np.uint8).tobytes(),
  )
  return sentencepiece_tokenizer.SentencePiece(proto, roles)


def _roles(
  metadata: Mapping[str, Any],
  tokens: list[str],
  types: np.ndarray,
  adds_bos: bool,
) -> token_roles.Roles:
  """Ids with a role, as the file gives them.

  Raises:
    ConfigError: no token ends a text, or an id is not one of the tokens.
  """
  ids: dict[str, int | None] = {}
  for role in ('bos', 'eos', 'padding', 'unknown', 'eot', 'eom'):
    name = f'{_PREFIX}{role}_token_id'
    value = metadata.get(name)
    config_lib.check(
      value is None
      or (isinstance(value, int | np.integer) and value in range(len(tokens))),
      f'{name}={value!r:.80} is not one of the {len(tokens):,} tokens',
    )
    ids[role] = None if value is None else int(value)
  ends = [ids['eos'], ids['eot'], ids['eom']]
  ends += [
    i
    for i, token in enumerate(tokens)
    if token in _ENDS and types[i] == sentencepiece_model.CONTROL
  ]
  ends = [i for i in ends if i is not None]
  config_lib.check(len(ends) > 0, f'{_PREFIX}eos_token_id is missing')
  bos, padding = ids['bos'], ids['padding']
  template = metadata.get('tokenizer.chat_template', '')
  config_lib.check(
    isinstance(template, str), 'tokenizer.chat_template is not text'
  )
  return token_roles.Roles(
    bos_id=ends[0] if bos is None else bos,
    eos_id=ends[0],
    pad_id=ends[0] if padding is None else padding,
    unk_id=ids['unknown'],
    end_ids=tuple(ends),
    adds_bos=_flag(
      metadata, 'add_bos_token', adds_bos and ids['bos'] is not None
    ),
    chat_template=template,
  )


def _added(
  tokens: list[str], types: np.ndarray
) -> Iterable[tuple[int, str, bool]]:
  """Id, text, and whether it is special, of tokens that text is cut at."""
  special = sentencepiece_model.UNKNOWN, sentencepiece_model.CONTROL
  cut_at = *special, sentencepiece_model.USER_DEFINED
  for i in np.flatnonzero(np.isin(types, cut_at)).tolist():
    yield i, tokens[i], int(types[i]) in special


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
  values = metadata.get(_PREFIX + name)
  config_lib.check(
    isinstance(values, list | tuple | np.ndarray)
    and all(isinstance(value, str) for value in values),
    f'{_PREFIX}{name} is missing or not a list of texts',
  )
  assert values is not None
  return [str(value) for value in values]


def _numbers(
  metadata: Mapping[str, Any], name: str, size: int, dtype: type[np.generic]
) -> np.ndarray | None:
  """A number for each token, or None if the file has none."""
  values = metadata.get(_PREFIX + name)
  if values is None:
    return None
  try:
    numbers = np.asarray(values)
  except (ValueError, OverflowError) as error:
    raise config_lib.ConfigError(f'{_PREFIX}{name} is not numbers') from error
  config_lib.check(
    numbers.dtype.kind in ('iu' if dtype is np.int32 else 'iuf'),
    f'{_PREFIX}{name} is not numbers of type {dtype.__name__}',
  )
  config_lib.check(
    numbers.shape == (size,),
    f'{_PREFIX}{name} has shape {numbers.shape} for {size:,} tokens',
  )
  with np.errstate(over='ignore'):
    return numbers.astype(dtype)


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
  return bool(metadata.get(_PREFIX + name, default))


def gguf_metadata(
  made: tokenizer.Tokenizer, vocab_size: int | None = None
) -> dict[str, Any]:
  """The metadata of a file that describe a tokenizer.

  Args:
    made: a byte-level BPE or a SentencePiece model, or one of bytes.
    vocab_size: rows of the token table; those past the tokens get names.

  Raises:
    ConfigError: GGUF has no such tokenizer.
  """
  if isinstance(made, sentencepiece_tokenizer.SentencePiece):
    values = _of_sentencepiece(made)
  else:
    values = _of_byte_pair(made)
  size = len(values['tokens'])
  more = max((vocab_size or size) - size, 0)
  values['tokens'] = [
    *values['tokens'],
    *(f'[PAD{size + i}]' for i in range(more)),
  ]
  pad = lambda array, value: np.concatenate(
    [array, np.full(more, value, array.dtype)]
  )
  unused = sentencepiece_model.UNUSED
  values['token_type'] = pad(values['token_type'].astype(np.int32), unused)
  if 'scores' in values:
    values['scores'] = pad(values['scores'].astype(np.float32), -1e4)
  values |= {
    'bos_token_id': np.uint32(made.bos_id),
    'eos_token_id': np.uint32(made.eos_id),
    'padding_token_id': np.uint32(made.pad_id),
    'add_bos_token': made.adds_bos,
  }
  if made.unk_id is not None:
    values['unknown_token_id'] = np.uint32(made.unk_id)
  if len(made.end_ids) > 1:
    values['eot_token_id'] = np.uint32(made.end_ids[1])
  named = {_PREFIX + name: value for name, value in values.items()}
  if made.chat_template:
    named['tokenizer.chat_template'] = made.chat_template
  return named


def _of_sentencepiece(
  made: sentencepiece_tokenizer.SentencePiece,
) -> dict[str, Any]:
  tokens, scores, types = sentencepiece_model.pieces_of(made)
  proto = sentencepiece_model.parse(made.proto)
  is_bpe = proto.trainer_spec.model_type == sentencepiece_model.BPE
  spec = proto.normalizer_spec
  values = {
    'model': 'llama' if is_bpe else 't5',
    'tokens': [
      token.replace(sentencepiece_model.SPACE, ' ')
      if type_ == sentencepiece_model.USER_DEFINED
      else token
      for token, type_ in zip(tokens, types, strict=True)
    ],
    'scores': scores,
    'token_type': types,
    'add_space_prefix': bool(spec.add_dummy_prefix),
  }
  if not is_bpe:
    values['remove_extra_whitespaces'] = bool(spec.remove_extra_whitespaces)
    if spec.precompiled_charsmap:
      values['precompiled_charsmap'] = np.frombuffer(
        spec.precompiled_charsmap, np.uint8
      )
  return values


def _of_byte_pair(made: tokenizer.Tokenizer) -> dict[str, Any]:
  content = (
    made.content
    if isinstance(made, library_tokenizer.LibraryTokenizer)
    else tokenizer_json.content_of_units(made)
  )
  model = content['model']
  config_lib.check(
    model['type'] == 'BPE', 'GGUF has no unigram model of a tokenizer.json'
  )
  tokens: list[str] = [f'[PAD{i}]' for i in range(made.vocab_size)]
  types = np.full(made.vocab_size, sentencepiece_model.UNUSED, np.int32)
  for token, i in model['vocab'].items():
    tokens[i], types[i] = token, sentencepiece_model.NORMAL
  for added in content.get('added_tokens', []):
    i = added['id']
    tokens[i] = added['content']
    types[i] = (
      sentencepiece_model.CONTROL
      if added['special']
      else sentencepiece_model.USER_DEFINED
    )
  merges = [
    merge if isinstance(merge, str) else ' '.join(merge)
    for merge in model['merges']
  ]
  values = {'tokens': tokens, 'token_type': types}
  if library_tokenizer.is_byte_level(content):
    name = pre_tokenizers.name_of(content)
    return values | {'model': 'gpt2', 'pre': name, 'merges': merges}
  config_lib.check(
    bool(model.get('byte_fallback')),
    'GGUF has no BPE model that is neither byte-level nor falls back to bytes',
  )
  # The order of merges as scores of the pieces that they make.
  ranks: dict[str, int] = {}
  for rank, merge in enumerate(merges):
    ranks.setdefault(merge.replace(' ', ''), rank)
  lowest = len(merges)
  for i, token in enumerate(tokens):
    if library_tokenizer.as_byte(token) is not None:
      types[i] = sentencepiece_model.BYTE
    elif token == model.get('unk_token'):
      types[i] = sentencepiece_model.UNKNOWN
  scores = [-float(ranks.get(token, lowest)) for token in tokens]
  return values | {
    'model': 'llama',
    'scores': np.array(scores, np.float32),
    'add_space_prefix': made.adds_space,
  }
