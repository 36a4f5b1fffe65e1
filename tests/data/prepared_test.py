"""Data sets that TFDS has prepared."""

import pathlib

import pytest

from gemini_jax import config
from gemini_jax.data import examples, sources, unusable

PREPARED = pathlib.Path(__file__).parents[2] / '../shared/tfds'
needs_prepared = pytest.mark.skipif(
  not PREPARED.is_dir(), reason='no prepared data sets in ../shared/tfds'
)


def open_source(spec, **fields):
  return sources.records(spec, config.Data(train=(spec,), **fields))


@needs_prepared
def test_prepared_data_sets():
  source = open_source(
    'tfds:tiny_shakespeare#validation+test', data_dir=str(PREPARED)
  )
  tally = unusable.Tally()
  texts = list(examples.texts(source, config.Data(), tally))
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
