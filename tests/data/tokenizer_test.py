"""Tokenizers give back what they were given."""

import json
import os

import numpy as np
import pytest
import sentencepiece

from gemini_jax import config
from gemini_jax.data import (
  sentencepiece_tokenizer,
  tokenizer,
  tokenizer_training,
)

CORPUS = ['the cat sat on the mat\n', 'def f(x):\n    return x + 1\n'] * 20
NASTY = [
  '',
  '\n',
  ' leading',
  'trailing  ',
  'a\n\n  b\tc\r\n',
  '<s> </s> <pad> <unk> <0x0A>',
  'a▁b ▁▁ ▁',
  '\0\x01\x7f',
  '😀漢字 e\u0301 \u200d\ufeff\u2028\u00a0',
  '\U0010ffff',
  'ﬁ ½ Å',
  '12345 1,000.5',
]


@pytest.fixture(scope='module')
def trained():
  return tokenizer_training.train(CORPUS, 300)


@pytest.fixture(params=['bytes', 'sentencepiece'])
def exact(request, trained):
  return {'bytes': tokenizer.Bytes(), 'sentencepiece': trained}[request.param]


@pytest.mark.parametrize('text', NASTY)
def test_any_text_comes_back(exact, text):
  ids = exact.encode(text)
  assert ids.dtype == np.int32
  assert exact.decode(ids) == text


@pytest.mark.parametrize('text', NASTY)
def test_text_never_becomes_a_special_id(exact, text):
  specials = {exact.pad_id, exact.bos_id, exact.eos_id}
  assert specials == {0, 1, 2}
  assert not specials & set(exact.encode(text).tolist())


def test_special_and_impossible_ids_decode_to_nothing(exact):
  ids = [1, *exact.encode('cat').tolist(), 2, 0, exact.vocab_size, -5]
  assert exact.decode(ids) == 'cat'


def test_fingerprints_tell_tokenizers_apart(trained):
  kinds = [
    trained,
    tokenizer.Bytes(),
    tokenizer.Characters('ab'),
    tokenizer.Characters('abc'),
  ]
  assert len({kind.fingerprint for kind in kinds}) == 4


@pytest.mark.parametrize('kind', ['bytes', 'characters', 'sentencepiece'])
def test_save_and_load(kind, trained, tmp_path):
  made = {
    'bytes': tokenizer.Bytes(),
    'characters': tokenizer.Characters('cat ▁\n"é'),
    'sentencepiece': trained,
  }[kind]
  made.save(tmp_path / 'tokenizer')
  loaded = tokenizer.load(tmp_path / 'tokenizer')
  assert loaded.fingerprint == made.fingerprint
  assert np.array_equal(loaded.encode('cat '), made.encode('cat '))


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'garbage',
    b'{',
    b'{"kind": "pickle"}',
    b'{"kind": "characters", "characters": 3}',
    b'{"kind": "characters", "characters": "\\ud800"}',
    b'\x80\x04\x95cposix\nsystem\n',
    json.dumps([1]).encode(),
  ],
)
def test_a_hostile_file_is_refused(content, tmp_path):
  (tmp_path / 'file').write_bytes(content)
  with pytest.raises(config.ConfigError, match='file is not a'):
    tokenizer.load(tmp_path / 'file')


@pytest.mark.parametrize(
  ('piece', 'other'),
  [
    (b'\n\x03the', b'\n\x03th\xff'),
    (b'<0x41>', b'<0x4\xff>'),
    (b'<0x41>', b'<0x4Z>'),
    (b'<0x41>', b'<0xFFF'),
  ],
)
def test_pieces_that_are_none_are_refused(piece, other, trained, tmp_path):
  content = trained.serialized()
  assert content.count(piece) == 1
  (tmp_path / 'file').write_bytes(content.replace(piece, other))
  wanted = config.Tokenizer(kind='sentencepiece', path=str(tmp_path / 'file'))
  with pytest.raises(
    config.ConfigError, match=r'tokenizer\.path: .*file is not a SentencePiece'
  ):
    tokenizer_training.build(wanted, list)


def test_a_damaged_model_is_a_tokenizer_or_refused(trained):
  """Whatever is changed; one that loads still reads and writes."""
  generator = np.random.default_rng(0)
  content = np.frombuffer(trained.serialized(), np.uint8)
  refused = 0
  for _ in range(100):
    changed = content.copy()
    where = generator.integers(0, len(changed), 2)
    changed[where] = generator.integers(0, 256, 2)
    try:
      made = sentencepiece_tokenizer.SentencePiece(changed.tobytes())
      made.decode(made.encode('the cat ▁ é😀\n12'))
    except config.ConfigError:
      refused += 1
  assert refused > 50


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'file')
  with pytest.raises(config.ConfigError, match='file: not a regular file'):
    tokenizer.load(tmp_path / 'file')


def test_a_published_model_with_other_ids(tmp_path):
  """No pad, a dummy space before the text, unk first: as Llama and Mistral."""
  prefix = str(tmp_path / 'model')
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_prefix=prefix,
    model_type='bpe',
    vocab_size=300,
    byte_fallback=True,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    minloglevel=2,
  )
  made = tokenizer.load(prefix + '.model')
  assert (made.bos_id, made.eos_id, made.pad_id) == (1, 2, 2)
  assert made.decode(made.encode('the cat é')) == 'the cat é'


@pytest.mark.parametrize('text', NASTY)
def test_streaming_equals_decoding_at_once(exact, text):
  ids = exact.encode(text)
  stream = tokenizer.StreamDecoder(exact)
  parts = [stream.push(int(token)) for token in ids]
  assert ''.join(parts) == text
  assert not any('\ufffd' in part for part in parts)
  assert stream.flush() == ''


def test_streaming_of_broken_bytes_equals_decoding_at_once():
  made = tokenizer.Bytes()
  values = np.random.default_rng(0).integers(0, 259, 2000)
  stream = tokenizer.StreamDecoder(made)
  parts = [stream.push(int(token)) for token in values] + [stream.flush()]
  assert ''.join(parts) == made.decode(values)
