"""Command lines: flags, the config of a file or of a run, and --help."""

import dataclasses
import itertools
import logging
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.config import legacy

# Sections that say what is done with a trained run, and on which devices; the
# others say what it is.
_OF_USE = ('parallel', 'evaluate', 'generate', 'plan', 'predict')
# The modes that take only these of a config, beside what a run holds; an
# imported model has no data to be calibrated with.
_SECTIONS = {
  'eval': _OF_USE,
  'generate': _OF_USE,
  'predict': _OF_USE,
  'compress': (*_OF_USE, 'data', 'compress'),
}
# The name under which an experiment is imported.
_EXPERIMENT = 'experiment_config'


@dataclasses.dataclass(frozen=True)
class Command:
  """A parsed command line: the config, and the other flags as strings."""

  config: config_lib.Config
  values: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Arguments:
  """A command line, taken apart.

  Attributes:
    file: of `--config`; '': not given.
    values: of the other flags; None: not given and without a default.
    rest: the program's name and what is left: overrides of the config.
  """

  file: str
  values: dict[str, str | None]
  rest: list[str]

  def given(self) -> dict[str, str]:
    """The values.

    Raises:
      ConfigError: one is missing.
    """
    found = {}
    for name, value in self.values.items():
      if value is None:
        raise config_lib.ConfigError(f'--{name}=... is missing')
      found[name] = value
    return found


def parse(argv: Sequence[str], options: Mapping[str, str | None]) -> Command:
  """Reads `--config=FILE[:ARG]`, `--config.field=value` and `options`.

  Args:
    argv: the program's name, then its arguments.
    options: other flags with their defaults; None: it must be given.

  Raises:
    ConfigError: a flag, a field or a value is wrong.
  """
  arguments = split(argv, options)
  config_lib.check(bool(arguments.file), '--config=... is missing')
  config = override(load(arguments.file), arguments)
  return Command(config, arguments.given())


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
  known = _define(options)
  _read(known, argv, list(options))
  values = {name: known[name].value for name in options}
  return Arguments('', values, []).given()


def split(argv: Sequence[str], options: Mapping[str, str | None]) -> Arguments:
  """Takes `--config` and `options` out of a command line.

  Raises:
    ConfigError: an argument is not UTF-8, or no flag that is known.
  """
  for argument in argv[1:]:
    try:
      argument.encode()
    except UnicodeEncodeError as error:
      shown = ascii(argument)[1:-1]
      raise config_lib.ConfigError(f'{shown} is not UTF-8') from error
  known = _define({'config': '', **options})
  # Flags may stand behind what is no flag, such as the value of an override.
  known.set_gnu_getopt(True)
  rest = _read(known, argv, list(known), known_only=True)
  for before, argument in itertools.pairwise(rest):
    name = argument.lstrip('-').partition('=')[0]
    is_value = before.startswith('-') and '=' not in before
    if argument.startswith('-') and not is_value:
      config_lib.check(
        re.match(r'(no)?config\.', name) is not None, _not_a_flag(name, known)
      )
  values = {name: known[name].value for name in options}
  return Arguments(known['config'].value or '', values, rest)


def folder(flag: str, value: str) -> pathlib.Path:
  """The path that a flag gives, `~` expanded.

  Raises:
    ConfigError: it is empty, or in a home that nobody knows.
  """
  config_lib.check(bool(value), f'--{flag}=... is missing')
  path = host.expand_path(value)
  config_lib.check(
    not value.startswith('~') or path != pathlib.Path(value),
    f'--{flag}={value}: no such home folder is known; write the whole path',
  )
  return path


def run_config(
  arguments: Arguments, mode: str, workdir: pathlib.Path
) -> config_lib.Config:
  """The config to run `mode` with in a folder.

  Without `--config` it is the one that the folder holds. Of a trained run,
  `eval`, `generate` and `compress` take only some sections from `--config`:
  what the run is does not have to be said again. Overrides apply to either.

  Raises:
    ConfigError: there is none, or a field or a value is wrong.
  """
  saved = workdir / config_lib.FILE
  if not arguments.file:
    config_lib.check(
      os.path.lexists(saved),
      f'--config=... is missing, and --workdir={workdir} has no '
      f'{config_lib.FILE} of a run',
    )
    run = config_lib.read(saved)
    return override(config_lib.to_config_dict(run), arguments)
  asked = load(arguments.file)
  if mode not in _SECTIONS or not os.path.lexists(saved):
    return override(asked, arguments)
  base = config_lib.to_config_dict(config_lib.read(saved))
  flags_of = (flag.partition('=')[0] for flag in arguments.rest)
  overridden = {flag.partition('.')[2] for flag in flags_of}
  sections = _SECTIONS[mode]
  different = _differences(asked, base, sections)
  unused = [p for p in different if p not in overridden]
  if unused:
    more = ', ...' if len(unused) > 5 else ''
    logging.warning(
      '--config=%s has other values than the run in %s%s: those of the run '
      'are used',
      arguments.file,
      ', '.join(unused[:5]),
      more,
    )
  for name in sections:
    if name in asked:
      base[name] = asked[name]
  return override(base, arguments)


def _differences(
  asked: Any, saved: Any, sections: Sequence[str]
) -> Iterator[str]:
  """Fields, outside of `sections`, that two ConfigDicts do not agree about."""
  for section in asked:
    if section in sections or section not in saved:
      continue
    values, others = asked[section], saved[section]
    for name in values:
      # The tokenizer decides where the experiment does not.
      derived = name == 'vocab_size' and values[name] is None
      if name in others and values[name] != others[name] and not derived:
        yield f'{section}.{name}'


def load(argument: str) -> ml_collections.ConfigDict:
  """What `get_config` of an experiment gives, `FILE` or `FILE:ARG`.

  Raises:
    ConfigError: the file cannot be read, or fails.
  """
  path, args = _file_and_arg(argument)
  try:
    source = path.read_bytes()
  except OSError as error:
    raise config_lib.ConfigError(
      f'--config={path} cannot be read: {error.strerror}'
    ) from error
  module = types.ModuleType(_EXPERIMENT)
  module.__file__ = str(path)
  sys.modules[_EXPERIMENT] = module
  try:
    code = compile(source, str(path), 'exec', dont_inherit=True)
    exec(code, module.__dict__)
    get_config = getattr(module, 'get_config', None)
    config_lib.check(
      callable(get_config), f'--config={path} has no function get_config'
    )
    assert get_config
    values = get_config(*args)
  except Exception as error:
    # Not our code: whatever it raises is a mistake in the file.
    raise config_lib.ConfigError(_failure(path, error)) from error
  config_lib.check(
    isinstance(values, ml_collections.ConfigDict),
    f'--config={path}: get_config gives {type(values).__name__}, not a '
    'ConfigDict',
  )
  return values


def _file_and_arg(argument: str) -> tuple[pathlib.Path, list[str]]:
  """`FILE[:ARG]`; the name of the file may have colons as well."""
  parts = argument.split(':')
  for end in range(1, len(parts) + 1):
    path = host.expand_path(':'.join(parts[:end]))
    if os.path.exists(path) and not os.path.isdir(path):
      return path, [':'.join(parts[end:])] if parts[end:] else []
  return host.expand_path(parts[0]), []


def _failure(path: pathlib.Path, error: Exception) -> str:
  """One line about an exception of an experiment."""
  if isinstance(error, SyntaxError):
    where = f'{error.filename or path}'
    where += f', line {error.lineno}' if error.lineno else ''
    return f'{where}: {error.msg}'
  if isinstance(error, ValueError):
    # A message of its own, such as of arguments that it does not take.
    return _first_line(error)
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == str(path)
  ]
  where = f'{path}, line {lines[-1]}' if lines else str(path)
  message = f'{type(error).__name__}: {_first_line(error)}'
  if isinstance(error, AttributeError | KeyError):
    names = re.findall(r"'(\w+)'", message)
    message += ''.join(legacy.hint(name) for name in names[:1])
  return f'{where}: {message}'


def override(
  base: ml_collections.ConfigDict, arguments: Arguments
) -> config_lib.Config:
  """The config with the fields that the command line sets.

  Raises:
    ConfigError: a field or a value is wrong.
  """
  known = flags.FlagValues()
  try:
    holder = config_flags.DEFINE_config_dict(
      'config', base, '', known, sys_argv=arguments.rest
    )
    _read(known, arguments.rest, ['config', *arguments.values])
  except (AttributeError, KeyError) as error:
    raise _unknown_field(arguments.rest, error) from error
  except (flags.Error, ValueError, TypeError) as error:
    raise config_lib.ConfigError(_first_line(error)) from error
  return config_lib.from_config_dict(holder.value)


def _define(options: Mapping[str, str | None]) -> flags.FlagValues:
  known = flags.FlagValues()
  for name, default in options.items():
    flags.DEFINE_string(name, default, '', flag_values=known)
  return known


def _read(
  known: flags.FlagValues,
  argv: Sequence[str],
  names: Sequence[str],
  known_only: bool = False,
) -> list[str]:
  """Reads flags; returns the program's name and what is left.

  Args:
    known: the flags.
    argv: the program's name, then its arguments.
    names: what may be meant by a flag that is unknown.
    known_only: leave unknown ones; otherwise nothing may be left.

  Raises:
    ConfigError: a flag is unknown, lacks its value or has a wrong one.
  """
  try:
    rest = known(list(argv), known_only)
  except flags.UnrecognizedFlagError as error:
    raise config_lib.ConfigError(_not_a_flag(error.flagname, names)) from error
  except (flags.Error, ValueError, TypeError) as error:
    raise config_lib.ConfigError(_first_line(error)) from error
  config_lib.check(
    known_only or len(rest) < 2, f'unexpected arguments: {" ".join(rest[1:])}'
  )
  return rest


def _not_a_flag(name: str, known: Any) -> str:
  return f'--{name} is not a flag{config_lib.nearest(name, list(known))}'


def _unknown_field(
  argv: Sequence[str], error: Exception
) -> config_lib.ConfigError:
  """Names the first --config.field that no config has."""
  for argument in argv[1:]:
    flag, *fields = argument.lstrip('-').split('=')[0].split('.')
    if flag not in ('config', 'noconfig'):
      continue
    path = '.'.join(fields)
    if (new := legacy.field(path)) != path:
      is_option = new.startswith('evaluate.') and new.count('.') > 1
      more = ', for an evaluator in evaluate.evaluators' if is_option else ''
      return config_lib.ConfigError(f'{path} is now {new}{more}')
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
  return config_lib.ConfigError(_first_line(error))


def _first_line(error: Exception) -> str:
  lines = [line for line in str(error).splitlines() if line.strip()]
  return lines[0] if lines else type(error).__name__
