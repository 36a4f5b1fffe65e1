"""Tokenizers from and to folders of Hugging Face: `tokenizer.json` or `.model`.

`tokenizer_config.json` names bos, eos and pad and holds the chat template, or
`chat_template.jinja` does; `generation_config.json` has the ids that end texts.
"""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import (
  library_tokenizer,
  sentencepiece_model,
  sentencepiece_tokenizer,
  token_roles,
  tokenizer,
  tokenizer_json,
)

_MAX_BYTES = 1 << 27


def from_folder(path: str | os.PathLike) -> tokenizer.Tokenizer:
  """The tokenizer of a folder with `tokenizer.json` or `tokenizer.model`.

  Raises:
    ConfigError: there is neither, or a file is damaged or not supported.
  """
  folder = pathlib.Path(path)
  files = {
    name: _read_json(folder / name)
    for name in (
      *('tokenizer_config.json', 'special_tokens_map.json'),
      *('generation_config.json', 'config.json'),
    )
  }
  named = files['special_tokens_map.json'] | files['tokenizer_config.json']
  # A model of several media has the ids of its text model in a section.
  of_model = files['config.json']
  if isinstance(inner := of_model.get('text_config'), dict):
    of_model = inner | of_model
  generation = files['generation_config.json']
  template = _template(folder, named)
  model, library = folder / 'tokenizer.model', folder / 'tokenizer.json'
  if os.path.lexists(library):
    return _from_library(
      library, _read_json(library), named, (generation, of_model), template
    )
  config_lib.check(
    os.path.lexists(model),
    f'{folder} holds no tokenizer: neither tokenizer.json nor tokenizer.model',
  )
  content = _read(model)
  try:
    return sentencepiece_model.from_files(
      content, named, (generation, of_model), template
    )
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{model} is {error}') from error


def without_added(
  made: tokenizer.Tokenizer, num_rows: int, where: str
) -> tokenizer.Tokenizer:
  """A tokenizer without the added tokens that the token table has no row for.

  Gemma 3 1B has such a token, for pictures, which this model does not read;
  so have fine-tunes to which a token for padding was added. Padding is eos
  where its own token is dropped.

  Args:
    made: of a published model.
    num_rows: of its token table.
    where: its path, for messages.

  Raises:
    ConfigError: an ordinary token has no row, or one that begins or ends a
      text or that the chat template writes.
  """
  if made.vocab_size <= num_rows:
    return made
  roles = token_roles.Roles(
    bos_id=made.bos_id,
    eos_id=made.eos_id,
    pad_id=made.pad_id if made.pad_id < num_rows else made.eos_id,
    unk_id=made.unk_id,
    end_ids=made.end_ids,
    adds_bos=made.adds_bos,
    chat_template=made.chat_template,
  )
  less, dropped = made, []
  try:
    if isinstance(made, library_tokenizer.LibraryTokenizer):
      content, dropped = made.split_added(num_rows)
      less = library_tokenizer.LibraryTokenizer(content, roles)
    elif isinstance(made, sentencepiece_tokenizer.SentencePiece):
      proto, dropped = sentencepiece_model.split_added(made, num_rows)
      less = sentencepiece_tokenizer.SentencePiece(proto, roles)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(
      f'{where}: the token table has {num_rows} rows: {error}'
    ) from error
  config_lib.check(
    less.vocab_size <= num_rows,
    f'{where}: the tokenizer has {made.vocab_size} tokens, the model '
    f'{num_rows}',
  )
  for token in dropped:
    config_lib.check(
      token not in made.chat_template,
      f'{where}: the chat template writes {token!r:.80}, for which the token '
      f'table of {num_rows} rows has none',
    )
  logging.warning(
    '%s: %d added tokens have no row in the token table and are left out: %s%s',
    where,
    len(dropped),
    ', '.join(f'{token!r:.80}' for token in dropped[:5]),
    ', ...' if len(dropped) > 5 else '',
  )
  return less


def huggingface_files(made: tokenizer.Tokenizer) -> dict[str, bytes]:
  """The files that make a tokenizer in a folder of Hugging Face, by name."""
  content, texts = _library_content(made)
  named: dict[str, Any] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'add_bos_token': made.adds_bos,
  }
  for role in token_roles.NAMES:
    token = texts.get(getattr(made, f'{role}_id'))
    if token is not None:
      named[f'{role}_token'] = token
  if made.chat_template:
    named['chat_template'] = made.chat_template
  ends = list(made.end_ids)
  generation = {
    'bos_token_id': made.bos_id,
    'eos_token_id': ends if len(ends) > 1 else ends[0],
    'pad_token_id': made.pad_id,
  }
  files = {
    'tokenizer.json': library_tokenizer.to_json(content),
    'tokenizer_config.json': library_tokenizer.to_json(named),
    'generation_config.json': library_tokenizer.to_json(generation),
  }
  if isinstance(made, sentencepiece_tokenizer.SentencePiece):
    files['tokenizer.model'] = made.proto
  return files


def _library_content(
  made: tokenizer.Tokenizer,
) -> tuple[dict[str, Any], dict[int | None, str]]:
  """The content of a `tokenizer.json`, and the texts of its added tokens."""
  if isinstance(made, library_tokenizer.LibraryTokenizer):
    content = made.content
  elif isinstance(made, sentencepiece_tokenizer.SentencePiece):
    content = sentencepiece_model.library_content(made)
  else:
    content = tokenizer_json.content_of_units(made)
  added = content.get('added_tokens', [])
  return content, {token['id']: token['content'] for token in added}


def _from_library(
  path: pathlib.Path,
  content: dict[str, Any],
  named: Mapping[str, Any],
  models: tuple[Mapping[str, Any], Mapping[str, Any]],
  template: str,
) -> tokenizer.Tokenizer:
  try:
    content = library_tokenizer.checked(content)
    library = library_tokenizer.load_library(content)
    with library_tokenizer.library_errors('not a tokenizer.json'):
      ids = library.get_vocab(with_added_tokens=True)
      begins = library.encode('', add_special_tokens=True).ids[:1]
    roles = token_roles.from_files(named, models, ids.get, template)
    adds_bos = named.get('add_bos_token')
    if type(adds_bos) is not bool:
      adds_bos = begins == [roles.bos_id]
    return library_tokenizer.LibraryTokenizer(
      content, dataclasses.replace(roles, adds_bos=adds_bos)
    )
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{path}: {error}') from error


def _template(folder: pathlib.Path, named: Mapping[str, Any]) -> str:
  """The chat template of a folder; '' if it has none."""
  path = folder / 'chat_template.jinja'
  if os.path.lexists(path):
    try:
      return _read(path).decode()
    except UnicodeError as error:
      raise config_lib.ConfigError(f'{path} is not UTF-8') from error
  template = named.get('chat_template') or ''
  if isinstance(template, list):
    by_name = {
      entry.get('name'): entry.get('template')
      for entry in template
      if isinstance(entry, dict) and isinstance(entry.get('name'), str)
    }
    template = by_name.get('default') or ''
  config_lib.check(
    isinstance(template, str),
    f'{folder / "tokenizer_config.json"}: chat_template is not text',
  )
  return template


def _read(path: pathlib.Path) -> bytes:
  try:
    return host.read_file(path, _MAX_BYTES)
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file of JSON; empty if there is no file."""
  if not os.path.lexists(path):
    return {}
  try:
    values = json.loads(_read(path))
  except config_lib.ConfigError:
    raise
  except (ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{path} is not JSON: {error}') from error
  config_lib.check(isinstance(values, dict), f'{path} is not a JSON object')
  return values
