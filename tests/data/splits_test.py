"""Records of a split that are not tokenized: labels."""

import dataclasses
import json

import pytest

from gemini_jax import config
from gemini_jax.data import (
  splits,
)

WORDS = {
  'inputs_field': 'inputs',
  'targets_field': 'targets',
  'train': ('reverse:200#[:90%]',),
  'validation': ('reverse:200#[90%:]',),
}


def write_labelled(path, *records):
  path.write_text('\n'.join(map(json.dumps, records)))
  return config.Data(train=(f'jsonl:{path}',))


def test_labels_are_read_and_others_counted(tmp_path, caplog):
  """Strings, numbers and booleans as text; null is not known."""
  data = write_labelled(
    tmp_path / 'labelled.jsonl',
    {'text': 'a', 'label': {'tone': 'positive', 'stars': 3, 'new': True}},
    {'text': '', 'label': {'tone': 'positive'}},
    {'text': 'b', 'label': 'positive'},
    {'text': 'c'},
    {'text': 'd', 'label': {'tone': ['positive']}},
    {'text': 'e', 'label': {'tone': 'negative', 'stars': None}},
    {'text': 'f', 'label': {'tone': 'negative'}},
  )
  expected = [
    ('a', {'tone': 'positive', 'stars': '3', 'new': 'true'}),
    ('e', {'tone': 'negative'}),
    ('f', {'tone': 'negative'}),
  ]
  with caplog.at_level('INFO'):
    found = splits.labelled(data, 'train', 9)
  assert sorted(found, key=str) == expected
  told = "3 texts with labels read, 4 unusable: 1 'label' of 'tone'"
  assert told in caplog.text
  assert splits.labelled(data, 'train', 2) == found[:2]
  twice = config.Data(train=data.train * 2)
  found = splits.labelled(twice, 'train', 9)
  assert sorted(found, key=str) == sorted(expected * 2, key=str)


def test_labels_of_sorted_records_are_mixed(tmp_path):
  """A choice has every part of every source, and is the seed's alone."""
  lines = [{'text': f'{i}', 'label': {'half': i // 500}} for i in range(1000)]
  write_labelled(tmp_path / 'a.jsonl', *lines[:800])
  write_labelled(tmp_path / 'b.jsonl', *lines[800:])
  train = (f'jsonl:{tmp_path}/a.jsonl', f'jsonl:{tmp_path}/b.jsonl#[:100]')
  data = config.Data(train=train)
  found = splits.labelled(data, 'train', 400)
  numbers = [int(text) for text, _ in found]
  assert len(set(numbers)) == 400 and max(numbers) < 900
  assert all(
    label == {'half': str(i // 500)}
    for (_, label), i in zip(found, numbers, strict=True)
  )
  # Of 900 records 500, 100 are of the first half, of the second source.
  assert 190 < sum(i < 500 for i in numbers) < 255
  assert 30 < sum(i >= 800 for i in numbers) < 60
  assert splits.labelled(data, 'train', 400) == found
  other = splits.labelled(data, 'train', 400, seed=-1)
  assert len({text for text, _ in other} - {text for text, _ in found}) > 100


def test_texts_without_labels_are_refused(tmp_path):
  data = write_labelled(tmp_path / 'plain.jsonl', {'text': 'a'}, {'text': 'b'})
  with pytest.raises(config.ConfigError) as error:
    splits.labelled(data, 'train', 9)
  assert str(error.value) == (
    'data.train has no text with labels, such as {"text": ..., "label": '
    '{"attribute": "value"}}, 2 unusable: 2 no \'label\' of attributes and '
    'values'
  )
  pairs = config.Data(**WORDS)
  with pytest.raises(config.ConfigError, match="inputs_field='inputs' and"):
    splits.labelled(pairs, 'train', 9)
  tasks = dataclasses.replace(data, tasks=('{text} -> {text}',))
  with pytest.raises(config.ConfigError, match='make pairs'):
    splits.labelled(tasks, 'train', 9)
