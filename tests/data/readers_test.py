"""Files that are not what their kind says, and names of any characters."""

import gzip
import json

import pytest

from gemini_jax import config
from gemini_jax.data import readers, sources

RECORDS = [{'text': f'a, {i}'} for i in range(50)]
LINES = ''.join(f'{json.dumps(record)}\n' for record in RECORDS)


def open_source(spec):
  return sources.records(spec, config.Data(train=(spec,)))


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (json.dumps(RECORDS, indent=2), "is a JSON array, .* jq -c '.\\[\\]'"),
    (json.dumps(RECORDS), 'is a JSON array'),
    ('\ufeff\n' + json.dumps(RECORDS), 'is a JSON array'),
    (gzip.compress(LINES.encode()), 'is gzip, not text; gunzip it'),
    (b'PK\x03\x04' + bytes(30), 'is a zip archive'),
    (b'PAR1' + bytes(30) + b'PAR1', 'is Parquet'),
    (LINES.encode('utf-16'), 'is UTF-16, .* iconv'),
    (LINES.encode('utf-32'), 'is UTF-32'),
    ('text,label\n"a, b",1\n', 'looks like CSV'),
    ('text\tlabel\n"a\t1\n', 'looks like TSV'),
  ],
)
def test_what_is_no_lines_of_json_is_named(content, message, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  with pytest.raises(config.ConfigError, match=message) as error:
    open_source(f'jsonl:{path}')
  assert str(error.value).startswith(f'data.train[0]=jsonl:{path}: {path} ')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (gzip.compress(b'abc'), 'is gzip, not text; gunzip it'),
    ('abc'.encode('utf-16'), 'is UTF-16'),
  ],
)
def test_what_is_no_text_is_named(content, message, tmp_path):
  (tmp_path / 'a.txt').write_bytes(content)
  with pytest.raises(config.ConfigError, match=message):
    open_source(f'text:{tmp_path}/a.txt')[0]


def test_a_byte_order_mark_is_no_text(tmp_path):
  (tmp_path / 'a').write_text('\ufeffa\ufeff', 'utf-8')
  assert open_source(f'text:{tmp_path}/a')[0] == {'text': 'a\ufeff'}
  (tmp_path / 'b').write_text(f'\ufeff{LINES}', 'utf-8')
  source = open_source(f'jsonl:{tmp_path}/b')
  assert [source[i] for i in range(len(source))] == RECORDS


@pytest.mark.parametrize(
  ('name', 'spec', 'expected'),
  [
    ('a#b.txt', 'a#b.txt', 1),
    ('a#b.txt', 'a#b.txt#[:1]', 1),
    ('a#b/x.txt', 'a#b/*.txt', 1),
    ('lr=[1e-3]/x.txt', 'lr=[1e-3]/x.txt', 1),
    ('lr=[1e-3]/x.txt', 'lr=[1e-3]/*.txt', 1),
    ('lr=[1e-3]/x.txt', 'lr=[1e-3]/*#[:1]', 1),
    ('x?[0].txt', 'x?[0].txt', 1),
    ('x1.txt', 'x[0-9].txt', 1),
  ],
)
def test_names_may_hold_what_patterns_are_made_of(
  name, spec, expected, tmp_path, monkeypatch
):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(name)
  (tmp_path / 'lr=1').mkdir()
  (tmp_path / 'lr=1/other.txt').write_text('other')
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for folder in (f'{tmp_path}/', '', '~/'):
    source = open_source(f'text:{folder}{spec}')
    assert len(source) == expected and source[0] == {'text': name}


def test_lines_whose_file_went_away_are_told(tmp_path):
  (tmp_path / 'a').write_text(LINES)
  source = open_source(f'jsonl:{tmp_path}/a')
  (tmp_path / 'a').unlink()
  with pytest.raises(config.ConfigError, match=r'a: No such file'):
    source[3]


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
