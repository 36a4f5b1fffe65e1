r"""The command line.

  python -m gemini_jax.main --config=FILE[:ARG] --workdir=DIR \
      [--mode=train|eval|generate|plan] [--config.field=value ...]

On several hosts it is started once on each; see parallel/cluster.py.

Exit codes: 0 done, 2 a mistake in what was asked for, 1 anything else (a plan
that does not fit, too).
"""

import errno
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

import absl.logging

from gemini_jax import command, host
from gemini_jax import config as config_lib

MODES = ('train', 'eval', 'generate', 'plan')


def main(argv: Sequence[str]) -> int:
  """Runs the mode that the flags ask for; returns the exit code."""
  try:
    parsed = command.parse(argv, {'workdir': None, 'mode': 'train'})
    mode, workdir = parsed.values['mode'], parsed.values['workdir']
    config_lib.check(
      mode in MODES, f'--mode={mode} must be one of {", ".join(MODES)}'
    )
  except config_lib.ConfigError as error:
    return _refuse(error)
  # Imported once the flags are known to be right: jax takes a second.
  from gemini_jax import checkpoint
  from gemini_jax.parallel import cluster
  from gemini_jax.tools import generate, plan
  from gemini_jax.train import loop

  run = {
    'train': loop.train,
    'eval': loop.evaluate,
    'generate': generate.generate,
    'plan': plan.plan,
  }
  try:
    # A plan runs on no device, so no other process has a part in it.
    if mode != 'plan':
      cluster.start()
      if not cluster.is_first():
        _keep_to_errors()
    code = run[mode](parsed.config, workdir)
  except (config_lib.ConfigError, checkpoint.MismatchError) as error:
    return _refuse(error)
  except (FloatingPointError, checkpoint.DamageError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not workdir:
      raise
    steps = checkpoint.Checkpointer(
      pathlib.Path(workdir, 'checkpoints')
    ).steps()
    saved = f'step {steps[-1]:,} is saved' if steps else 'no step is saved yet'
    print(
      f'error: the disk of --workdir={workdir} is full ({error.strerror}); '
      f'{saved}: make room and start again',
      file=sys.stderr,
    )
    return 1
  return code or 0


def _keep_to_errors():
  """All processes know the same; one of them says it."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  logging.getLogger().setLevel(logging.WARNING)


def _refuse(error: Exception) -> int:
  print(f'error: {error}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  host.keep_freed_memory()
  logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')
  # Orbax tells of every file, JAX of every back end it does not find.
  absl.logging.set_verbosity(absl.logging.WARNING)
  logging.getLogger('jax').setLevel(logging.WARNING)
  sys.exit(main(sys.argv))
