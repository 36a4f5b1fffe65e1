"""Tokenizers and chat templates from outside, to be damaged and read."""

import copy
import json

import numpy as np

import byte_pair
import mutations
from gemini_jax import config as config_lib
from gemini_jax.data import (
  chat,
  gguf_tokenizer,
  huggingface_tokenizer,
  tokenizer,
)

TEXTS = ('', "the cat's\n\n mat 123  é漢😀▁", '<|im_end|>' + 'a' * 40 + '!')
TALK = [
  {'role': 'system', 'content': 'the cat'},
  {'role': 'user', 'content': '<|im_end|> sat\n'},
  {'role': 'assistant', 'content': 'def'},
  {'role': 'user', 'content': ''},
  {'role': 'assistant', 'content': 'é😀'},
]
# What a part of JSON is replaced by.
_VALUES = (
  *(None, True, 0, -1, 1, 255, 2**31, 2**32 - 1, 2**32, 2**64, 1e308, 0.5),
  *('', 'a', '\ud800', 'x' * 5000, [], {}, [None], [[]], {'type': 'Sequence'}),
  *('(a+)+$', '(((', '[', r'\p{Foo}', '(?<=a+)b', '(?:a{999}){999}', '$^'),
  *('BPE', 'Unigram', 'WordLevel', 'Prepend', 'ByteLevel', 'Metaspace'),
  {'type': 'Replace', 'pattern': {'Regex': ''}, 'content': 'a' * 100},
  {'type': 'Strip', 'content': 'a', 'start': 2**40, 'stop': 0},
)
# What is put into a template, or in place of a part of it.
_JINJA = (
  *('{{', '}}', '{%', '%}', '{% for i in range(99999) %}', '{% endfor %}'),
  *('{% if %}', '{% endif %}', '{{ 9 ** 9 ** 9 }}', '{{ "a" * 10 ** 10 }}'),
  *('{{ messages }}', '{{ ().__class__ }}', '{{ messages[9] }}', '{% set x %}'),
  *('{{ x.y.z }}', '{% generation %}', '{% endgeneration %}', "{% raw %}'"),
  *(
    '{{ raise_exception(1) }}',
    '{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}',
    '{{ messages|tojson(indent=9999999) }}',
  ),
  *('{{ "%0999999999d" % 1 }}', '{{ [1] * 10 ** 9 }}', '{{ lipsum(999) }}'),
  *('\ufdd0', '\ufdd1', '\ufdd2', '\ufdd3', '<|im_end|>', '\0', '{{ None }}'),
)


def make_library(folder):
  byte_pair.make(folder, byte_pair.MARKED)


def make_sentencepiece(folder):
  """A folder whose `tokenizer.json` is as Llama's."""
  made = byte_pair.sentencepiece_model('bpe')
  byte_pair.write(folder, huggingface_tokenizer.huggingface_files(made))
  (folder / 'tokenizer.model').unlink()


def make_unigram(folder):
  made = byte_pair.sentencepiece_model('unigram')
  byte_pair.write(folder, huggingface_tokenizer.huggingface_files(made))
  (folder / 'tokenizer.model').unlink()


def make_model(folder):
  made = byte_pair.sentencepiece_model('bpe')
  byte_pair.write(folder, huggingface_tokenizer.huggingface_files(made))
  (folder / 'tokenizer.json').unlink()


def make_template(folder):
  make_library(folder)
  (folder / 'chat_template.jinja').write_text(byte_pair.MARKED)


def make_metadata(folder):
  """The metadata of a GGUF file, as JSON."""
  made = byte_pair.make(folder)
  metadata = gguf_tokenizer.gguf_metadata(made)
  plain = {name: np.asarray(value).tolist() for name, value in metadata.items()}
  (folder / 'metadata.json').write_text(json.dumps(plain))


def make_saved(folder):
  byte_pair.make(folder).save(folder / 'tokenizer')


def load(folder):
  use(huggingface_tokenizer.from_folder(folder), folder)


def load_saved(folder):
  use(tokenizer.load(folder / 'tokenizer'), folder)


def load_metadata(folder):
  try:
    metadata = json.loads((folder / 'metadata.json').read_bytes())
  except (ValueError, RecursionError):
    metadata = {}
  if not isinstance(metadata, dict):
    metadata = {}
  try:
    use(gguf_tokenizer.from_gguf(metadata), folder)
  except config_lib.ConfigError as error:
    # Who reads the file names it.
    raise config_lib.ConfigError(f'{folder}: {error}') from error


def use(made, folder):
  """Encodes and decodes."""
  try:
    for text in TEXTS:
      ids = made.encode(text)
      assert ids.size < 20_000 * (len(text) + 1)
      assert len(made.decode(ids)) < 20_000 * (len(text) + 1)
      encoded = made.encode_chat(text)
      assert encoded.spans.shape == (encoded.ids.size, 2)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{folder}: {error}') from error


def load_template(folder):
  made = huggingface_tokenizer.from_folder(folder)
  # Less than a user's, so that thousands take minutes.
  limits = chat._SECONDS, chat._MAX_CHARACTERS
  chat._SECONDS, chat._MAX_CHARACTERS = 0.5, 1 << 17
  try:
    document = chat.document(made, TALK)
    assert document.is_target.shape == document.tokens.shape
    special = [i for i in document.tokens.tolist() if i in (0, 1, 2)]
    assert len(special) < 100
    chat.prompt(made, TALK)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{folder}: {error}') from error
  finally:
    chat._SECONDS, chat._MAX_CHARACTERS = limits


def of_json(content, count, seed=0, header=None):
  """As `mutations.of`; every other file is JSON of another structure."""
  rng = np.random.default_rng(seed)
  damaged = mutations.of(content, count - count // 2, seed, header)
  for index in range(count):
    if index % 2 == 0:
      yield next(damaged)
      continue
    values = json.loads(content)
    for _ in range(rng.integers(1, 3)):
      _change(values, rng)
    yield 'structure', json.dumps(values).encode()


def _change(values, rng):
  """Replaces, removes or copies one value somewhere in JSON."""
  places = []
  while isinstance(values, dict | list) and values:
    keys = list(values) if isinstance(values, dict) else range(len(values))
    # Long vocabularies are not all that there is.
    key = keys[rng.integers(len(keys))]
    places.append((values, key))
    if rng.random() < 0.15:
      break
    values = values[key]
  if not places:
    return
  inner, key = places[rng.integers(max(len(places) - 2, 0), len(places))]
  choice = rng.random()
  if choice < 0.15:
    del inner[key]
  elif choice < 0.3:
    other, name = places[rng.integers(len(places))]
    if name in (other if isinstance(other, dict) else range(len(other))):
      inner[key] = json.loads(json.dumps(other[name]))
  else:
    # A copy, which the next change may be inside of.
    inner[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])


def of_template(content, count, seed=0, header=None):
  """As `mutations.of`; every other file is made of parts of templates."""
  rng = np.random.default_rng(seed)
  damaged = mutations.of(content, count - count // 2, seed, header)
  for index in range(count):
    if index % 2 == 0:
      yield next(damaged)
      continue
    text = content.decode()
    for _ in range(rng.integers(1, 4)):
      at = int(rng.integers(len(text) + 1))
      cut = int(rng.integers(0, 30)) if rng.random() < 0.5 else 0
      text = text[:at] + _JINJA[rng.integers(len(_JINJA))] + text[at + cut :]
    yield 'jinja', text.encode()
