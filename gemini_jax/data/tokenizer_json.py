"""The content of a new `tokenizer.json`."""

from collections.abc import Iterable, Mapping
from typing import Any

from gemini_jax.data import tokenizer


def _byte_alphabet() -> dict[str, int]:
  """GPT-2's characters for bytes: printable ones stand for themselves."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  characters = printable + [256 + i for i in range(len(others))]
  return {
    chr(character): byte
    for character, byte in zip(characters, printable + others, strict=True)
  }


BYTE_OF = _byte_alphabet()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def new_content(
  model: Mapping[str, Any],
  added: Iterable[tuple[int, str, bool]],
  bos: tuple[int, str] | None,
  normalizer: Mapping[str, Any] | None = None,
  pre_tokenizer: Mapping[str, Any] | None = None,
  decoder: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The content of a new `tokenizer.json`.

  Args:
    model: its section `model`.
    added: id, text, and whether it is special, of the added tokens.
    bos: id and text of the token that begins a text; None if none does.
    normalizer: section of that name.
    pre_tokenizer: section of that name.
    decoder: section of that name.
  """
  flags = dict.fromkeys(
    ('single_word', 'lstrip', 'rstrip', 'normalized'), False
  )
  piece = lambda name, part: {'Sequence': {'id': name, 'type_id': part}}
  begins = []
  if bos is not None:
    begins = [{'SpecialToken': {'id': bos[1], 'type_id': 0}}]
  specials = (
    {bos[1]: {'id': bos[1], 'ids': [bos[0]], 'tokens': [bos[1]]}} if bos else {}
  )
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {'id': i, 'content': text, **flags, 'special': special}
      for i, text, special in added
    ],
    'normalizer': normalizer,
    'pre_tokenizer': pre_tokenizer,
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': [*begins, piece('A', 0)],
      'pair': [*begins, piece('A', 0), piece('B', 1)],
      'special_tokens': specials,
    },
    'decoder': decoder,
    'model': model,
  }


def content_of_units(made: tokenizer.Tokenizer) -> dict[str, Any]:
  """The content of a `tokenizer.json` for bytes or characters."""
  names = {made.pad_id: '<pad>', made.bos_id: '<s>', made.eos_id: '</s>'}
  model: dict[str, Any] = {'type': 'BPE', 'merges': []}
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': False,
    'use_regex': False,
  }
  if made.unk_id is None:
    spell = lambda piece: CHARACTER_OF[piece[0]]
    cut, decoder = byte_level, byte_level
  else:
    names |= {made.unk_id: '<unk>'}
    model |= {'unk_token': '<unk>', 'fuse_unk': False}
    spell = lambda piece: piece.decode()
    cut, decoder = None, {'type': 'Fuse'}
  model['vocab'] = {
    names[i] if i in names else spell(piece): i
    for i, piece in enumerate(made.pieces)
  }
  return new_content(
    model,
    [(i, name, True) for i, name in sorted(names.items())],
    (made.bos_id, names[made.bos_id]) if made.adds_bos else None,
    pre_tokenizer=cut,
    decoder=decoder,
  )
