"""Sections are what their types say, numbers with their ranges."""

import dataclasses
import math
import re
import typing
from typing import Annotated, Literal

import ml_collections
import pytest

import config_study
from gemini_jax import config as config_lib
from gemini_jax.config import schema

FIELDS = {
  f'{field.path}.{field.name}': field for field in config_study.numbers()
}


def test_every_number_of_the_config_has_a_range():
  assert len(FIELDS) > 130
  for path, field in FIELDS.items():
    assert typing.get_origin(field.hint) is Annotated, path
    assert isinstance(typing.get_args(field.hint)[1], schema.Range), path


@pytest.mark.parametrize('path', FIELDS)
def test_a_value_outside_is_refused_in_one_line(path):
  field = FIELDS[path]
  for value in config_study.outside(field.hint):
    for way in config_study.WAYS:
      message = config_study.refusal(way, field, value)
      assert message, (way, value)
      assert '\n' not in message and len(message) < 200
      full = field.full
      if way != 'convert':
        # A section that stands twice in a config knows no kind.
        full = re.sub('(image|audio)\\.(auto|tower)', r'KIND.\2', full)
      text = '<1329 bits>' if value == 10**400 else repr(value)
      assert message.startswith(f'{full}={text} '), message


@pytest.mark.parametrize('path', FIELDS)
def test_every_default_and_bound_is_accepted(path):
  field = FIELDS[path]
  kind, accepted = typing.get_args(field.hint)

  @schema.section('one')
  class One:
    number: field.hint

  bounds = {
    accepted.low: accepted.above,
    accepted.high: accepted.below,
    accepted.cap: False,
  }
  for bound, left_out in bounds.items():
    if bound is not None and not left_out:
      made = One(kind(bound)).number
      assert made == bound and type(made) is kind
  default = getattr(field.section(), field.name)
  for number in default if isinstance(default, tuple) else (default,):
    if number is not None:
      assert One(number).number == number


@schema.section('outer.inner')
class Inner:
  """Some fields of every type."""

  count: schema.Count = 1
  share: schema.PartialShare | None = None
  sizes: tuple[schema.Size, ...] = ()
  pair: tuple[schema.Positive, schema.Positive] = (1.0, 2.0)
  kind: Literal['a', 1] = 'a'
  text: str = ''
  on: bool = False

  def __post_init__(self):
    schema.check(self.count != 3, f'outer.inner.count={self.count} is three')


@schema.section('outer')
class Outer:
  """A section in a section."""

  inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_section_is_a_frozen_dataclass():
  made = Inner(2, 0.5, (3,))
  assert made == Inner(2, 0.5, (3,)) and hash(made) == hash(Inner(2, 0.5, (3,)))
  assert dataclasses.replace(made, count=4).sizes == (3,)
  with pytest.raises(dataclasses.FrozenInstanceError):
    made.count = 5


def test_values_take_the_types_of_their_fields():
  made = Inner(share=0, sizes=[3], pair=[1, 2])
  assert type(made.share) is float and made.sizes == (3,)
  assert [type(number) for number in made.pair] == [float, float]


WRONG = [
  ({'count': 0}, 'outer.inner.count=0 must be at least 1'),
  ({'count': True}, 'outer.inner.count=True must be int, not bool'),
  ({'count': 3}, 'outer.inner.count=3 is three'),
  (
    {'share': 1},
    'outer.inner.share=1 must be at least 0 and below 1',
  ),
  ({'sizes': (1, 0)}, 'outer.inner.sizes[1]=0 must be at least 1'),
  ({'sizes': '12'}, "outer.inner.sizes='12' must be a tuple"),
  ({'pair': (1.0,)}, 'outer.inner.pair=(1.0,) must have 2 values'),
  ({'kind': True}, 'outer.inner.kind=True must be one of a, 1'),
  ({'kind': ['a']}, "outer.inner.kind=['a'] must be one of a, 1"),
  ({'text': None}, 'outer.inner.text=None must be str, not NoneType'),
  ({'on': 1}, 'outer.inner.on=1 must be bool, not int'),
]


@pytest.mark.parametrize(('fields', 'message'), WRONG)
def test_a_section_is_checked_however_it_is_made(fields, message):
  """The types first, so that rules between fields can rely on them."""
  for make in (
    lambda: Inner(**fields),
    lambda: dataclasses.replace(Inner(), **fields),
    lambda: schema.convert({'inner': fields}, Outer, 'outer'),
    lambda: schema.convert(
      ml_collections.ConfigDict({'inner': fields}), Outer, 'outer'
    ),
  ):
    with pytest.raises(schema.ConfigError) as error:
      make()
    assert str(error.value) == message


def test_messages_are_one_short_line():
  deep = []
  for _ in range(900):
    deep = [deep]
  values = (
    ml_collections.ConfigDict({'a': {'b': 1, 'c': 'x\ny'}}),
    deep,
    [10**5000],
    -(10**5000),
    list(range(10**5)),
  )
  for value in values:
    for name in ('count', 'text', 'on', 'kind', 'pair'):
      with pytest.raises(schema.ConfigError) as error:
        Inner(**{name: value})
      message = str(error.value)
      assert message.startswith(f'outer.inner.{name}=')
      assert '\n' not in message and len(message) < 400
  with pytest.raises(schema.ConfigError) as error:
    Inner(count='line\n' * 1000)
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


DESCRIPTIONS = {
  'count': 'int, at least 1',
  'share': 'float, at least 0 and below 1, or None',
  'sizes': 'tuple of int, at least 1',
  'pair': 'tuple of 2 float, above 0',
  'kind': 'one of a, 1',
  'text': 'str',
  'on': 'bool',
}


@pytest.mark.parametrize('name', DESCRIPTIONS)
def test_a_type_is_described(name):
  assert schema.describe(schema.hints(Inner)[name]) == DESCRIPTIONS[name]


def test_every_field_of_the_config_is_described():
  assert schema.describe(config_lib.Model) == 'section'
  assert schema.describe(schema.hints(config_lib.Parallel)['data']) == (
    'int, at least 1, or -1 for the rest'
  )
  assert schema.describe(schema.hints(config_lib.Train)['seed']) == 'int'
  for field in FIELDS.values():
    hint = schema.hints(field.section)[field.name]
    assert schema.describe(hint).replace('tuple of ', '')[0] in 'if3'


def test_nan_is_in_no_range():
  assert math.nan not in schema.Range(0)
  assert math.nan not in schema.Range(high=1)
  assert -1 in schema.Range(1, rest=True) and 0 not in schema.Range(
    1, rest=True
  )
