"""Flags, runs and tables of the commands that compare runs."""

import json
import shutil

import pytest

from gemini_jax import config
from gemini_jax.commands import comparison


def test_a_run_of_other_devices_is_opened_on_those_here(runs, tmp_path):
  shutil.copytree(runs / 'lm', tmp_path / 'lm')
  file = tmp_path / 'lm/config.json'
  config = json.loads(file.read_text())
  config['parallel']['data'] = 64
  file.write_text(json.dumps(config))
  assert comparison.open_run(str(tmp_path / 'lm')).mesh.size == 8


def test_folders_of_one_name_are_called_by_their_paths():
  assert comparison.names(['a/x', 'b/y']) == ['x', 'y']
  assert comparison.names(['a/x', 'b/x']) == ['a/x', 'b/x']


def test_flags_are_read_once_each():
  flags = comparison.Flags({'sizes': '2, 1,2,', 'kind': 'b', 'none': ' ,'})
  assert flags.parts('sizes') == ('2', '1')
  assert flags.all('sizes', int, 'integers') == (2, 1)
  assert flags.choice('kind', ('a', 'b')) == ('b',)
  for read, message in (
    (lambda: flags.parts('none'), '--none=... is missing'),
    (
      lambda: flags.one('sizes', int, 'an integer'),
      '--sizes=2, 1,2, must be an integer',
    ),
    (
      lambda: flags.all('sizes', int, 'above 1', lambda value: value > 1),
      '--sizes=2, 1,2, must be above 1',
    ),
    (
      lambda: flags.choice('kind', ('bee', 'wasp')),
      "--kind=b: 'b' is not accepted; did you mean bee?",
    ),
  ):
    with pytest.raises(config.ConfigError) as error:
      read()
    assert str(error.value) == message


def test_columns_are_aligned():
  lines = [['name', 'kind', 'size'], ['a', 'long one', '1']]
  assert comparison.align(lines, 2) == (
    'name  kind      size\na     long one     1'
  )
  assert comparison.align([['a', '1', '22'], ['bb', '333', '']]) == (
    'a     1  22\nbb  333'
  )


def test_texts_of_the_training_data_are_known(runs):
  data = comparison.open_run(str(runs / 'lm')).config.data
  lines = (runs / 'texts.jsonl').read_text().splitlines()
  texts = [json.loads(line)['text'] for line in lines]
  # Of four records the last is held out.
  wanted = [texts[0], f' {texts[1]}', 'new', texts[3]]
  assert comparison.known(data, wanted) == set(texts[:2])
