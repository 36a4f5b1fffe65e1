r"""Trains, evaluates, plans and samples one Transformer from one config file.

  python -m gemini_jax.main --config=FILE[:ARG] --workdir=DIR \
      [--mode=train|eval|generate|predict|compress|plan] \
      [--config.field=value ...]

For example:

  python -m gemini_jax.main --config=experiments/quickstart.py --workdir=runs/a
  python -m gemini_jax.main --workdir=runs/a --mode=generate \
      --config.generate.prompt='The "with" statement'

Modes:
  train     train to train.num_steps, from the newest checkpoint in DIR
  eval      score a checkpoint on the validation and test data
  generate  write text, pictures or sounds with a checkpoint
  predict   name classes of, or write texts for, the records of a file
  compress  prune and quantise the model in DIR, into DIR/compressed
  plan      compile for devices that need not be here: memory, time, collectives

FILE is an experiment with a function get_config, to which ARG goes. Once DIR
holds a run, --config may be left out: DIR/config.json stands for it. With
--mode=eval, generate and predict that file also decides what the run is; of a
FILE, only its sections parallel, evaluate, generate, plan and predict are read
then; with --mode=compress data and compress too.
--config.field=value changes a field of either.

  --help --config=FILE   every field of that config: value, type, meaning
  --help --workdir=DIR   of the run in DIR
  --help=optimizer       those that begin with optimizer, here at their defaults

The fields are defined in gemini_jax/config/, a section a file. On
several hosts the same line is started once on each.

Exit codes: 0 done, 2 a mistake in what was asked for, 130 Ctrl-C, 1 anything
else (a plan that does not fit, too).
"""

import errno
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

from gemini_jax import command, help_page, host
from gemini_jax import config as config_lib

MODES = ('train', 'eval', 'generate', 'predict', 'compress', 'plan')
OPTIONS: dict[str, str | None] = {'workdir': None, 'mode': 'train'}
_FLAGS = {'config': None} | OPTIONS


def main(argv: Sequence[str], *, owns_process: bool = False) -> int:
  """Runs the mode that the flags ask for; returns the exit code.

  With `owns_process` the process's memory is kept as the mode needs it.
  """
  try:
    return _main(argv, owns_process)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130


def _main(argv: Sequence[str], owns_process: bool) -> int:
  try:
    topic = help_page.topic_of(argv)
    if topic is not None:
      return _help(argv, topic)
    if (code := help_page.exit_code(argv, __doc__ or '', _FLAGS)) is not None:
      return code
    arguments = command.split(argv, OPTIONS)
    mode = arguments.given()['mode']
    config_lib.check(
      mode in MODES, f'--mode={mode} must be one of {", ".join(MODES)}'
    )
    workdir = command.folder('workdir', arguments.given()['workdir'])
    config = command.run_config(arguments, mode, workdir)
  except config_lib.ConfigError as error:
    return _refuse(error)
  # Only steps that repeat gain by it, and it costs memory.
  if owns_process and mode == 'train':
    host.keep_freed_memory()
  # Imported once the flags are known to be right: jax takes a second.
  with host.no_interrupt():
    from gemini_jax.checkpoint import checkpointer
    from gemini_jax.commands import compress, evaluate, generate, predict
    from gemini_jax.parallel import processes
    from gemini_jax.plan import plan
    from gemini_jax.train import lock, loop

  run = {
    'train': loop.train,
    'eval': evaluate.evaluate,
    'generate': generate.generate,
    'predict': predict.predict,
    'compress': compress.compress,
    'plan': plan.plan,
  }
  try:
    # A plan runs on no device, so no other process has a part in it.
    if mode != 'plan':
      processes.start()
      processes.check_devices()
      if not processes.is_process_zero():
        _keep_to_errors()
    code = run[mode](config, workdir)
  except (config_lib.ConfigError, checkpointer.MismatchError) as error:
    return _refuse(error)
  except (
    FloatingPointError,
    checkpointer.DamageError,
    lock.LostError,
  ) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not workdir:
      raise
    steps = checkpointer.Checkpointer(
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


def _help(argv: Sequence[str], topic: str) -> int:
  """Shows how this is used, or the fields of the config that is named."""
  arguments = command.split(help_page.without_help(argv), OPTIONS)
  mode, workdir = arguments.values['mode'], arguments.values['workdir']
  if workdir:
    folder = command.folder('workdir', workdir)
    config = command.run_config(arguments, mode or '', folder)
  elif arguments.file:
    config = command.override(command.load(arguments.file), arguments)
  elif topic:
    config = config_lib.Config()
  else:
    return help_page.exit_code(argv, __doc__ or '', _FLAGS) or 0
  help_page.show(help_page.describe(config, topic), sys.stdout)
  return 0


def _keep_to_errors():
  """All processes know the same; one of them says it."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  logging.getLogger().setLevel(logging.WARNING)


def _refuse(error: Exception) -> int:
  print(f'error: {error}', file=sys.stderr)
  return 2


def run() -> int:
  """The command as a process: `main` with this process's arguments."""
  host.start_output()
  return main(sys.argv, owns_process=True)


if __name__ == '__main__':
  sys.exit(run())
