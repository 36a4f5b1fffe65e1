"""Killed at any moment, a run ends as if it had not been."""

import random
import re
import signal
import time

import numpy as np
import pytest

import tiny
from gemini_jax.checkpoint import checkpointer
from gemini_jax.train import metrics_file

NUM_STEPS = 100


@pytest.fixture(scope='module')
def setup(tmp_path_factory):
  """(experiment, workdir of an uninterrupted run)."""
  return whole_run(tmp_path_factory.mktemp('resume'))


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
  """As `setup`, of a run with ranks that come and go."""
  folder = tmp_path_factory.mktemp('tuned')
  file = tiny.experiment(folder, 'train.num_steps = 3')
  code, output = finish(tiny.start(file, folder / 'base'))
  assert code == 0, output
  return whole_run(
    folder,
    f"train.init_from = '{folder}/base'",
    "tune.method = 'adalora'",
    'tune.rank = 2',
    'tune.adalora.every = 5',
  )


@pytest.fixture(scope='module')
def gated(tmp_path_factory):
  """As `setup`, where validation prunes after each of nine epochs."""
  return whole_run(
    tmp_path_factory.mktemp('gated'),
    'optimizer.ema_decay = 0.0',
    "sparsity.method = 'gated'",
    'sparsity.gate.tolerance = 0.05',
    'train.epoch_examples = 88',
  )


def whole_run(folder, *lines):
  """(experiment, workdir of an uninterrupted run)."""
  file = tiny.experiment(
    folder,
    f'train.num_steps = {NUM_STEPS}',
    'train.log_every = 1',
    'train.save_every = 7',
    'train.eval_every = 11',
    'model.dropout = 0.1',
    'optimizer.ema_decay = 0.9',
    *lines,
  )
  code, output = finish(tiny.start(file, folder / 'whole'))
  assert code == 0, output
  return file, folder / 'whole'


def finish(process):
  """(exit code, output) of a process that is left alone."""
  output, _ = process.communicate(timeout=120)
  return process.returncode, output


def interrupt(process, number, step, delay):
  """Sends a signal once `step` was told; (exit code, output)."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    told = re.match(r'step (\d+)/', line)
    if told and int(told[1]) >= step:
      time.sleep(delay)
      process.send_signal(number)
      break
  rest, _ = process.communicate(timeout=120)
  return process.returncode, ''.join(lines) + rest


def assert_same(workdir, whole):
  assert (workdir / 'metrics.jsonl').read_text().endswith('}\n')
  lines = tiny.metrics(workdir, *metrics_file.TIMINGS)
  expected = tiny.metrics(whole, *metrics_file.TIMINGS)
  assert len(lines) == NUM_STEPS + NUM_STEPS // 11 + 1
  assert lines == expected
  arrays, wanted = tiny.arrays(workdir), tiny.arrays(whole)
  assert arrays.keys() == wanted.keys()
  for path, leaf in arrays.items():
    np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


@pytest.mark.parametrize('kind', ['setup', 'tuned', 'gated'])
def test_killed_three_times(kind, request, tmp_path):
  file, whole = request.getfixturevalue(kind)
  seed = random.SystemRandom().randrange(10**6)
  print('seed', seed)
  draw = random.Random(seed)
  for first, last in ((2, 20), (25, 50), (55, 80)):
    moment = draw.randint(first, last), draw.uniform(0, 0.03)
    print('killed at', moment)
    process = tiny.start(file, tmp_path / 'run')
    code, output = interrupt(process, signal.SIGKILL, *moment)
    assert code == -signal.SIGKILL, output
  code, output = finish(tiny.start(file, tmp_path / 'run'))
  assert code == 0, output
  assert 'resuming at step' in output
  assert_same(tmp_path / 'run', whole)


def test_stopped_and_damaged(setup, tmp_path):
  """SIGTERM twice; before the last start one bit of the newest flips."""
  file, whole = setup
  saved = []
  for step in (5, 40):
    process = tiny.start(file, tmp_path / 'run')
    code, output = interrupt(process, signal.SIGTERM, step, 0.005)
    assert code == 0, output
    assert 'stopped by a signal; step' in output
    checkpoints = checkpointer.Checkpointer(tmp_path / 'run' / 'checkpoints')
    saved.append(checkpoints.steps()[-1])
  assert 5 < saved[0] < 40 < saved[1] < NUM_STEPS
  newest = checkpoints.path(saved[1])
  largest = max(
    (newest / 'state').rglob('*'),
    key=lambda path: path.is_file() and path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 3] ^= 4
  largest.write_bytes(content)
  code, output = finish(tiny.start(file, tmp_path / 'run'))
  assert code == 0, output
  assert f'{largest.relative_to(newest)} has changed since' in output
  assert f'resuming at step {saved[1]}\n' not in output
  assert newest.with_name(f'{newest.name}.damaged').is_dir()
  assert_same(tmp_path / 'run', whole)
