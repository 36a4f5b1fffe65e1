"""Every field of a config is listed with its value, type and meaning."""

import dataclasses

from gemini_jax import config as config_lib
from gemini_jax.config import manual, schema


@dataclasses.dataclass(frozen=True)
class Inner:
  """What is inside."""

  # How large:
  # in metres.
  size: schema.NonNegative = 1.0
  # Corners.
  x: int = 3
  y: int = 4


@dataclasses.dataclass(frozen=True)
class Outer:
  """All."""

  # A part.
  inner: Inner = dataclasses.field(default_factory=Inner)
  # Not a comment of a field.

  # Its name.
  name: str = 'a b'


def test_the_comment_above_a_field_is_its_meaning():
  found = manual.fields(Inner)
  assert list(found) == ['size', 'x', 'y']
  assert [field.meaning for field in found.values()] == [
    'How large: in metres.',
    'Corners.',
    'Corners.',
  ]
  assert manual.fields(Outer)['name'].meaning == 'Its name.'


def test_pages():
  assert list(manual.pages(Outer())) == [
    "# : All.\nname = 'a b'  (str)  Its name.",
    '# inner: What is inside.\n'
    'inner.size = 1.0  (float, at least 0)  How large: in metres.\n'
    'inner.x = 3  (int)  Corners.\n'
    'inner.y = 4  (int)  Corners.',
  ]
  assert list(manual.pages(Outer(), 'inner.s', 40)) == [
    '# inner: What is inside.\n'
    'inner.size = 1.0  (float, at least 0)\n'
    '    How large: in metres.',
  ]
  assert not list(manual.pages(Outer(), 'none'))


def test_every_field_is_there_and_explained():
  shown = '\n'.join(manual.pages(config_lib.Config(), width=10_000))

  def check(section, path):
    for field in dataclasses.fields(section):
      value = getattr(section, field.name)
      if dataclasses.is_dataclass(value):
        check(value, f'{path}{field.name}.')
        continue
      start = f'\n{path}{field.name} = {value!r}  ('
      assert start in shown
      line = shown.split(start)[1].splitlines()[0]
      assert len(line.partition(')  ')[2]) > 5, line

  check(config_lib.Config(), '')
