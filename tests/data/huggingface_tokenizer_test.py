"""Tokenizers from Hugging Face and GGUF encode as the library does."""

import json

import numpy as np
import pytest

import byte_pair
from gemini_jax import config
from gemini_jax.data import (
  gguf_tokenizer,
  huggingface_tokenizer,
  sentencepiece_model,
  tokenizer,
  tokenizer_training,
)

TEXTS = (
  *('', '\n', ' leading', 'trailing  ', 'a\n\n  b\tc\r\n', 'the mat sat'),
  *(
    "it's they'LL",
    '12345 1,000.5 ²',
    '漢字 e\u0301 \u200d\u2028\u00a0',
    '😀👍🏽',
  ),
  *('<|im_end|> <think>', 'a\0\x7f\U0010ffff', 'x' * 300, ' ' * 70),
)


@pytest.fixture(scope='module')
def library():
  made = byte_pair.library()
  made.encode_special_tokens = True
  return made


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return byte_pair.make(tmp_path_factory.mktemp('folder'))


def test_ids_are_those_of_the_library(made, library):
  for text in TEXTS:
    ids = library.encode(text, add_special_tokens=False).ids
    assert made.encode(text).tolist() == ids
    assert made.decode(ids) == text
    stream = tokenizer.StreamDecoder(made)
    assert ''.join(map(stream.push, ids)) + stream.flush() == text


def test_roles_are_those_of_the_files(made):
  assert (made.bos_id, made.eos_id, made.pad_id, made.unk_id) == (1, 2, 2, None)
  assert made.end_ids == (2, 0)
  assert not made.adds_bos
  assert made.chat_template == byte_pair.TEMPLATE
  assert made.special_ids == {
    text: i for i, text in enumerate(byte_pair.SPECIALS)
  }
  assert [made.piece(i) for i in range(3)] == [b''] * 3
  assert made.piece(made.vocab_size - 1) == b'<think>'


def through_files(made, path):
  byte_pair.write(path, huggingface_tokenizer.huggingface_files(made))
  return huggingface_tokenizer.from_folder(path)


def through_one_file(made, path):
  made.save(path / 'tokenizer')
  again = tokenizer.load(path / 'tokenizer')
  assert again.fingerprint == made.fingerprint
  return again


def through_gguf(made, path):
  metadata = gguf_tokenizer.gguf_metadata(made, made.vocab_size + 3)
  assert len(metadata['tokenizer.ggml.tokens']) == made.vocab_size + 3
  return gguf_tokenizer.from_gguf(metadata)


@pytest.mark.parametrize('way', [through_files, through_one_file, through_gguf])
@pytest.mark.parametrize(
  'kind', ['library', 'ours', 'bpe', 'unigram', 'bytes', 'added']
)
def test_it_comes_back(kind, way, made, tmp_path):
  before = {
    'library': lambda: made,
    'ours': lambda: tokenizer_training.train(byte_pair.CORPUS, 300),
    'bpe': lambda: byte_pair.sentencepiece_model('bpe'),
    'unigram': lambda: byte_pair.sentencepiece_model(
      'unigram', add_dummy_prefix=False
    ),
    'bytes': tokenizer.Bytes,
    'added': lambda: with_added(tmp_path),
  }[kind]()
  after = way(before, tmp_path)
  for name in ('bos_id', 'eos_id', 'pad_id', 'adds_bos'):
    assert getattr(after, name) == getattr(before, name), name
  # From GGUF also by name, as in llama.cpp.
  assert after.end_ids[: len(before.end_ids)] == before.end_ids
  assert len(after.end_ids) - len(before.end_ids) == (
    kind == 'added' and way is through_gguf
  )
  assert after.chat_template == before.chat_template
  assert after.adds_space == before.adds_space
  for text in TEXTS:
    ids = before.encode(text)
    assert after.encode(text).tolist() == ids.tolist(), text
    assert after.decode(ids) == text
    if before.special_ids:
      chat = f'<s>{text}<|im_end|></s>'
      ids = before.encode_chat(chat).ids
      assert after.encode_chat(chat).ids.tolist() == ids.tolist(), text


def with_added(path):
  """A `.model` beside which a file names more tokens."""
  size = byte_pair.sentencepiece_model('bpe').vocab_size
  added = {
    2: ('</s>', True),
    size: ('<pad>', True),
    size + 1: ('[TOOL]', False),
    size + 3: ('<|im_end|>', True),
  }
  folder = path / 'with_added'
  folder.mkdir()
  byte_pair.write(
    folder,
    {
      'tokenizer.model': byte_pair.sentencepiece_model('bpe').proto,
      'tokenizer_config.json': {
        'added_tokens_decoder': {
          str(i): {'content': text, 'special': special}
          for i, (text, special) in added.items()
        },
        'pad_token': '<pad>',
      },
      'chat_template.jinja': byte_pair.TEMPLATE,
    },
  )
  made = huggingface_tokenizer.from_folder(folder)
  assert (made.vocab_size, made.pad_id) == (size + 4, size)
  assert size + 1 in made.encode('a [TOOL] b').tolist()
  assert size not in made.encode('a <pad> b').tolist()
  assert size in made.encode_chat('a <pad> b').ids.tolist()
  return made


@pytest.mark.parametrize('kind', ['library', 'added'])
def test_added_tokens_past_the_table_are_left_out(kind, made, tmp_path, caplog):
  before = made
  if kind == 'added':
    before = with_added(tmp_path)
    # It writes <|im_end|>, which is one of them.
    before.chat_template = ''
  more, name = (1, '<think>') if kind == 'library' else (4, '<pad>')
  rows = before.vocab_size - more
  after = huggingface_tokenizer.without_added(before, rows, 'PATH')
  (record,) = caplog.records
  assert f'{more - (kind == "added")} added tokens' in record.message
  assert name in record.message
  assert after.vocab_size == rows
  assert (after.pad_id, after.end_ids) == (after.eos_id, before.end_ids)
  assert after.encode(f'the {name}').max() < rows
  for text in ('the cat', 'def f(x):\n'):
    assert after.encode(text).tolist() == before.encode(text).tolist()
  again = huggingface_tokenizer.without_added(after, rows, 'PATH')
  assert again is after


@pytest.mark.parametrize(
  ('more', 'change', 'message'),
  [
    (2, {}, 'PATH: the tokenizer has 287 tokens, the model 285'),
    (1, {'eos_token': '<think>'}, 'eos id 286 is not below 286'),
    (1, {'bos_token': '<think>'}, 'bos id 286 is not below 286'),
    (1, {'unk_token': '<think>'}, 'unk id 286 is not below 286'),
    (1, {'chat_template': 'a<think>'}, "the chat template writes '<think>'"),
  ],
)
def test_tokens_past_the_table_that_are_needed(more, change, message, tmp_path):
  byte_pair.make(tmp_path)
  path = tmp_path / 'tokenizer_config.json'
  byte_pair.write(tmp_path, {path.name: json.loads(path.read_text()) | change})
  made = huggingface_tokenizer.from_folder(tmp_path)
  with pytest.raises(config.ConfigError, match=message):
    huggingface_tokenizer.without_added(made, made.vocab_size - more, 'PATH')


@pytest.mark.parametrize(
  'kind', ['library', 'ours', 'bpe', 'unigram', 'bytes', 'characters']
)
def test_transformers_reads_what_is_written(kind, made, tmp_path):
  transformers = pytest.importorskip(
    'transformers', reason='needs gemini_jax[parity]'
  )
  words = {
    'library': lambda: made,
    'ours': lambda: tokenizer_training.train(byte_pair.CORPUS, 300),
    'bpe': lambda: byte_pair.sentencepiece_model('bpe'),
    'unigram': lambda: byte_pair.sentencepiece_model('unigram'),
    'bytes': tokenizer.Bytes,
    'characters': lambda: tokenizer.Characters(''.join(TEXTS)),
  }[kind]()
  files = huggingface_tokenizer.huggingface_files(words)
  byte_pair.write(tmp_path, files)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  for role in ('bos', 'eos', 'pad'):
    name = f'{role}_token_id'
    assert getattr(theirs, name) == getattr(words, f'{role}_id')
  for text in TEXTS:
    if '<|' not in text:
      ids = theirs(text, add_special_tokens=False).input_ids
      assert ids == words.encode(text).tolist(), text
      assert theirs.decode(ids) == text
  ids = theirs('the cat').input_ids
  assert ids[0] == words.bos_id or not words.adds_bos
  assert len(ids) == words.adds_bos + words.encode('the cat').size


def test_a_conversation_has_special_ids_and_a_message_has_none(made):
  text = '<|im_start|>the <|im_end|><|im_end|>'
  encoded = made.encode_chat(text, quoted=[(16, 26)])
  assert encoded.ids[[0, -1]].tolist() == [1, 2]
  assert not set(encoded.ids[1:-1].tolist()) & {0, 1, 2}
  assert made.decode(encoded.ids) == 'the <|im_end|>'
  whole = made.encode_chat(text).ids.tolist()
  assert whole.count(2) == 2
  assert whole == made._library.encode(text).ids
  for start, stop in encoded.spans.tolist():
    assert 0 <= start < stop <= len(text)


@pytest.mark.parametrize('kind', ['library', 'bpe', 'ours', 'bytes'])
def test_spans_are_the_characters_of_tokens(kind, made):
  words = {
    'library': made,
    'bpe': byte_pair.sentencepiece_model('bpe'),
    'ours': tokenizer_training.train(byte_pair.CORPUS, 300),
    'bytes': tokenizer.Bytes(),
  }[kind]
  text = 'the cat é漢 ▁ sat 😀'
  encoded = words.encode_spans(text)
  assert encoded.ids.tolist() == words.encode(text).tolist()
  for token, (start, stop) in zip(
    *map(np.ndarray.tolist, encoded), strict=True
  ):
    piece = words.piece(token).decode('utf-8', 'ignore').strip()
    assert piece in text[start:stop]
  assert encoded.spans[-1, 1] == len(text)


@pytest.mark.parametrize(('pre', 'ids'), [('llama-bpe', 1), ('gpt-2', 4)])
def test_a_token_that_no_merge_makes(pre, ids, made):
  """Some pre-tokenizers look for whole pieces among the tokens first."""
  metadata = gguf_tokenizer.gguf_metadata(made, made.vocab_size + 1)
  metadata['tokenizer.ggml.tokens'][-1] = 'zqzq'
  metadata['tokenizer.ggml.token_type'][-1] = 1
  metadata['tokenizer.ggml.pre'] = pre
  again = gguf_tokenizer.from_gguf(metadata)
  assert again.encode('zqzq').size == ids
  assert again.adds_bos == made.adds_bos
  del metadata['tokenizer.ggml.add_bos_token']
  again = gguf_tokenizer.from_gguf(metadata)
  assert again.adds_bos == (pre == 'llama-bpe')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model': 'bert'}, "model='bert' is not supported; .* gpt2, llama"),
    ({'pre': 'of-tomorrow'}, "pre='of-tomorrow' is not known; .* llama-bpe"),
    ({'eos_token_id': 10**6}, 'eos_token_id=1000000 is not one of'),
    ({'tokens': None}, 'tokens is missing'),
    ({'tokens': ['a', 'a']}, 'the same token twice'),
    ({'merges': ['ab']}, "merges: 'ab' is not two tokens"),
    ({'merges': ['\u4e00 b']}, 'not a tokenizer.json'),
    ({'token_type': [1]}, r'token_type has shape \(1,\)'),
  ],
)
def test_metadata_that_are_refused(change, message, made):
  metadata = gguf_tokenizer.gguf_metadata(made)
  metadata |= {f'tokenizer.ggml.{key}': value for key, value in change.items()}
  with pytest.raises(config.ConfigError, match=message):
    gguf_tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda values: values.pop('model'), 'an object with a model'),
    (
      lambda values: values['model'].update(type='WordPiece'),
      "'WordPiece'; supp",
    ),
    (lambda values: values.update(decoder=None), r'whose decoder is \[\]'),
    (
      lambda values: values.update(
        decoder={'type': 'WordPiece', 'prefix': '##', 'cleanup': True}
      ),
      'whose decoder is',
    ),
    (
      lambda values: values.update(
        normalizer={
          'type': 'Sequence',
          'normalizers': [
            {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aaa'}
          ]
          * 10,
        }
      ),
      'make a text 1,048,576 times longer',
    ),
    (
      lambda values: values['added_tokens'].append(
        {
          **values['added_tokens'][0],
          'id': 4_000_000_000,
          'content': '<new>',
        }
      ),
      '',
    ),
    (
      lambda values: values['model']['vocab'].update({'zz': 10**9}),
      'ids up to',
    ),
    (
      lambda values: values.update(
        pre_tokenizer={
          'type': 'Split',
          'pattern': {'Regex': '(a+)+$'},
          'behavior': 'Isolated',
          'invert': False,
        }
      ),
      'cannot encode a text: Onig',
    ),
    (
      lambda values: values.update(
        pre_tokenizer={
          'type': 'Split',
          'pattern': {'Regex': '((('},
          'behavior': 'Isolated',
          'invert': False,
        }
      ),
      'not a tokenizer.json',
    ),
  ],
)
def test_a_tokenizer_json_that_is_refused(change, message, library, tmp_path):
  values = json.loads(library.to_str())
  change(values)
  byte_pair.write(
    tmp_path,
    {
      'tokenizer.json': values,
      'tokenizer_config.json': {'eos_token': '<|im_end|>'},
    },
  )
  if not message:
    # The library numbers it anew.
    made = huggingface_tokenizer.from_folder(tmp_path)
    assert made.special_ids['<new>'] == made.vocab_size - 1
    return
  with pytest.raises(config.ConfigError, match=message) as error:
    huggingface_tokenizer.from_folder(tmp_path)
  assert '\n' not in str(error.value)


def test_texts_are_neither_padded_nor_cut_nor_changed(library, tmp_path):
  values = json.loads(library.to_str())
  values['padding'] = {
    'strategy': {'Fixed': 10**9},
    'direction': 'Right',
    'pad_to_multiple_of': None,
    'pad_id': 0,
    'pad_type_id': 0,
    'pad_token': '<|endoftext|>',
  }
  values['truncation'] = {
    'direction': 'Right',
    'max_length': 1,
    'strategy': 'LongestFirst',
    'stride': 0,
  }
  values['model']['dropout'] = 0.5
  byte_pair.write(
    tmp_path,
    {'tokenizer.json': values, 'generation_config.json': {'eos_token_id': 2}},
  )
  made = huggingface_tokenizer.from_folder(tmp_path)
  for text in TEXTS:
    ids = library.encode(text, add_special_tokens=False).ids
    assert made.encode(text).tolist() == ids


def test_a_folder_without_a_tokenizer(tmp_path):
  with pytest.raises(config.ConfigError, match='neither tokenizer'):
    huggingface_tokenizer.from_folder(tmp_path)
  byte_pair.write(tmp_path, {'tokenizer.json': '{'})
  with pytest.raises(config.ConfigError, match='json is not JSON'):
    huggingface_tokenizer.from_folder(tmp_path)


def test_no_token_that_ends_a_text(library, tmp_path):
  byte_pair.write(tmp_path, {'tokenizer.json': library.to_str()})
  with pytest.raises(config.ConfigError, match='no token ends a text'):
    huggingface_tokenizer.from_folder(tmp_path)
  byte_pair.write(tmp_path, {'config.json': {'eos_token_id': 10**7}})
  with pytest.raises(config.ConfigError, match='bos id 10000000 is not below'):
    huggingface_tokenizer.from_folder(tmp_path)


def test_runs_of_spaces_that_are_user_defined():
  """Gemma's files spell runs of spaces as spaces."""
  made = byte_pair.sentencepiece_model(
    'bpe', user_defined_symbols='▁▁,\n', vocab_size=290
  )
  metadata = gguf_tokenizer.gguf_metadata(made)
  assert '  ' in metadata['tokenizer.ggml.tokens']
  again = gguf_tokenizer.from_gguf(metadata)
  types = sentencepiece_model.pieces_of(again).types
  assert (types == sentencepiece_model.USER_DEFINED).sum() == 2
  for text in TEXTS:
    assert again.encode(text).tolist() == made.encode(text).tolist()
