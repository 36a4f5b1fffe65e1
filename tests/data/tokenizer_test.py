"""Tokenizers give back the text that they were given, and say what is wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from gemini_jax import config
from gemini_jax.data import tokenizer

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
  return tokenizer.train(CORPUS, 300)


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


def test_training_is_deterministic_and_silent(trained, capfd):
  again = tokenizer.train(CORPUS, 300)
  assert again.fingerprint == trained.fingerprint
  assert capfd.readouterr().err == ''


def test_pieces_are_worth_more_than_bytes(trained):
  text = CORPUS[0]
  assert len(trained.encode(text)) < 0.8 * len(text)


def test_characters_count_what_they_do_not_know():
  made = tokenizer.build(config.Tokenizer(kind='characters'), lambda: ['abc'])
  assert made.vocab_size == 4 + 3
  assert made.decode(made.encode('cab')) == 'cab'
  ids = made.encode('az😀')
  assert np.count_nonzero(ids == made.unk_id) == 2
  assert made.decode(ids) == 'a\ufffd\ufffd'


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
    tokenizer.build(wanted, list)


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
      made = tokenizer.SentencePiece(changed.tobytes())
      made.decode(made.encode('the cat ▁ é😀\n12'))
    except config.ConfigError:
      refused += 1
  assert refused > 50


def test_the_kind_of_a_file_is_the_kind_asked_for(tmp_path):
  path = str(tmp_path / 'file')
  tokenizer.Characters('ab').save(path)
  for kind, message in (
    ('sentencepiece', 'file is not a SentencePiece model'),
    ('bytes', "file' is for tokenizer.kind=sentencepiece, not bytes"),
  ):
    with pytest.raises(config.ConfigError, match=message):
      tokenizer.build(config.Tokenizer(kind=kind, path=path), list)


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'file')
  with pytest.raises(config.ConfigError, match='file: not a regular file'):
    tokenizer.load(tmp_path / 'file')


def test_an_error_of_the_texts_passes_through_training():
  def texts():
    yield CORPUS[0]
    raise config.ConfigError('a.txt is not UTF-8')

  with pytest.raises(config.ConfigError, match=r'^a\.txt is not UTF-8$'):
    tokenizer.train(texts(), 300)


def test_a_missing_file_is_named(tmp_path):
  wanted = config.Tokenizer(kind='sentencepiece', path=str(tmp_path / 'no'))
  with pytest.raises(config.ConfigError, match=r'tokenizer\.path: .*no: No su'):
    tokenizer.build(wanted, list)


@pytest.mark.parametrize(
  ('size', 'message'),
  [
    (30_000, r'vocab_size=30000 is too large .* at most \d+'),
    (100, r'vocab_size=100 is too small .* at least \d+'),
  ],
)
def test_a_vocabulary_that_does_not_fit(size, message):
  with pytest.raises(config.ConfigError, match=message):
    tokenizer.train(CORPUS, size)


def test_a_run_takes_the_pieces_that_there_are():
  wanted = config.Tokenizer(kind='sentencepiece', vocab_size=30_000)
  made = tokenizer.build(wanted, lambda: CORPUS)
  assert 256 < made.vocab_size < 30_000


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


def test_the_command_trains_a_model(tmp_path):
  (tmp_path / 'a.txt').write_text(''.join(CORPUS))
  command = [sys.executable, '-m', 'gemini_jax.data.tokenizer']
  command += ['--input', tmp_path / 'a.txt', '--output', tmp_path / 'm']
  done = subprocess.run(
    [*command, '--vocab_size', '300'], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert '300 pieces' in done.stdout and 'bytes per token' in done.stdout
  assert tokenizer.load(tmp_path / 'm').vocab_size == 300
  assert tokenizer.main([*map(str, command[3:]), '--vocab_size', '9999']) == 2


def test_only_a_path_of_the_config_is_expanded(tmp_path, monkeypatch, trained):
  """A folder of a run may be called `~`; another one in the home is not it."""
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  for folder in ('~', 'home'):
    (tmp_path / folder).mkdir()
  tokenizer.Bytes().save(tmp_path / '~' / 'tokenizer')
  trained.save(tmp_path / 'home' / 'tokenizer')
  loaded = tokenizer.load('~/tokenizer')
  assert loaded.fingerprint == tokenizer.Bytes().fingerprint
  options = config.Tokenizer('sentencepiece', path='~/tokenizer')
  built = tokenizer.build(options, list)
  assert built.fingerprint == trained.fingerprint
