"""Sources without files of their own: modules and reversed words."""

import sys

import pytest

from gemini_jax import config
from gemini_jax.data import readers, sources


def open_source(spec, **fields):
  return sources.records(spec, config.Data(train=(spec,), **fields))


def test_a_module_that_is_not_python(tmp_path, monkeypatch):
  (tmp_path / 'broken_module.py').write_text('topics = {\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(config.ConfigError, match='is not Python'):
    open_source('python:broken_module')


def test_numbers_of_thousands_of_digits():
  with pytest.raises(config.ConfigError):
    readers.reverse('9' * 5000)
  with pytest.raises(config.ConfigError, match='is not a slice'):
    sources.select(f'[:{"9" * 5000}]', 10)


PAIRS = {'inputs_field': 'inputs', 'targets_field': 'targets'}


def test_reversed_words_are_distinct_and_reversed():
  source = open_source('reverse:20000', **PAIRS)
  records = [source[i] for i in range(len(source))]
  assert len({record['inputs'] for record in records}) == 20000
  lengths = [len(record['inputs']) for record in records]
  assert (min(lengths), max(lengths)) == (5, 30)
  assert all(r['inputs'] == r['targets'][::-1] for r in records)
  train = open_source('reverse:20000#[:90%]', **PAIRS)
  assert len(train) == 18000 and train[7] == records[7]


def test_a_module_is_read_and_not_run(tmp_path, monkeypatch):
  (tmp_path / 'package').mkdir()
  for name in ('__init__', 'texts'):
    (tmp_path / 'package' / f'{name}.py').write_text(
      "topics = {'a': 'A', 'b': 'B'}\nraise SystemExit('it was run')\n"
    )
  monkeypatch.syspath_prepend(str(tmp_path))
  source = open_source('python:package.texts')
  assert [record['text'] for record in source] == ['A', 'B']
  assert 'package' not in sys.modules


def test_pydoc_topics():
  source = open_source('python:pydoc_data.topics')
  assert len(source) > 50
  assert all(isinstance(record['text'], str) for record in source)
