r"""Runs killed at any moment, each beside one that was left alone.

  python tests/kill_study.py --out=runs/kills [--kills=20] \
      [--runs=plain,gated,gated_between,rigl,l0,taylor]

Runs of several kinds are killed by SIGKILL at random moments and started again
by the same command until they end, and compared, array for array and line for
line. The table has the number of kills, those of them within a save, and those
between a save and the outcome of the validation after it.
"""

import argparse
import collections
import pathlib
import random
import shutil
import subprocess
import time

import numpy as np

_OFTEN = ('train.num_steps = 600', 'train.eval_every = 10')
_GATED = (
  *(*_OFTEN, "sparsity.method = 'gated'", 'train.epoch_examples = 80'),
  'sparsity.gate.tolerance = 0.05',
)
_GATES = (*_OFTEN, 'train.save_every = 10', 'gates.heads = 0.5')
# Lines of the experiments. Epochs of gated end at saves or between two of them.
KILLED = {
  'plain': (
    *('train.num_steps = 3000', 'train.save_every = 30'),
    *('train.eval_every = 50', 'optimizer.ema_decay = 0.9'),
  ),
  'gated': (*_GATED, 'train.save_every = 10'),
  'gated_between': (*_GATED, 'train.save_every = 7'),
  'rigl': (
    *(*_OFTEN, "sparsity.method = 'rigl'", 'sparsity.update_every = 3'),
    *('train.save_every = 5', 'optimizer.ema_decay = 0.9'),
  ),
  'l0': (*_GATES, "gates.method = 'l0'", 'gates.channels = 0.25'),
  'taylor': (*_GATES, "gates.method = 'taylor'", 'gates.channels = 0.25'),
}


def kill(out, kind, count):
  """Kills a run `count` times; the row of the table."""
  import tiny
  from gemini_jax.checkpoint import checkpointer
  from gemini_jax.train import metrics_file

  shutil.rmtree(out, ignore_errors=True)
  out.mkdir(parents=True)
  file = tiny.experiment(
    out, 'train.log_every = 10', 'model.dropout = 0.1', *KILLED[kind]
  )
  whole, run = out / 'whole', out / 'run'
  process = started(file, whole)
  begin = time.monotonic()
  finish(process)
  seconds = time.monotonic() - begin
  draw, counts, same = random.SystemRandom(), collections.Counter(), True
  while counts['kills'] < count:
    shutil.rmtree(run, ignore_errors=True)
    while counts['kills'] < count:
      process = started(file, run)
      try:
        process.wait(draw.uniform(0, seconds / 5))
        break
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      counts['kills'] += 1
      folder = run / 'checkpoints'
      counts['in a save'] += any(folder.glob('*.unfinished'))
      checkpoints = checkpointer.Checkpointer(folder)
      if steps := checkpoints.steps():
        manifest = checkpoints.manifest(steps[-1])
        counts['due'] += bool(manifest['due'])
    finish(tiny.start(file, run))
    lines = [
      tiny.metrics(folder, *metrics_file.TIMINGS) for folder in (run, whole)
    ]
    arrays, wanted = tiny.arrays(run), tiny.arrays(whole)
    same &= lines[0] == lines[1] and arrays.keys() == wanted.keys()
    for path, leaf in wanted.items():
      same &= np.array_equal(arrays[path], leaf)
  verdict = 'the same' if same else 'NOT THE SAME'
  return counts['kills'], counts['in a save'], counts['due'], verdict


def started(file, workdir):
  """A process that trains, once it says at which step it begins."""
  import tiny

  process = tiny.start(file, workdir)
  for line in process.stdout:
    if line.startswith(('starting', 'resuming')) or 'is done' in line:
      break
  return process


def finish(process):
  """Waits for a process that must end well."""
  output, _ = process.communicate()
  assert process.returncode == 0, output


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--runs', default=','.join(KILLED))
  options = parser.parse_args()
  print('| run | killed | in a save | before its validation | it ends |')
  print(f'|{" --- |" * 5}', flush=True)
  for kind in options.runs.split(','):
    row = kill(options.out / kind, kind, options.kills)
    print(f'| {kind} | {" | ".join(map(str, row))} |', flush=True)


if __name__ == '__main__':
  # Before anything imports jax: the tests' settings of it.
  import conftest  # noqa: F401

  main()
