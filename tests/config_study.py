"""Tries each number of the config outside its range.

  python tests/config_study.py

Prints a table of sections: fields that are numbers, values tried on each way
into a config, and how many of those were refused in one line.
"""

import collections
import dataclasses
import math
import types
import typing

from gemini_jax import config as config_lib
from gemini_jax.config import schema


class Field(typing.NamedTuple):
  """A field that is a number, or a tuple of numbers."""

  section: type
  # Of the section, in a config.
  path: str
  name: str
  # int or float, as it is annotated.
  hint: typing.Any
  # Numbers in a tuple; None: of any length; 0: no tuple.
  length: int | None

  @property
  def full(self):
    """Where the first number stands, as messages name it."""
    return f'{self.path}.{self.name}' + '[0]' * (self.length != 0)

  def holding(self, value):
    """`value`, in a tuple if the field is one."""
    if self.length == 0:
      return value
    return (value,) + (1.5,) * ((self.length or 1) - 1)


def numbers(section=config_lib.Config, path=''):
  """Each Field of a section and of those inside it."""
  for name, hint in schema.hints(section).items():
    inner = f'{path}.{name}' if path else name
    if dataclasses.is_dataclass(hint):
      yield from numbers(hint, inner)
      continue
    if types.NoneType in typing.get_args(hint):
      hint = typing.get_args(hint)[0]
    length = 0
    if typing.get_origin(hint) is tuple:
      hint, *rest = typing.get_args(hint)
      length = None if Ellipsis in rest else 1 + len(rest)
    plain = hint
    if typing.get_origin(hint) is typing.Annotated:
      plain = typing.get_args(hint)[0]
    if plain in (int, float):
      yield Field(section, path, name, hint, length)


def outside(hint):
  """Values that a field of this type must refuse."""
  kind, accepted = typing.get_args(hint)
  yield from (math.nan, math.inf, -math.inf, True, '1', [1], 10**400)
  low, high = accepted.low, accepted.high
  if kind is int:
    yield from (1.5, 2**63, -(2**63) - 1)
    bounds = (low, -1), (high, 1), (accepted.cap, 1)
    yield from (bound + by for bound, by in bounds if bound is not None)
    return
  yield from (1e300, -1e300, 1e-300)
  if low is not None:
    yield float(low) if accepted.above else math.nextafter(low, -math.inf)
    yield low - 1
  if high is not None:
    yield float(high) if accepted.below else math.nextafter(high, math.inf)
    yield high + 1
  if accepted.cap is not None:
    yield math.nextafter(accepted.cap, math.inf)
    yield accepted.cap + 1


def construct(field, value):
  """The section alone, by its class."""
  field.section(**{field.name: field.holding(value)})


def replace(field, value):
  """Another of a section that was made before."""
  dataclasses.replace(field.section(), **{field.name: field.holding(value)})


def convert(field, value):
  """A whole config, of nested dicts."""
  values = {field.name: field.holding(value)}
  for name in reversed(field.path.split('.')):
    values = {name: values}
  config_lib.from_config_dict(values)


WAYS = {way.__name__: way for way in (construct, replace, convert)}


def refusal(way, field, value):
  """The message of a ConfigError; None: the value was taken."""
  try:
    WAYS[way](field, value)
  except config_lib.ConfigError as error:
    return str(error)
  return None


def main():
  fields, tried, refused = (collections.Counter() for _ in range(3))
  for field in numbers():
    fields[field.path] += 1
    for value in outside(field.hint):
      for way in WAYS:
        message = refusal(way, field, value)
        tried[field.path] += 1
        refused[field.path] += message is not None and '\n' not in message
  print('| section | numbers | values tried | refused in one line |')
  print('| --- | ---: | ---: | ---: |')
  for path, count in fields.items():
    print(f'| {path} | {count} | {tried[path]:,} | {refused[path]:,} |')
  totals = (sum(c.values()) for c in (fields, tried, refused))
  print('| all | ' + ' | '.join(f'{total:,}' for total in totals) + ' |')


if __name__ == '__main__':
  main()
