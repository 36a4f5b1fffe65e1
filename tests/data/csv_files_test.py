"""Tables as records, one a row."""

import csv

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.data import csv_files, sources, unusable

_CHARACTERS = list('ab,"\n\t;é🙂 ')


@pytest.mark.parametrize('ending', ['csv', 'tsv'])
def test_cells_are_read_as_they_were_written(tmp_path, ending):
  rng = np.random.default_rng(0)
  cell = lambda: ''.join(rng.choice(_CHARACTERS, rng.integers(0, 6)))
  rows = [[cell(), f'{i}{cell()}', cell()] for i in range(50)]
  path = tmp_path / f'table.{ending}'
  with path.open('w', newline='', encoding='utf-8-sig') as file:
    dialect = 'excel-tab' if ending == 'tsv' else 'excel'
    csv.writer(file, dialect).writerows([['x', 'y', 'a field'], *rows])
  data = config_lib.Data(text_field='y')
  source = sources.records(f'csv:{path}#[1::2]', data)
  found = [source[i] for i in range(len(source))]
  expected = [
    {k: v for k, v in zip(('x', 'y', 'a field'), row, strict=True) if v}
    for row in rows[1::2]
  ]
  assert found == expected
  begins = [place for place, _ in csv_files.rows_of(str(path))]
  assert source.place(3) == f'table.{ending}:{begins[1 + 7]}'


def test_a_row_of_another_length_is_unusable(tmp_path):
  path = tmp_path / 'table.csv'
  path.write_text('a,text\n1,2\n1,2,3\n\n4,5\n')
  source = sources.records(f'csv:{path}', config_lib.Data())
  assert [source[0], source[2]] == [
    {'a': '1', 'text': '2'},
    {'a': '4', 'text': '5'},
  ]
  with pytest.raises(unusable.UnusableError, match='3 cells for 2 columns'):
    source[1]
  assert source.place(2) == 'table.csv:5'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'is empty'),
    (b'text\n', 'no row below its header'),
    (b'text,text\n1,2\n', 'each column, once'),
    (b'text,\n1,2\n', 'each column, once'),
    (b'a,b\n1,2\n', "data.text_field='text' is not a field"),
    (b'text\n"open\n', 'line 2: unexpected end of data'),
    (b'text\n' + b'ok\n' * 9000 + b'\xff\n', 'not UTF-8 after line'),
    (b'\x1f\x8b\x08', 'is gzip'),
  ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
  path = tmp_path / 'table.csv'
  path.write_bytes(content)
  with pytest.raises(config_lib.ConfigError, match=message):
    sources.records(f'csv:{path}', config_lib.Data())


def test_files_have_the_same_columns(tmp_path):
  for name, columns in (('a', 'text,x'), ('b', 'x,text')):
    (tmp_path / f'{name}.csv').write_text(f'{columns}\n1,2\n')
  with pytest.raises(config_lib.ConfigError, match='the first file has'):
    sources.records(f'csv:{tmp_path}/*.csv', config_lib.Data())
