"""Texts that teach a wish are a fair choice, but for what is rare."""

import collections
import json

import numpy as np
import pytest

from gemini_jax import config
from gemini_jax.steer import labelled_examples


@pytest.fixture
def data(tmp_path):
  """4,000 texts sorted by kind: 30 %, 69 % and, last, 1 %."""
  rng = np.random.default_rng(0)
  kinds = ['some'] * 1200 + ['many'] * 2760 + ['few'] * 40
  records = [
    {'text': f'{i} {kind}', 'label': {'kind': kind, 'tone': 'ab'[tone]}}
    for i, (kind, tone) in enumerate(
      zip(kinds, (rng.random(4000) < 0.4).astype(int), strict=True)
    )
  ]
  # One in ten has no tone.
  for record in records[::10]:
    del record['label']['tone']
  path = tmp_path / 'texts.jsonl'
  path.write_text('\n'.join(map(json.dumps, records)))
  return config.Data(train=(f'jsonl:{path}',))


def counted(found, name):
  return collections.Counter(o[name] for o in found.labels if name in o)


def test_frequent_values_come_as_often_as_they_are(data, caplog):
  with caplog.at_level('INFO'):
    found = labelled_examples.choose(data, 'kind=some', 400)
  # No more is read than is needed.
  assert 'data.train: 400 texts with labels read' in caplog.text
  assert len(set(found.texts)) == 400
  counts = counted(found, 'kind')
  assert counts.total() == 400 and 100 <= counts['some'] < 145
  for value, count in counts.items():
    np.testing.assert_allclose(found.shares['kind'][value], count / 400)
  for text, label in zip(found.texts, found.labels, strict=True):
    # What was not wished for is not among the labels.
    assert label == {'kind': text.split()[1]}


@pytest.mark.parametrize(('most', 'quota'), [(100, 25), (160, 40), (2, 1)])
def test_a_quarter_has_a_rare_value(data, most, quota):
  found = labelled_examples.choose(data, 'kind=few', most)
  counts = counted(found, 'kind')
  assert counts['few'] == quota and counts.total() == most
  assert abs(found.shares['kind']['few'] - 0.01) < 0.007
  if most > 2:
    # The others are as they are among themselves.
    assert abs(counts['some'] / (most - quota) - 0.3) < 0.15


def test_where_there_are_fewer_all_of_them_are_taken(data):
  found = labelled_examples.choose(data, 'kind=few', 400)
  counts = counted(found, 'kind')
  assert counts['few'] == 40 and counts.total() == 400
  assert found.shares['kind'] == {'some': 0.3, 'many': 0.69, 'few': 0.01}
  everything = labelled_examples.choose(data, 'kind=few', 5000)
  assert counted(everything, 'kind')['many'] == 2760


def test_another_value_has_a_quarter(data):
  """Of a value that nearly all have, too."""
  path = data.train[0]
  tops = config.Data(train=(f'{path}#[1200:]',))
  counts = counted(labelled_examples.choose(tops, 'kind=many', 80), 'kind')
  assert counts == {'many': 60, 'few': 20}


def test_each_attribute_has_its_own_choice(data):
  """Texts that were chosen for one have the labels of that one alone."""
  found = labelled_examples.choose(data, 'kind=few,tone=b', 100)
  kinds, tones = counted(found, 'kind'), counted(found, 'tone')
  assert kinds.total() == tones.total() == 100 and kinds['few'] == 25
  assert 25 <= tones['b'] < 60
  assert {'kind', 'tone'} == found.shares.keys()
  assert 100 <= len(found.texts) < 200
  assert len(set(found.texts)) == len(found.texts)
  # Rare kinds did not come in by way of the tones.
  tones_of_few = [
    'tone' in label
    for text, label in zip(found.texts, found.labels, strict=True)
    if text.endswith('few')
  ]
  assert sum(tones_of_few) <= 5


def test_the_choice_is_the_seed_s_alone(data):
  one, again, other = (
    labelled_examples.choose(data, 'kind=few', 100, seed) for seed in (1, 1, 2)
  )
  assert one == again and one.texts != other.texts


def test_what_no_text_has_is_refused(data):
  with pytest.raises(config.ConfigError, match='did you mean some'):
    labelled_examples.choose(data, 'kind=soma', 10)
