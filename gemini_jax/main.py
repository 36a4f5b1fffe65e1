r"""The command line.

  python -m gemini_jax.main --config=FILE[:ARG] --workdir=DIR \
      [--mode=train|eval|generate] [--config.field=value ...]

Exit codes: 0 done, 2 a mistake in what was asked for, 1 anything else.
"""

import logging
import sys
from collections.abc import Callable, Sequence

import absl.logging
from absl import flags
from ml_collections import config_flags

from gemini_jax import config as config_lib

MODES = ('train', 'eval', 'generate')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment: a Python file with get_config().'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run: checkpoints, metrics, samples.'
)
_MODE = flags.DEFINE_string('mode', 'train', f'One of {", ".join(MODES)}.')


def parse(argv: Sequence[str]) -> config_lib.Config:
  """The config that the flags describe.

  Raises:
    ConfigError: a flag, a field or a value is wrong.
  """
  try:
    rest = flags.FLAGS(list(argv))
  except (AttributeError, KeyError) as error:
    raise _unknown_field(argv, error) from error
  except flags.UnrecognizedFlagError as error:
    raise config_lib.ConfigError(
      f'--{error.flagname} is not a flag'
      f'{config_lib.nearest(error.flagname, ("config", "workdir", "mode"))}'
    ) from error
  except OSError as error:
    raise config_lib.ConfigError(f'--config cannot be read: {error}') from error
  except (flags.Error, ValueError, TypeError) as error:
    raise config_lib.ConfigError(str(error).splitlines()[0]) from error
  config_lib.check(
    len(rest) == 1, f'unexpected arguments: {" ".join(rest[1:])}'
  )
  config_lib.check(_CONFIG.value is not None, '--config=FILE is missing')
  config_lib.check(bool(_WORKDIR.value), '--workdir=DIR is missing')
  config_lib.check(
    _MODE.value in MODES,
    f'--mode={_MODE.value} must be one of {", ".join(MODES)}',
  )
  return config_lib.from_config_dict(_CONFIG.value)


def _unknown_field(
  argv: Sequence[str], error: Exception
) -> config_lib.ConfigError:
  """Names the first --config.field that no config has."""
  for argument in argv[1:]:
    name = argument.lstrip('-').split('=')[0]
    if name.startswith('config.'):
      section = config_lib.to_config_dict()
      *parents, last = name.split('.')[1:]
      for depth, part in enumerate([*parents, last]):
        if not hasattr(section, 'keys') or part not in section:
          path = '.'.join([*parents, last][: depth + 1])
          where = '.'.join(parents[:depth]) or 'config'
          known = section.keys() if hasattr(section, 'keys') else ()
          return config_lib.ConfigError(
            f'{path} is not a field of {where}{config_lib.nearest(part, known)}'
          )
        section = section[part]
  return config_lib.ConfigError(str(error).splitlines()[0])


def main(argv: Sequence[str]) -> int:
  """Runs the mode that the flags ask for; returns the exit code."""
  try:
    config = parse(argv)
  except config_lib.ConfigError as error:
    return _refuse(error)
  # Imported once the flags are known to be right: jax takes a second.
  from gemini_jax import checkpoint
  from gemini_jax.tools import generate
  from gemini_jax.train import loop

  run: dict[str, Callable[..., None]] = {
    'train': loop.train,
    'eval': loop.evaluate,
    'generate': generate.generate,
  }
  try:
    run[_MODE.value](config, _WORKDIR.value)
  except (config_lib.ConfigError, checkpoint.MismatchError) as error:
    return _refuse(error)
  except FloatingPointError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


def _refuse(error: Exception) -> int:
  print(f'error: {error}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')
  # Orbax tells of every file, JAX of every back end it does not find.
  absl.logging.set_verbosity(absl.logging.WARNING)
  logging.getLogger('jax').setLevel(logging.WARNING)
  sys.exit(main(sys.argv))
