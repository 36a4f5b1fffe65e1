"""Specs of sources, slices and fingerprints."""

import pytest

from gemini_jax import config
from gemini_jax.data import sources

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
    ('zzz', "'zzz' is not a kind of source; accepted: csv, digits"),
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


def test_slices_have_fingerprints_of_their_own():
  whole, part = (
    open_source(spec, **PAIRS) for spec in ('reverse:9', 'reverse:9#[1:]')
  )
  assert whole.fingerprint != part.fingerprint
