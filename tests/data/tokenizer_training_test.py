"""Training tokenizers, and those that a config asks for."""

import numpy as np
import pytest

import byte_pair
from gemini_jax import config
from gemini_jax.data import tokenizer, tokenizer_training
from gemini_jax.plan import plan

CORPUS = ['the cat sat on the mat\n', 'def f(x):\n    return x + 1\n'] * 20


@pytest.fixture(scope='module')
def trained():
  return tokenizer_training.train(CORPUS, 300)


def test_training_is_deterministic_and_silent(trained, capfd):
  again = tokenizer_training.train(CORPUS, 300)
  assert again.fingerprint == trained.fingerprint
  assert capfd.readouterr().err == ''


def test_pieces_are_worth_more_than_bytes(trained):
  text = CORPUS[0]
  assert len(trained.encode(text)) < 0.8 * len(text)


def test_characters_count_what_they_do_not_know():
  made = tokenizer_training.build(
    config.Tokenizer(kind='characters'), lambda: ['abc']
  )
  assert made.vocab_size == 4 + 3
  assert made.decode(made.encode('cab')) == 'cab'
  ids = made.encode('az😀')
  assert np.count_nonzero(ids == made.unk_id) == 2
  assert made.decode(ids) == 'a\ufffd\ufffd'


def test_the_kind_of_a_file_is_the_kind_asked_for(tmp_path):
  path = str(tmp_path / 'file')
  tokenizer.Characters('ab').save(path)
  for kind, message in (
    ('sentencepiece', 'file is not a SentencePiece model'),
    ('bytes', "file' is for tokenizer.kind=sentencepiece and huggingface, not"),
  ):
    with pytest.raises(config.ConfigError, match=message):
      tokenizer_training.build(config.Tokenizer(kind=kind, path=path), list)


def test_an_error_of_the_texts_passes_through_training():
  def texts():
    yield CORPUS[0]
    raise config.ConfigError('a.txt is not UTF-8')

  with pytest.raises(config.ConfigError, match=r'^a\.txt is not UTF-8$'):
    tokenizer_training.train(texts(), 300)


def test_a_missing_file_is_named(tmp_path):
  wanted = config.Tokenizer(kind='sentencepiece', path=str(tmp_path / 'no'))
  with pytest.raises(config.ConfigError, match=r'tokenizer\.path: .*no: No su'):
    tokenizer_training.build(wanted, list)


@pytest.mark.parametrize(
  ('size', 'message'),
  [
    (30_000, r'vocab_size=30000 is too large .* at most \d+'),
    (100, r'vocab_size=100 is too small .* at least \d+'),
  ],
)
def test_a_vocabulary_that_does_not_fit(size, message):
  with pytest.raises(config.ConfigError, match=message):
    tokenizer_training.train(CORPUS, size)


def test_a_run_takes_the_pieces_that_there_are():
  wanted = config.Tokenizer(kind='sentencepiece', vocab_size=30_000)
  made = tokenizer_training.build(wanted, lambda: CORPUS)
  assert 256 < made.vocab_size < 30_000


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
  built = tokenizer_training.build(options, list)
  assert built.fingerprint == trained.fingerprint


def test_a_pretrained_tokenizer_of_a_folder_or_a_run(tmp_path):
  made = byte_pair.make(tmp_path)
  made.save(tmp_path / 'saved')
  for path in (tmp_path, tmp_path / 'saved'):
    wanted = config.Tokenizer(kind='huggingface', path=str(path))
    built = tokenizer_training.build(wanted, list)
    assert built.fingerprint == made.fingerprint
    values = config.Config(tokenizer=wanted)
    resolved = plan.with_vocab(values, tmp_path / 'none', [])
    assert resolved.model.text_vocab_size == made.vocab_size
  for path, message in (
    (None, r'needs tokenizer\.path, a folder with .* or set train\.init_from'),
    (str(tmp_path / 'no'), r'tokenizer\.path: .*no: No such file'),
    (str(tmp_path.parent), r'tokenizer\.path: .* holds no tokenizer'),
  ):
    wanted = config.Tokenizer(kind='huggingface', path=path)
    with pytest.raises(config.ConfigError, match=message):
      tokenizer_training.build(wanted, list)
