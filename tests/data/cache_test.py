"""A tokenized source on disk is what was tokenized, or is built again."""

import errno
import json
import os
import pathlib
import shutil
from concurrent import futures

import numpy as np
import pytest

from gemini_jax import config
from gemini_jax.data import cache, tokenizer, transforms, unusable

TEXTS = [('one',), ('twenty-two',), ('drei',)]


class Reader:
  """Gives TEXTS and counts how often it is asked."""

  def __init__(self):
    self.calls = 0

  def __call__(self, tally):
    self.calls += 1
    tally.leave_out(unusable.UnusableError('bad', 'abc'), 4, count=2)
    examples = [
      transforms.Example(7 * i, (text,)) for i, text in enumerate(TEXTS)
    ]
    return iter(examples), 'a note'


def decoded(corpus):
  made = tokenizer.Bytes()
  bounds = zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
  return [(made.decode(corpus.tokens[a:b]),) for a, b in bounds]


def test_a_corpus_is_built_once_and_read_back(tmp_path):
  reader = Reader()
  for _ in range(2):
    corpus = cache.open_or_build(tmp_path / 'key', reader, tokenizer.Bytes())
    assert decoded(corpus) == TEXTS
    assert corpus.tokens.dtype == np.uint16
    assert corpus.sizes.tolist() == [3, 10, 4]
    assert corpus.origins.tolist() == [0, 7, 14]
    assert corpus.tally.unusable == {'bad': 2} and corpus.note == 'a note'
    assert corpus.tally.shown == ['record 4: bad: abc']
  assert reader.calls == 1
  assert [path.name for path in tmp_path.iterdir()] == ['key']


def test_a_text_longer_than_the_buffer(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, '_BUFFER_TOKENS', 4)
  corpus = cache.open_or_build(tmp_path / 'key', Reader(), tokenizer.Bytes())
  assert decoded(corpus) == TEXTS


def truncate(path):
  file = path / 'tokens.bin'
  file.write_bytes(file.read_bytes()[:-2])


def flip(path):
  file = path / 'tokens.bin'
  content = bytearray(file.read_bytes())
  content[5] ^= 1
  file.write_bytes(content)


def lose(path):
  (path / 'offsets.bin').unlink()


def spoil(path):
  (path / 'meta.json').write_text('{')


def strip(path):
  (path / 'meta.json').write_text(json.dumps({}))


def nest(path):
  (path / 'meta.json').write_text('[' * 100_000)


def edit(**fields):
  def damage(path):
    file = path / 'meta.json'
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields))

  return damage


def replace(path):
  shutil.rmtree(path)
  path.write_text('a file')


def link(path):
  shutil.rmtree(path)
  path.symlink_to('nowhere')


DAMAGES = {
  **{f.__name__: f for f in (truncate, flip, lose, spoil, strip, nest)},
  **{f.__name__: f for f in (replace, link)},
  'another type': edit(dtype='uint32'),
  'no type': edit(dtype=7),
  'no counts': edit(unusable=[1]),
  'another note': edit(note=None),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_corpus_is_built_again(damage, tmp_path):
  reader, path = Reader(), tmp_path / 'key'
  digest = cache.open_or_build(path, reader, tokenizer.Bytes()).digest
  damage(path)
  corpus = cache.open_or_build(path, reader, tokenizer.Bytes())
  assert reader.calls == 2
  assert decoded(corpus) == TEXTS and corpus.digest == digest
  assert cache.open_or_build(path, reader, tokenizer.Bytes()).note == 'a note'
  assert reader.calls == 2


def test_the_digest_is_that_of_earlier_versions(tmp_path):
  """A checkpoint holds it."""
  corpus = cache.open_or_build(tmp_path / 'key', Reader(), tokenizer.Bytes())
  assert corpus.digest == '6768c7e9ac03c9b4270dcfb8176144e1'


def test_a_full_disk_is_told(tmp_path, monkeypatch):
  def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  with pytest.raises(config.ConfigError, match=r'data\.cache_dir=.*No space'):
    cache.open_or_build(tmp_path / 'key', Reader(), tokenizer.Bytes())
  assert not list(tmp_path.iterdir())


def test_a_failed_build_leaves_nothing(tmp_path):
  def fail(tally):
    raise config.ConfigError('unreadable')

  with pytest.raises(config.ConfigError, match='unreadable'):
    cache.open_or_build(tmp_path / 'key', fail, tokenizer.Bytes())
  assert not list(tmp_path.iterdir())


def build(path):
  corpus = cache.open_or_build(path, Reader(), tokenizer.Bytes())
  return decoded(corpus)


def test_many_build_at_once(tmp_path):
  with futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(build, [tmp_path / 'key'] * 8))
  assert results == [TEXTS] * 8
  assert [path.name for path in tmp_path.iterdir()] == ['key']


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(config.ConfigError, match=r'data\.cache_dir='):
    cache.open_or_build(tmp_path / 'file/key', Reader(), tokenizer.Bytes())


def test_the_folder_follows_config_and_environment(monkeypatch, tmp_path):
  assert cache.folder(config.Data(cache_dir='/a')) == pathlib.Path('/a')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  expected = tmp_path / 'gemini_jax' / 'tokens'
  assert cache.folder(config.Data()) == expected
  monkeypatch.setenv('HOME', '/h')
  assert cache.folder(config.Data(cache_dir='~/a')) == pathlib.Path('/h/a')


def test_large_vocabularies_take_wider_tokens(tmp_path):
  class Wide(tokenizer.Bytes):
    vocab_size = (1 << 16) + 1

  corpus = cache.open_or_build(tmp_path / 'key', Reader(), Wide())
  assert corpus.tokens.dtype == np.uint32 and decoded(corpus) == TEXTS


def test_placeholders_take_wider_tokens(tmp_path):
  def read(tally):
    del tally
    return [
      transforms.Example(0, ((transforms.Slots('image', 2),), ('a',)))
    ], ''

  corpus = cache.open_or_build(
    tmp_path / 'key', read, tokenizer.Bytes(), {'image': 1 << 16}
  )
  assert np.count_nonzero(corpus.tokens == 1 << 16) == 2
