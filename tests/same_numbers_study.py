r"""Whether two revisions of this repository train the same numbers.

  python tests/same_numbers_study.py b0b4979 HEAD --data_dir=DIR

Trains four experiments for 100 steps with the code of each revision, which
`git archive` reads into a temporary folder: quickstart, reverse, text_vae on
the texts of tests/grammar.py, and spoken_digit where `--data_dir` holds it.
Every metric of every line of `metrics.jsonl` is compared but times and memory;
names are read as `config/legacy.py` says. Prints the greatest relative
difference of each experiment, and exits with 1 if one is above
`--max_relative`, which is 0 unless given: the same bits.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import grammar
import house_study
from gemini_jax.config import legacy

STEPS = 100
FLAGS = {
  'train.num_steps': STEPS,
  'train.log_every': 10,
  'train.eval_every': STEPS,
  'train.save_every': STEPS,
}
# Metrics that are of the machine, by a part of their name.
_MACHINE = ('second', 'mfu', 'wait', 'memory')


def main(arguments: list[str]) -> int:
  """Prints the differences; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('before')
  parser.add_argument('after')
  parser.add_argument('--data_dir', default='')
  parser.add_argument('--max_relative', type=float, default=0.0)
  options = parser.parse_args(arguments)
  worst = 0.0
  with tempfile.TemporaryDirectory(prefix='same_numbers_') as name:
    folder = pathlib.Path(name)
    texts = folder / 'texts.jsonl'
    grammar.write(texts, 2000)
    experiments = {
      'quickstart': 'experiments/quickstart.py',
      'reverse': 'experiments/reverse.py',
      'text_vae': f'experiments/text_vae.py:jsonl={texts}',
    }
    if options.data_dir:
      experiments['spoken_digit'] = 'experiments/spoken_digit.py'
    for revision in (options.before, options.after):
      house_study.extract(revision, folder / revision)
    for label, config in experiments.items():
      lines = [
        train(folder / revision, label, config, options.data_dir)
        for revision in (options.before, options.after)
      ]
      difference, where = compare(*lines)
      print(f'{label}: {difference:.3g} {where}', flush=True)
      worst = max(worst, difference)
  return int(worst > options.max_relative)


def train(
  code: pathlib.Path, label: str, config: str, data_dir: str
) -> list[dict[str, float]]:
  """The lines of `metrics.jsonl` of a short run with the code of a revision."""
  workdir = code / 'workdirs' / label
  # The section had another name before.
  is_new = (code / 'gemini_jax/config/evaluate.py').exists()
  flags = FLAGS | {f'{"evaluate" if is_new else "eval"}.max_batches': 3}
  if label == 'spoken_digit':
    flags['data.data_dir'] = data_dir
  subprocess.run(
    [
      *(sys.executable, '-P', '-m', 'gemini_jax.main'),
      *(f'--config={config}', f'--workdir={workdir}'),
      *(f'--config.{field}={value}' for field, value in flags.items()),
    ],
    cwd=code,
    env=os.environ
    | {'PYTHONPATH': str(code), 'XDG_CACHE_HOME': str(code / 'cache')},
    capture_output=True,
    check=True,
  )
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [legacy.metrics(json.loads(line)) for line in lines]


def compare(
  before: list[dict[str, float]], after: list[dict[str, float]]
) -> tuple[float, str]:
  """The greatest relative difference of two runs, and where it is."""
  if len(before) != len(after):
    return float('inf'), f'{len(before)} and {len(after)} lines'
  worst = (0.0, '')
  for then, now in zip(before, after, strict=True):
    for name in {**then, **now}:
      if any(part in name for part in _MACHINE):
        continue
      if name not in then or name not in now:
        return float('inf'), f'{name} is in one alone'
      difference = abs(then[name] - now[name]) / max(abs(then[name]), 1e-9)
      worst = max(worst, (difference, f'in {name} of step {now["step"]}'))
  return worst


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
