"""Nested frozen dataclasses from ConfigDicts, strictly, and back."""

import dataclasses
import difflib
import importlib
import types
import typing
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict


class ConfigError(ValueError):
  """A user's mistake: names the field, the value and what is accepted."""


def check(condition: bool, message: str):
  """Raises ConfigError with `message` unless `condition` holds."""
  if not condition:
    raise ConfigError(message)


def optional(module: str, needed: str, extra: str) -> Any:
  """A module that an extra brings, imported.

  Args:
    module: its name for an import.
    needed: who needs what, such as 'the curves need matplotlib'.
    extra: of this package.

  Raises:
    ConfigError: it is not there, or a library of C that it needs is not.
  """
  try:
    return importlib.import_module(module)
  except (ImportError, OSError) as error:
    raise ConfigError(
      f"{needed}; install it with: pip install 'gemini_jax[{extra}]'"
    ) from error


def at_least(section: Any, path: str, least: float, *names: str):
  """Raises ConfigError unless fields of `section` are at least `least`."""
  for name in names:
    value = getattr(section, name)
    check(value >= least, f'{path}.{name}={value} must be at least {least}')


def is_share(section: Any, path: str, *names: str):
  """Raises ConfigError unless fields of `section` lie in [0, 1)."""
  for name in names:
    value = getattr(section, name)
    check(
      0 <= value < 1,
      f'{path}.{name}={value} must be at least 0 and below 1',
    )


def nearest(name: str, known) -> str:
  """`; did you mean ...?` with the nearest of the `known` names."""
  close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
  if close:
    return f'; did you mean {" or ".join(close)}?'
  return f'; accepted: {", ".join(sorted(known))}'


def _cast(value: Any, hint: Any, path: str) -> Any:
  """`value` as the type `hint`, or a ConfigError that names `path`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    check(
      isinstance(value, (dict, ml_collections.ConfigDict)),
      f'{path}={value!r} must be a section of the config',
    )
    return convert(value, hint, path)
  if origin is types.UnionType:
    if value is None:
      return None
    return _cast(value, args[0], path)
  if origin is Literal:
    if value not in args:
      choices = ', '.join(map(str, args))
      raise ConfigError(f'{path}={value!r} must be one of {choices}')
    return value
  if origin is tuple:
    check(isinstance(value, (list, tuple)), f'{path}={value!r} must be a tuple')
    inner = args[:1] * len(value) if args[-1] is Ellipsis else args
    check(
      len(inner) == len(value),
      f'{path}={value!r} must have {len(inner)} values',
    )
    return tuple(
      _cast(item, kind, f'{path}[{i}]')
      for i, (item, kind) in enumerate(zip(value, inner, strict=True))
    )
  if hint is float and type(value) is int:
    return float(value)
  check(
    type(value) is hint,
    f'{path}={value!r} must be {hint.__name__}, not {type(value).__name__}',
  )
  if hint is str:
    # What is not UTF-8 on a command line comes as lone surrogates.
    unicode = value.encode(errors='ignore').decode() == value
    check(unicode, f'{path}={value!r} is not Unicode text in UTF-8')
  return value


def convert(values: Any, cls: Any, path: str = '') -> Any:
  """The dataclass `cls` of a ConfigDict or of a nested dict.

  Raises:
    ConfigError: a field is unknown, has the wrong type or a value outside
      what is accepted; it begins with `path`.
  """
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in hints:
      where = path or 'config'
      raise ConfigError(
        f'{path}{"." if path else ""}{name} is not a field of '
        f'{where}{nearest(name, hints)}'
      )
  prefix = f'{path}.' if path else ''
  return cls(
    **{name: _cast(values[name], hints[name], prefix + name) for name in values}
  )


def to_config_dict(value: Any, hint: Any) -> Any:
  """A ConfigDict with every field of the dataclass `value` of type `hint`."""
  if dataclasses.is_dataclass(value):
    hints = typing.get_type_hints(type(value))
    return ml_collections.ConfigDict(
      {
        field.name: to_config_dict(
          getattr(value, field.name), hints[field.name]
        )
        for field in dataclasses.fields(value)
      }
    )
  if value is None:
    return config_dict.placeholder(typing.get_args(hint)[0])
  return value
