"""Specs select the records they name, or say what is wrong with them."""

import pathlib
import sys

import pytest

from gemini_jax import config
from gemini_jax.data import readers, sources

PREPARED = pathlib.Path(__file__).parents[2] / '../shared/tfds'
needs_prepared = pytest.mark.skipif(
  not PREPARED.is_dir(), reason='no prepared data sets in ../shared/tfds'
)
PAIRS = {'inputs_field': 'inputs', 'targets_field': 'targets'}


def open_source(spec, **fields):
  return sources.records(spec, config.Data(train=(spec,), **fields))


@pytest.mark.parametrize(
  ('selection', 'expected'),
  [
    ('', range(10)),
    ('[:3]', range(3)),
    ('[:90%]', range(9)),
    ('[90%:]', [9]),
    ('[-2:]', [8, 9]),
    ('[1::4]', [1, 5, 9]),
    ('[!1::4]', [0, 2, 3, 4, 6, 7, 8]),
    ('[!:]', None),
    ('[20:]', None),
  ],
)
def test_slices(selection, expected):
  if expected is None:
    with pytest.raises(config.ConfigError, match='selects none of 10'):
      sources.select(selection, 10)
  else:
    assert sources.select(selection, 10).tolist() == list(expected)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('txt:a', "'txt' is not a kind of source; did you mean text?"),
    ('zzz', "'zzz' is not a kind of source; accepted: digits"),
    ('text:', 'write text:WHERE'),
    ('text:no/such/file.txt', "no file matches 'no/such/file.txt'"),
    ('python:os', 'os has no literal topics'),
    ('python:no.such.module', "no Python source of a module 'no.such.module'"),
    ('reverse:many', 'write a number of pairs from 1 to'),
    ('reverse:10#90%', "'90%' is not a slice; write [a:b]"),
    ('reverse:10#[10:]', '[10:] selects none of 10 records'),
  ],
)
def test_a_wrong_spec_is_explained(spec, message):
  fields = PAIRS if spec.startswith('reverse') else {}
  with pytest.raises(config.ConfigError) as error:
    open_source(spec, **fields)
  assert str(error.value).startswith(f'data.train[0]={spec}: ')
  assert message in str(error.value)


def test_a_wrong_field_names_those_there_are():
  with pytest.raises(
    config.ConfigError, match=r"data\.text_field='text'.*inputs, targets"
  ):
    open_source('reverse:10')


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
  tally = readers.Tally()
  found = list(sources.texts(source, config.Data(), tally))
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


def test_slices_have_fingerprints_of_their_own():
  whole, part = (
    open_source(spec, **PAIRS) for spec in ('reverse:9', 'reverse:9#[1:]')
  )
  assert whole.fingerprint != part.fingerprint


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


@needs_prepared
def test_prepared_data_sets():
  source = open_source(
    'tfds:tiny_shakespeare#validation+test', data_dir=str(PREPARED)
  )
  tally = readers.Tally()
  texts = list(sources.texts(source, config.Data(), tally))
  assert sum(len(text) for (text,) in texts) == 111_540
  assert tally.usable == 2 and not tally.unusable


@needs_prepared
@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('tfds:tiny_shakespear#train', 'holds cifar10, '),
    ('tfds:mnist#train', "no prepared data set 'mnist'"),
    ('tfds:multi30k#trian', "'trian' is not a split; splits: train, valid"),
    ('tfds:multi30k', 'write tfds:multi30k#SPLIT; splits: train, valid'),
    ('tfds:multi30k#train', 'not a field of its records; they have de, en, fr'),
  ],
)
def test_a_wrong_data_set_is_explained(spec, message):
  with pytest.raises(config.ConfigError) as error:
    open_source(spec, data_dir=str(PREPARED))
  assert message in str(error.value)


def test_a_missing_folder_of_data_sets(tmp_path):
  with pytest.raises(config.ConfigError, match=r"data_dir='.*no' is not a fol"):
    open_source('tfds:mnist#train', data_dir=str(tmp_path / 'no'))
