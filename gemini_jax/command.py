"""Command lines that take --config, shared by main and the tools."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from gemini_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line: the config, and the other flags as strings."""

  config: config_lib.Config
  values: dict[str, str]


def parse(argv: Sequence[str], options: Mapping[str, str | None]) -> Command:
  """Reads `--config=FILE[:ARG]`, `--config.field=value` and `options`.

  Args:
    argv: the program's name, then its arguments.
    options: other flags with their defaults; None: it must be given.

  Raises:
    ConfigError: a flag, a field or a value is wrong.
  """
  known = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    'An experiment: a file with get_config().',
    known,
    # Otherwise it looks for overrides in the process's own command line.
    sys_argv=list(argv),
  )
  _check_file(argv)
  # An experiment read earlier must not lend its get_config to this one.
  sys.modules.pop('config_config', None)
  try:
    values = _read(known, argv, options)
  except (AttributeError, KeyError) as error:
    raise _unknown_field(argv, error) from error
  except SyntaxError as error:
    raise config_lib.ConfigError(
      f'{error.filename}, line {error.lineno}: {error.msg}'
    ) from error
  config_lib.check(holder.value is not None, '--config=... is missing')
  return Command(config_lib.from_config_dict(holder.value), values)


def parse_flags(
  argv: Sequence[str], options: Mapping[str, str | None]
) -> dict[str, str]:
  """Reads `options` alone, of a command that takes no config.

  Args:
    argv: the program's name, then its arguments.
    options: flags with their defaults; None: it must be given.

  Raises:
    ConfigError: a flag is unknown or missing.
  """
  return _read(flags.FlagValues(), argv, options)


def _read(
  known: flags.FlagValues,
  argv: Sequence[str],
  options: Mapping[str, str | None],
) -> dict[str, str]:
  """The values of `options`, read beside the flags that are `known`."""
  names = [*known, *options]
  for name, default in options.items():
    flags.DEFINE_string(name, default, '', flag_values=known)
  try:
    rest = known(list(argv))
  except flags.UnrecognizedFlagError as error:
    raise config_lib.ConfigError(
      f'--{error.flagname} is not a flag'
      f'{config_lib.nearest(error.flagname, names)}'
    ) from error
  except (flags.Error, ValueError, TypeError) as error:
    raise config_lib.ConfigError(_one_line(error)) from error
  if len(rest) > 1:
    raise config_lib.ConfigError(f'unexpected arguments: {" ".join(rest[1:])}')
  values: dict[str, Any] = {name: known[name].value for name in options}
  for name, value in values.items():
    config_lib.check(value is not None, f'--{name}=... is missing')
  return values


def _unknown_field(
  argv: Sequence[str], error: Exception
) -> config_lib.ConfigError:
  """Names the first --config.field that no config has."""
  for argument in argv[1:]:
    flag, *fields = argument.lstrip('-').split('=')[0].split('.')
    if flag != 'config':
      continue
    section: Any = config_lib.to_config_dict()
    for depth, name in enumerate(fields):
      known = list(section.keys()) if hasattr(section, 'keys') else []
      if name not in known:
        where = '.'.join(fields[:depth]) or 'config'
        return config_lib.ConfigError(
          f'{".".join(fields[: depth + 1])} is not a field of '
          f'{where}{config_lib.nearest(name, known)}'
        )
      section = section[name]
  return config_lib.ConfigError(_one_line(error))


def _check_file(argv: Sequence[str]):
  """ConfigError unless the file of --config can be read."""
  for argument, following in zip(argv[1:], [*argv[2:], ''], strict=True):
    flag, equals, value = argument.lstrip('-').partition('=')
    if flag == 'config' and argument.startswith('-'):
      value = value if equals else following
      path = pathlib.Path(value.split(':')[0])
      try:
        path.read_bytes()
      except OSError as error:
        raise config_lib.ConfigError(
          f'--config={path} cannot be read: {error.strerror}'
        ) from error


def _one_line(error: Exception) -> str:
  """The message; of an experiment that failed, what its traceback ends with."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  if any(line.startswith('Traceback') for line in lines):
    return lines[-1].removeprefix('ValueError: ')
  return lines[0]
