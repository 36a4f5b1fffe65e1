"""Files of text and of JSON lines: what is read, what is refused."""

import gzip
import json

import pytest

from gemini_jax import config
from gemini_jax.data import examples, sources, unusable

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
    (gzip.compress(LINES.encode(), mtime=0), 'is gzip, not text; gunzip it'),
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
    (gzip.compress(b'abc', mtime=0), 'is gzip, not text; gunzip it'),
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


def test_text_files_are_records_in_the_order_of_their_names(tmp_path):
  for name, text in (('b', 'zwei\r\n'), ('a', 'één')):
    (tmp_path / f'{name}.txt').write_bytes(text.encode())
  source = open_source(f'text:{tmp_path}/*.txt')
  assert [record['text'] for record in source] == ['één', 'zwei\r\n']
  assert len(open_source(f'text:{tmp_path}/*.txt#[1:]')) == 1


def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'good\xff')
  with pytest.raises(
    config.ConfigError, match=r'a\.txt is not UTF-8 at byte 4'
  ):
    open_source(f'text:{tmp_path}/a.txt')[0]


def test_bad_lines_are_counted_by_reason(tmp_path):
  lines = [
    b'{"text": "good"}',
    b'{"text": "bad"',
    b'',
    b'[1]',
    b'{"txt": 1}',
    b'{"text": 1}',
    b'{"text": ""}',
    b'{"text": "\\ud800"}',
    b'{"text": "\xff"}',
    b'{"text": "also good"}',
  ]
  (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(lines))
  source = open_source(f'jsonl:{tmp_path}/a.jsonl')
  tally = unusable.Tally()
  found = list(examples.texts(source, config.Data(), tally))
  assert found == [('good',), ('also good',)] and tally.usable == 2
  assert tally.unusable == {
    'invalid JSON': 2,
    'not a JSON object': 1,
    "no field 'text'": 1,
    "'text' is not text": 1,
    "'text' is empty": 1,
    "'text' is not Unicode": 1,
  }


def test_a_changed_file_has_another_fingerprint(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one')
  before = open_source(f'text:{path}').fingerprint
  assert open_source(f'text:{path}').fingerprint == before
  path.write_text('three')
  assert open_source(f'text:{path}').fingerprint != before
