r"""Validation decides on pruning, and rates that a run finds: on real pictures.

  python tests/gate_study.py --data_dir=DIR --out=runs/gate_study \
      [--rows=dense,gated,oneshot] [--seeds=1] [--config.field=value ...]

Each row is a run of experiments/adaptive_fashion.py in a process of its own,
in OUT/ROW; one that was stopped goes on, one that is done is read. `oneshot`
prunes to the sparsity that `gated` has found, and goes on from the last but one
checkpoint of `dense`, with which it has all steps before it in common. The
control `shuffled` is `gated` where the labels of the validation split belong to
other pictures, so that its loss says nothing of the model. Rows with a rate are
dense; without weight decay adamw is Adam. Rows with a share, such as rigl=0.98,
end at this sparsity. The table has means over seeds, and their spread.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = 'experiments/adaptive_fashion.py'
ROWS = (
  *('dense', 'gated', 'oneshot', 'shuffled', 'adamw@0.1', 'momo_adam@0.1'),
  *('prodigy@1', 'dadapt_adamw@1', 'dog@1'),
)


def argument(row: str, out: pathlib.Path) -> str:
  """What the experiment is given for a row."""
  if '@' in row:
    optimizer, _, rate = row.partition('@')
    return f'method=dense,optimizer={optimizer},learning_rate={rate}'
  if row == 'oneshot':
    share = newest(out / 'gated')['train/sparsity']
    return f'method=oneshot,sparsity={share}'
  if '=' in row:
    method, _, share = row.partition('=')
    return f'method={method},sparsity={share}'
  return f'method={"gated" if row == "shuffled" else row}'


def newest(workdir: pathlib.Path) -> dict[str, float]:
  """The newest value of each metric of a run, and seconds of all steps."""
  from gemini_jax.train import metrics_file

  values, seconds, step = {}, [], 0
  if (workdir / metrics_file.FILE).exists():
    for line in metrics_file.all_lines(workdir):
      values |= line
      if 'train/step_seconds' in line:
        seconds.append(line['train/step_seconds'])
      step = line['step']
  if seconds:
    values['seconds'] = statistics.median(seconds) * step
  return values


def go_on_from(dense: pathlib.Path, workdir: pathlib.Path):
  """A copy of a run that is done, as it was at the checkpoint before."""
  from gemini_jax.checkpoint import checkpointer
  from gemini_jax.train import metrics_file

  draft = workdir.with_name(f'{workdir.name}.draft')
  shutil.rmtree(draft, ignore_errors=True)
  shutil.copytree(dense, draft)
  checkpoints = checkpointer.Checkpointer(draft / 'checkpoints')
  *_, before, last = checkpoints.steps()
  shutil.rmtree(checkpoints.path(last))
  size = checkpoints.manifest(before)['metrics_bytes']
  os.truncate(draft / metrics_file.FILE, size)
  draft.rename(workdir)


def train(row: str, seed: int, options: argparse.Namespace):
  """Trains a row to its end."""
  out = options.out / f'seed{seed}'
  out.mkdir(exist_ok=True)
  workdir = out / row
  if row == 'oneshot' and not workdir.exists():
    go_on_from(out / 'dense', workdir)
  command = [
    *(sys.executable, __file__, f'--train={row}'),
    f'--config={EXPERIMENT}:{argument(row, out)}',
    f'--workdir={workdir}',
    f'--config.data.data_dir={options.data_dir}',
    f'--config.data.cache_dir={options.out / "tokens"}',
    f'--config.train.seed={seed}',
    *options.overrides,
  ]
  with (out / f'{row}.log').open('a') as log:
    subprocess.run(
      command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False
    )


def train_here(arguments: list[str], *, is_shuffled: bool) -> int:
  """The command line in this process."""
  from gemini_jax import main as main_lib
  from gemini_jax.data import sources

  class ShuffledLabels(sources.Source):
    """Records whose labels are those of others."""

    def __getitem__(self, index):
      other = np.random.default_rng(0).permutation(len(self))[index]
      label = super().__getitem__(int(other))['label']
      return super().__getitem__(index) | {'label': label}

    @property
    def fingerprint(self):
      return f'shuffled {super().fingerprint}'

  records = sources.records

  def opened(spec, config):
    source = records(spec, config)
    if is_shuffled and spec in config.validation:
      return ShuffledLabels(**vars(source))
    return source

  sources.records = opened
  return main_lib.main(['main', *arguments])


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--rows', default=','.join(ROWS))
  parser.add_argument('--seeds', type=int, default=1)
  options, options.overrides = parser.parse_known_args()
  options.out = options.out.absolute()
  options.out.mkdir(parents=True, exist_ok=True)
  print('| row | test accuracy, % | spread | sparsity, % | seconds |')
  print('| --- | --- | --- | --- | --- |', flush=True)
  for row in options.rows.split(','):
    found = []
    for seed in range(options.seeds):
      workdir = options.out / f'seed{seed}' / row
      if 'test/accuracy' not in newest(workdir):
        train(row, seed, options)
      found.append(newest(workdir))
    values = lambda name, missing, found=found: [
      run.get(name, missing) for run in found
    ]
    accuracies = [100 * a for a in values('test/accuracy', float('nan'))]
    numbers = (
      f'{statistics.mean(accuracies):.2f}',
      f'{statistics.pstdev(accuracies):.2f}',
      f'{100 * statistics.mean(values("train/sparsity", 0.0)):.2f}',
      f'{statistics.mean(values("seconds", float("nan"))):.0f}',
    )
    print(f'| {row} | {" | ".join(numbers)} |', flush=True)


if __name__ == '__main__':
  kind = sys.argv[1] if len(sys.argv) > 1 else ''
  if kind.startswith('--train='):
    sys.exit(train_here(sys.argv[2:], is_shuffled=kind == '--train=shuffled'))
  main()
