"""The folder of a training: that it can be written, and lost nothing."""

import pathlib

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.parallel import processes
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import metrics_file


def advice(path: pathlib.Path) -> str:
  """What a user can do whose checkpoints are of no use."""
  return (
    'put a copy of one back, or begin anew in another --workdir, or here '
    f'after moving {metrics_file.FILE} and checkpoints away from {path}'
  )


def check_not_lost(
  path: pathlib.Path,
  config: config_lib.Config,
  checkpoints: checkpointer.Checkpointer,
):
  """Refuses to begin where a training has lost its checkpoints.

  Raises:
    ConfigError: it has.
  """
  damaged = checkpoints.damaged()
  config_lib.check(
    not damaged,
    f'--workdir={path} holds damaged checkpoints alone, '
    f'{", ".join(folder.name for folder in damaged)}; {advice(path)}',
  )
  # A run that was killed before its first save has none either, and one that
  # was killed in it has left something behind.
  train = config.train
  if (path / run_lib.CONFIG_FILE).exists():
    train = config_lib.read(path / run_lib.CONFIG_FILE).train
  first = min(train.save_every, train.num_steps)
  line = next(metrics_file.newest_lines(path), {'step': 0})
  # What is evaluated was saved before.
  saved = line['step'] > first or (
    line['step'] == first and 'train/loss' not in line
  )
  config_lib.check(
    not saved or checkpoints.has_leftovers(),
    f'{path / metrics_file.FILE} goes to step {line["step"]:,}, but there is '
    f'no checkpoint; {advice(path)}',
  )


def make_writable(path: pathlib.Path, lock: lock_lib.Lock | None):
  """Makes the folder, and sees that it is one for all processes.

  Raises:
    ConfigError: it cannot be written, or is of one host alone.
  """
  probe = path / '.writable'

  def write():
    try:
      path.mkdir(parents=True, exist_ok=True)
      if lock is not None:
        lock.acquire(path)
      probe.unlink(missing_ok=True)
      probe.open('x').close()
    except OSError as error:
      raise config_lib.ConfigError(
        f'--workdir={path} cannot be written: {error.strerror}'
      ) from error

  processes.on_process_zero(write)
  shared = processes.all_processes(probe.exists())
  processes.on_process_zero(lambda: probe.unlink(missing_ok=True))
  config_lib.check(
    shared, f'--workdir={path} must be a folder that all processes share'
  )


def check_trained(path: pathlib.Path, checkpoints: checkpointer.Checkpointer):
  """Refuses a folder of imported parameters, which no training has made.

  Raises:
    ConfigError: it is one.
  """
  try:
    imported = checkpoints.manifest(checkpoints.steps()[-1]).get('imported')
  except checkpointer.DamageError:
    # `resume` looks for an older one.
    return
  config_lib.check(
    not imported,
    f'--workdir={path} holds imported parameters and no training; give another '
    f'--workdir and --config.train.init_from={path}',
  )
