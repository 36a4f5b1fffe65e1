"""Strict conversion of ConfigDicts to nested frozen dataclasses, and back."""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import ml_collections
from ml_collections import config_dict

from gemini_jax import host

_MAX_MESSAGE = 500


class ConfigError(ValueError):
  """A user error: it names the field, the value and what is accepted."""


def check(condition: bool, message: str):
  """Raises ConfigError with `message` unless `condition` holds."""
  if not condition:
    raise ConfigError(message)


def check_pattern(field: str, pattern: str):
  """Raises ConfigError unless the pattern is a regular expression."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise ConfigError(
      f'{field}={pattern!r} is not a regular expression: {error}'
    ) from error


def optional(module: str, needed: str, extra: str) -> Any:
  """Imports a module of an optional dependency.

  Args:
    module: name of the module.
    needed: what needs it, such as 'the curves need matplotlib'.
    extra: the extra of this package that installs it.

  Raises:
    ConfigError: it, or a C library that it needs, is not installed.
  """
  try:
    return importlib.import_module(module)
  except (ImportError, OSError) as error:
    raise ConfigError(
      f"{needed}; install it with: pip install 'gemini_jax[{extra}]'"
    ) from error


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
  """Names the file or folder in what is wrong with values from it.

  Raises:
    ConfigError: one line of limited length, in place of any error that such
      values cause.
  """
  try:
    yield
  except (*host.MALFORMED, ArithmeticError) as error:
    text = ' '.join(str(error).split())
    if not isinstance(error, ConfigError):
      text = f'a value has a wrong type or is too large: {text}'
    if len(text) > _MAX_MESSAGE:
      text = f'{text[:_MAX_MESSAGE]}...'
    raise ConfigError(f'{path}: {text}') from error


def nearest(name: str, known) -> str:
  """`; did you mean ...?` with the nearest of the `known` names."""
  close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
  if close:
    return f'; did you mean {" or ".join(close)}?'
  return f'; accepted: {", ".join(sorted(known))}'


class _Short(reprlib.Repr):
  """Representations of values for messages: one line, limited in length."""

  def __init__(self):
    super().__init__()
    self.maxstring = self.maxother = 200

  def repr_int(self, x, level):
    # Python refuses to print more than 4,300 digits.
    if x.bit_length() > 256:
      return f'{"-" * (x < 0)}<{x.bit_length()} bits>'
    return repr(x)

  def repr_ConfigDict(self, x, level):
    return self.repr_dict(x.to_dict(), level)


_short = _Short().repr


@dataclasses.dataclass(frozen=True)
class Range:
  """Accepted numbers, as part of a field's type: Annotated[int, Range(1)].

  Attributes:
    low: the smallest.
    high: the largest.
    above: whether `low` itself is excluded.
    below: whether `high` itself is excluded.
    rest: whether -1 is accepted too, for all that other fields leave.
    cap: largest absolute value by memory or by a device's types, for fields
      whose meaning sets no bound; None: that of int64 or float32.
  """

  low: float | None = None
  high: float | None = None
  above: bool = False
  below: bool = False
  rest: bool = False
  cap: float | None = None

  def __contains__(self, value: float) -> bool:
    low, high = self.low, self.high
    inside = (
      low is None or value > low or (value == low and not self.above)
    ) and (high is None or value < high or (value == high and not self.below))
    return inside or (self.rest and value == -1)

  def __str__(self) -> str:
    bounds = []
    if self.low is not None:
      bounds.append(f'{"above" if self.above else "at least"} {self.low:,}')
    if self.high is not None:
      bounds.append(f'{"below" if self.below else "at most"} {self.high:,}')
    return ' and '.join(bounds) + ', or -1 for the rest' * self.rest


_CAPS = {int: 2**63 - 1, float: 3.4e38}
# The smallest float32 that devices do not flush to 0.
_TINY = 2.0**-126

# Types of fields that are numbers.
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
# Dims of arrays, and counts of things that are in memory at the same time.
Size = Annotated[int, Range(1, cap=2**20)]
SizeOrZero = Annotated[int, Range(0, cap=2**20)]
# Lengths of sequences, whose positions must be exact in float32; vocabularies.
Length = Annotated[int, Range(1, cap=2**24)]
LengthOrZero = Annotated[int, Range(0, cap=2**24)]
# Layers, each of which is compiled unless they are scanned.
Layers = Annotated[int, Range(1, cap=10_000)]
LayersOrZero = Annotated[int, Range(0, cap=10_000)]
# Counters on devices are int32, and one more must fit.
Steps = Annotated[int, Range(1, cap=2**31 - 2)]
StepsOrZero = Annotated[int, Range(0, cap=2**31 - 2)]
Seed = Annotated[int, Range()]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
# Shares in [0, 1]; in [0, 1); in (0, 1].
Share = Annotated[float, Range(0, 1)]
PartialShare = Annotated[float, Range(0, 1, below=True)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]


def describe(hint: Any) -> str:
  """A type and the values it accepts, for --help: 'int, at least 1'."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Annotated:
    return ', '.join(filter(None, (args[0].__name__, str(args[1]))))
  if dataclasses.is_dataclass(hint):
    return 'section'
  if types.NoneType in args:
    return f'{describe(args[0])}, or None'
  if origin is Literal:
    return f'one of {", ".join(map(str, args))}'
  if origin is tuple and args[-1] is Ellipsis:
    return f'tuple of {describe(args[0])}'
  if origin is tuple:
    return f'tuple of {len(args)} {describe(args[0])}'
  return hint.__name__


def _number(value: Any, kind: Any, accepted: Range, path: str) -> Any:
  """`value` as an int or a float that is `accepted`."""
  cap = _CAPS[kind] if accepted.cap is None else accepted.cap
  integer = type(value) is int
  check(
    type(value) is kind or (kind is float and integer),
    f'{path}={_short(value)} must be {kind.__name__}, not '
    f'{type(value).__name__}',
  )
  given, rule = f'{path}={_short(value)}', str(accepted)
  check(
    integer or math.isfinite(value),
    f'{given} must be {", ".join(filter(None, ("a finite number", rule)))}',
  )
  check(value in accepted, f'{given} must be {rule}')
  check(value <= cap, f'{given} must be at most {cap:,}')
  check(value >= -cap, f'{given} must be at least {-cap:,}')
  check(
    integer or value == 0 or abs(value) >= _TINY,
    f'{given} is 0 for a float32; the smallest is {_TINY:.2g}',
  )
  return kind(value)


def _cast(value: Any, hint: Any, path: str) -> Any:
  """`value` as the type `hint`, or a ConfigError that names `path`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return value if type(value) is hint else convert(value, hint, path)
  if types.NoneType in args:
    return None if value is None else _cast(value, args[0], path)
  if origin is Annotated:
    return _number(value, args[0], args[1], path)
  if hint in (int, float):
    return _number(value, hint, Range(), path)
  if origin is Literal:
    # True == 1, but True is not accepted for 1.
    for choice in args:
      if type(value) is type(choice) and value == choice:
        return choice
    choices = ', '.join(map(str, args))
    raise ConfigError(f'{path}={_short(value)} must be one of {choices}')
  if origin is tuple:
    check(
      isinstance(value, (list, tuple)),
      f'{path}={_short(value)} must be a tuple',
    )
    inner = args[:1] * len(value) if args[-1] is Ellipsis else args
    check(
      len(inner) == len(value),
      f'{path}={_short(value)} must have {len(inner)} values',
    )
    return tuple(
      _cast(item, kind, f'{path}[{i}]')
      for i, (item, kind) in enumerate(zip(value, inner, strict=True))
    )
  check(
    type(value) is hint,
    f'{path}={_short(value)} must be {hint.__name__}, not '
    f'{type(value).__name__}',
  )
  if hint is str:
    # Bytes of a command line that are not UTF-8 become lone surrogates.
    unicode = value.encode(errors='ignore').decode() == value
    check(unicode, f'{path}={value!r} is not Unicode text in UTF-8')
  return value


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
  """The types of a section's fields, with ranges."""
  return typing.get_type_hints(cls, include_extras=True)


@typing.dataclass_transform(
  frozen_default=True, field_specifiers=(dataclasses.field,)
)
def section(path: str = '') -> Callable[[type], Any]:
  """Decorator: a frozen dataclass whose fields are checked against their types.

  Fields are cast and checked whenever an instance is made, also by
  `dataclasses.replace`, before the class's own `__post_init__`, which checks
  rules between fields.

  Args:
    path: of the section in a config, for messages.
  """
  prefix = f'{path}.' if path else ''

  def decorate(cls: Any) -> Any:
    rules = cls.__dict__.get('__post_init__')

    def check_fields(self):
      for name, hint in hints(cls).items():
        value = _cast(getattr(self, name), hint, prefix + name)
        object.__setattr__(self, name, value)
      if rules:
        rules(self)

    cls.__post_init__ = check_fields
    return dataclasses.dataclass(frozen=True)(cls)

  return decorate


def convert(values: Any, cls: Any, path: str = '') -> Any:
  """Converts a ConfigDict or a nested dict to the dataclass `cls`.

  Raises:
    ConfigError: a field is unknown, or has a wrong type or value; the message
      begins with its path.
  """
  check(
    isinstance(values, (dict, ml_collections.ConfigDict)),
    f'{path or "config"}={_short(values)} must be a section of the config',
  )
  prefix = f'{path}.' if path else ''
  known = hints(cls)
  for name in values:
    if name not in known:
      plain = isinstance(name, str) and name.isascii() and name.isidentifier()
      raise ConfigError(
        f'{prefix}{name if plain else _short(name)} is not a field of '
        f'{path or "config"}{nearest(str(name), known)}'
      )
  return cls(
    **{name: _cast(values[name], known[name], prefix + name) for name in values}
  )


def to_config_dict(value: Any, hint: Any) -> Any:
  """A ConfigDict with every field of the dataclass `value` of type `hint`."""
  if dataclasses.is_dataclass(value):
    plain = typing.get_type_hints(type(value))
    return ml_collections.ConfigDict(
      {
        name: to_config_dict(getattr(value, name), kind)
        for name, kind in plain.items()
      }
    )
  if value is None:
    return config_dict.placeholder(typing.get_args(hint)[0])
  return value
