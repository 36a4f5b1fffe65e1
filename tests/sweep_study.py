r"""A sweep that is killed at random moments, beside one that is left alone.

  python tests/sweep_study.py --out=runs/sweep_kills [--trials=12] [--kills=2]

Prints when it was killed, the table, and whether it is the same.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import conftest  # noqa: F401  Sets the tests' settings of jax.
import tiny
from gemini_jax.commands import sweep_report

FIELDS = {
  'optimizer.learning_rate': {'log_uniform': [1e-4, 3e-2]},
  'model.width': [16, 32],
  'model.dropout': {'uniform': [0, 0.3]},
}


def arguments(folder, workdir, **plan):
  """Flags of a sweep of tiny runs; `plan` is its file."""
  file = folder / 'sweep.json'
  file.write_text(json.dumps(plan))
  experiment = folder / 'experiment.py'
  if not experiment.exists():
    tiny.experiment(folder, 'train.save_every = 4')
  return [f'--config={experiment}', f'--sweep={file}', f'--workdir={workdir}']


def start(flags):
  """A sweep in a process of its own, on one device."""
  return subprocess.Popen(
    [sys.executable, '-m', 'gemini_jax.commands.sweep', *flags],
    cwd=tiny.ROOT,
    env=os.environ | tiny.ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  """The output of a sweep that must end well."""
  output, _ = process.communicate()
  assert process.returncode == 0, output
  return output


def results(workdir):
  """What a sweep found, without times."""
  found = json.loads((workdir / sweep_report.RESULTS_FILE).read_text())
  for row in found['trials']:
    del row['seconds']
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--trials', type=int, default=12)
  parser.add_argument('--kills', type=int, default=2)
  options = parser.parse_args()
  out = options.out.resolve()
  shutil.rmtree(out, ignore_errors=True)
  out.mkdir(parents=True)
  flags = lambda name: arguments(
    out, out / name, trials=options.trials, fields=FIELDS
  )
  begin = time.monotonic()
  finish(start(flags('whole')))
  seconds = time.monotonic() - begin
  print(f'left alone: {seconds:.0f} s', flush=True)
  draw = random.SystemRandom()
  for _ in range(options.kills):
    process = start(flags('killed'))
    time.sleep(draw.uniform(0, seconds / (options.kills + 1)))
    # One that has ended before its time is up was not killed.
    assert process.poll() is None
    process.kill()
    output, _ = process.communicate()
    print('killed after:', (output.splitlines() or ['nothing'])[-1], flush=True)
  print(finish(start(flags('killed'))))
  same = results(out / 'killed') == results(out / 'whole')
  print('the same table' if same else 'NOT THE SAME')
  sys.exit(not same)


if __name__ == '__main__':
  main()
