r"""Trains a config with several values of some fields, and compares the runs.

  python -m gemini_jax.commands.sweep --config=FILE[:ARG] --sweep=FILE \
      --workdir=DIR [--config.field=value ...]

The file of the sweep is JSON:

  {"search": "random", "trials": 12, "seed": 0,
   "metric": "validation/loss", "goal": "min",
   "fields": {"optimizer.learning_rate": {"log_uniform": [1e-4, 1e-2]},
              "model.dropout": {"uniform": [0, 0.3]},
              "model.num_layers": {"integers": [1, 4]},
              "model.width": [64, 128]}}

  search   grid: all combinations of lists and integers, the last field changes
           fastest; random: `trials` different draws (the default)
  seed     of the draws; default 0
  metric   of metrics.jsonl, by whose best value trials are compared; default
           validation/loss
  goal     min (the default) or max

Trials run one after the other, each a process of its own, with the workdir
DIR/trials/NNN and its output in log.txt there. All configs are checked before
the first one starts. A trial that fails has its error in the table, and the
others go on; remove its folder to run it again.

The same line goes on where it was stopped or killed. A random search may get
more trials, and metric and goal may change; nothing else may. DIR gets
report.md, sweep_results.json and, once all trials have ended, importance.png:
the metric over each field and, from 8 finished trials on, which field matters.

Exit codes: 0 all trials have ended, 2 a mistake in what was asked for, 130
stopped by a signal, which the running trial obeys too.
"""

import json
import logging
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax.commands import program, sweep_plan, sweep_report
from gemini_jax.evaluate import evaluators
from gemini_jax.parallel import processes
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import wandb_writer

_FLAGS: dict[str, str | None] = {'sweep': None, 'workdir': None}
# In the folder of a trial, once it has ended: how.
_OUTCOME_FILE = 'outcome.json'
_LOG_FILE = 'log.txt'
# Bytes at the end of a log that have the error.
_TAIL_BYTES = 1 << 14


class _Children:
  """Runs processes one at a time, and passes on signals that ask to stop.

  A signal that this process was started to ignore stays ignored.

  Attributes:
    signal: the last of these signals, or None.
  """

  def __init__(self):
    self.signal: int | None = None
    self._process: subprocess.Popen | None = None
    self._before: dict[int, Any] = {}

  def run(self, argv: Sequence[str], log: pathlib.Path) -> int:
    """Runs a process to its end; returns its exit code.

    Args:
      argv: its command line.
      log: to which its output is added.
    """
    # In a group of its own, so that Ctrl-C reaches it once, from here.
    with (
      log.open('ab') as file,
      subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      ) as self._process,
    ):
      if self.signal:
        self._process.send_signal(self.signal)
      return self._process.wait()

  def _pass_on(self, number: int, frame: Any):
    del frame
    self.signal = number
    if self._process:
      self._process.send_signal(number)

  def check(self):
    """KeyboardInterrupt once a signal has come."""
    if self.signal:
      raise KeyboardInterrupt

  def __enter__(self) -> '_Children':
    names = 'SIGTERM', 'SIGINT', 'SIGHUP'
    # Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    self._before = {
      number: signal.signal(number, self._pass_on)
      for number in numbers
      if signal.getsignal(number) != signal.SIG_IGN
    }
    return self

  def __exit__(self, *error: object):
    for number, handler in self._before.items():
      signal.signal(number, handler)


def sweep(config: config_lib.Config, file: pathlib.Path, workdir: pathlib.Path):
  """Runs the trials that have not ended yet; see the head of this file.

  Args:
    config: of which trials change some fields.
    file: of the sweep.
    workdir: of the sweep.

  Raises:
    ConfigError: the file, a trial's config or the folder cannot be used.
    KeyboardInterrupt: a signal came.
    OSError: what a trial or the sweep leaves behind cannot be written.
  """
  config_lib.check(
    processes.is_alone(), 'a sweep is one process; start it on one host'
  )
  plan = sweep_plan.read(file)
  trials = plan.draw()
  configs = sweep_plan.configs(config, trials)
  for each in configs:
    evaluators.check(each)
    wandb_writer.check(each)
  sweep_report.check(len(trials))
  with lock_lib.Lock() as lock, _Children() as children:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      lock.acquire(workdir)
      sweep_plan.keep(workdir, plan, config, trials)
    except OSError as error:
      raise config_lib.ConfigError(
        f'--workdir={workdir} cannot be written: {error.strerror}'
      ) from error
    _run_trials(workdir, plan, trials, configs, children)


def _run_trials(
  workdir: pathlib.Path,
  plan: sweep_plan.Sweep,
  trials: Sequence[sweep_plan.Values],
  configs: Sequence[config_lib.Config],
  children: _Children,
):
  """Runs what has not ended, and tells of each trial in two lines."""
  total = len(trials)
  folders = [sweep_report.folder(workdir, i + 1) for i in range(total)]
  left = [f for f in folders if not (f / _OUTCOME_FILE).exists()]
  if len(left) < total:
    print(f'{total - len(left)} of {total} trials have ended before')
  rows, seconds, text = [], [], ''
  for i, (folder, values) in enumerate(zip(folders, trials, strict=True)):
    ran = folder in left
    if ran:
      print(
        f'trial {i + 1} of {total}: {sweep_report.spell(values)}', flush=True
      )
      begin = time.monotonic()
      _run(folder, configs[i], children)
      seconds.append(time.monotonic() - begin)
    with config_lib.reading(folder / _OUTCOME_FILE):
      outcome = config_lib.parse_json(
        host.read_file(folder / _OUTCOME_FILE), 'it'
      )
      error = str(outcome['error'])
    rows.append(sweep_report.row(workdir, plan, i + 1, values, error))
    if ran:
      rest = sum(seconds) / len(seconds) * (len(left) - len(seconds))
      print(
        f'trial {i + 1} of {total}: {_told(plan, rows[-1])}; {seconds[-1]:.0f} '
        f's, about {rest / 60:.1f} min left',
        flush=True,
      )
    text = sweep_report.write(workdir, plan, rows, total)
  print(f'\n{text}\n\nwritten to {workdir / sweep_report.FILE}')


def _told(plan: sweep_plan.Sweep, row: dict[str, Any]) -> str:
  """The outcome of a trial, in some words."""
  if row['error']:
    return row['error']
  return f'{plan.metric} {row["best"]:.5g} at step {row["best_step"]:,}'


def _run(folder: pathlib.Path, config: config_lib.Config, children: _Children):
  """Trains a trial to its end, and writes down how it ended.

  Raises:
    KeyboardInterrupt: a signal came, to this process or to the trial.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / config_lib.FILE).exists():
    text = config_lib.to_json(config)
    host.replace_file(folder / config_lib.FILE, text.encode())
  _wait_until_free(folder, children)
  children.check()
  log = folder / _LOG_FILE
  size = log.stat().st_size if log.exists() else 0
  code = children.run(
    [
      sys.executable,
      '-m',
      'gemini_jax.commands.trial',
      f'--workdir={folder}',
      '--mode=train',
    ],
    log,
  )
  children.check()
  lines = _last_lines(log, size)
  if any(line.startswith('stopped by a signal') for line in lines):
    # The trial alone got it.
    raise KeyboardInterrupt
  outcome = {'exit_code': code, 'error': _error(code, lines)}
  text = json.dumps(outcome) + '\n'
  host.replace_file(folder / _OUTCOME_FILE, text.encode())


def _wait_until_free(folder: pathlib.Path, children: _Children):
  """Waits until the process of a sweep that was killed has ended, too."""
  while True:
    children.check()
    try:
      with lock_lib.Lock() as lock:
        lock.acquire(folder)
      return
    except config_lib.ConfigError as error:
      logging.info('%s', error)
      time.sleep(1)


def _last_lines(log: pathlib.Path, start: int) -> list[str]:
  """The last lines of a log behind byte `start` that are not blank."""
  with log.open('rb') as file:
    file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
    lines = file.read().decode(errors='replace').splitlines()
  return [line.strip() for line in lines if line.strip()]


def _error(code: int, lines: Sequence[str]) -> str:
  """What a trial failed by, in one line; '' where it did not."""
  if not code:
    return ''
  if code < 0:
    return f'killed by {signal.Signals(-code).name}'
  told = [line for line in lines if re.match(r'error: ', line)]
  return f'exit code {code}: {(told or lines or ["no output"])[-1][:200]}'


def main(argv: Sequence[str]) -> int:
  """Runs the sweep that the flags ask for; returns the exit code."""

  def work():
    parsed = command.parse(argv, _FLAGS)
    sweep(
      parsed.config,
      command.folder('sweep', parsed.values['sweep']),
      command.folder('workdir', parsed.values['workdir']),
    )

  return program.main(argv, __doc__, {'config': None, **_FLAGS}, work)


if __name__ == '__main__':
  host.start_output()
  sys.exit(main(sys.argv))
