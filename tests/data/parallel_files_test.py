"""Files whose lines belong together."""

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.data import parallel_files, sources

# What a line may hold, also where `splitlines` would end it.
_CHARACTERS = list('ab é🙂\t\x0b\x85\u2028')
_DATA = config_lib.Data(inputs_field='en', targets_field='de')


def write(folder, **texts):
  """The source of files FIELD: text, in this order."""
  for field, text in texts.items():
    (folder / f'talk.{field}').write_bytes(text.encode())
  return 'parallel:' + '+'.join(f'{folder}/talk.{field}' for field in texts)


@pytest.mark.parametrize('end', ['', '\n', '\r\n'])
def test_lines_of_one_number_belong_together(tmp_path, end):
  rng = np.random.default_rng(0)
  line = lambda: ''.join(rng.choice(_CHARACTERS, rng.integers(0, 6)))
  pairs = [{'en': f'{i}{line()}', 'de': f'{i}{line()}'} for i in range(40)]
  joined = {
    field: (end or '\n').join(pair[field] for pair in pairs) + end
    for field in ('en', 'de')
  }
  source = sources.records(f'{write(tmp_path, **joined)}#[1::2]', _DATA)
  assert [source[i] for i in range(len(source))] == pairs[1::2]
  assert source.place(3) == 'talk.en:8'


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    ({'en': 'a\nb\n', 'de': 'a\n'}, 'en has 2 lines and .*de 1: line i'),
    ({'en': 'a\n', 'de': 'a\n\n'}, 'en has 1 lines and .*de 2: line i'),
    ({'en': 'a\n'}, 'two files or more'),
    ({'en': 'a\n', 'fr': 'a\n'}, "'de' is not a field of its records"),
  ],
)
def test_files_that_are_not_parallel(tmp_path, texts, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    sources.records(write(tmp_path, **texts), _DATA)


@pytest.mark.parametrize('where', ['a.en+b.en', 'a+b', 'a.en+.de', ''])
def test_endings_that_name_no_fields(where):
  with pytest.raises(config_lib.ConfigError, match='endings name the fields'):
    parallel_files.read(where)
