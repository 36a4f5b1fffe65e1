"""What compression costs a real model, method beside method.

    python tests/compress_study.py WORKDIR [NAME ...] [--config.field=value ...]
    python tests/compress_study.py WORKDIR speeds
    python tests/compress_study.py WORKDIR control

Each variant, or each that is named, is a run of
--mode=compress on a workdir such as `commands/convert` makes, calibrated with
and judged on different topics of CPython's language reference. Writes the
table that report.md has, and adds to WORKDIR/compress.json. With `speeds` all
models that the file names take turns, in one process, and it has their speeds
from then on: for a time when the machine does nothing else. With `control` half
of the weights are pruned by Wanda's scores with the norms of other inputs,
drawn at random: it loses what the norms are good for, and adds nothing to the
file.
"""

import os
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

import numpy as np

from gemini_jax import host
from gemini_jax import main as main_lib
from gemini_jax import run as run_lib
from gemini_jax.compress import layers, speed
from gemini_jax.parallel import sharding
from gemini_jax.train import compression_table

DATA = (
  "data.train=('python:pydoc_data.topics#[!9::10]',)",
  "data.validation=('python:pydoc_data.topics#[9::10]',)",
  'data.deduplicate=True',
  'data.sequence_length=256',
  'evaluate.batch_size=8',
  'evaluate.max_batches=4',
)
VARIANTS = {
  'int8': ('method=round', 'weights=int8'),
  'int4 nearest': ('method=round', 'weights=int4'),
  'int4 gptq': ('method=gptq', 'weights=int4'),
  **{
    f'{method} {share}': (f'method={method}', share)
    for share in ('alpha=0.5', 'n_m=2:4')
    for method in ('magnitude', 'wanda', 'sparsegpt')
  },
  'joint': ('method=sparsegpt', 'alpha=0.5', 'weights=int4'),
  'float8': ('method=round', 'weights=float8'),
  'nf4': ('method=round', 'weights=nf4'),
  **{
    f'blocks {alpha}': ('method=wanda', 'block=64', f'alpha={alpha}')
    for alpha in (0.5, 0.75, 0.9)
  },
}
# Trained on for as long as two cores take half an hour.
RECOVERED = {
  'int4 nearest': 1e-4,
  'wanda n_m=2:4': 1e-4,
  'sparsegpt n_m=2:4': 1e-4,
  'blocks 0.5': 3e-4,
  'blocks 0.75': 3e-4,
}
VARIANTS |= {
  f'{name} recovered': (
    *(*VARIANTS[name], 'recovery.steps=200'),
    f'recovery.learning_rate={rate}',
  )
  for name, rate in RECOVERED.items()
}


def measure(workdir: pathlib.Path):
  """Writes the speeds of all models of a table, the dense one's beside."""
  rows = compression_table.read(workdir)
  opened = lambda path: run_lib.open_run(run_lib.saved_config(path), path)
  run = opened(workdir)
  with sharding.use(run.mesh):
    variants = {
      row['name']: opened(workdir / row.get('workdir', ''))
      .restore_params()
      .params
      for row in rows
    }
    found = speed.measure(run, variants)
  key = 'decode_tokens_per_second'
  for row in rows:
    row |= found[row['name']]
    row['decode_speedup'] = row[key] / found[compression_table.DENSE][key]
  compression_table.add(workdir, rows)


def control(workdir: pathlib.Path):
  """Wanda with norms of other inputs, on a copy of the workdir."""
  hessians, rng = layers.hessians, np.random.default_rng(0)

  def shuffled(*args):
    return {
      name: diagonal[rng.permutation(len(diagonal))]
      for name, diagonal in hessians(*args).items()
    }

  with tempfile.TemporaryDirectory(dir=workdir.parent) as folder:
    copy = pathlib.Path(folder, 'run')
    shutil.copytree(
      workdir,
      copy,
      copy_function=os.link,
      ignore=shutil.ignore_patterns('compressed', 'compress.json', 'report*'),
    )
    with mock.patch.object(layers, 'hessians', shuffled):
      compress(copy, 'wanda alpha=0.5', ())
    row = compression_table.read(copy)[-1]
    print(f'wanda alpha=0.5 with shuffled norms: loss {row["loss"]:.4f}')


def compress(workdir: pathlib.Path, name: str, flags: tuple[str, ...]):
  """Runs one variant."""
  rows = 2 if name.endswith(' recovered') else 8
  overrides = (
    *(*DATA, f'data.batch_size={rows}', 'compress.sequences=32'),
    *(f'compress.{field}' for field in VARIANTS[name]),
  )
  code = main_lib.main(
    [
      *('main', f'--workdir={workdir}', '--mode=compress'),
      *(f'--config.{field}' for field in overrides),
      *flags,
    ]
  )
  print(f'{name}: exit code {code}', flush=True)


def main():
  host.start_output()
  workdir, *wanted = sys.argv[1:]
  flags = tuple(flag for flag in wanted if flag.startswith('--'))
  wanted = [name for name in wanted if name not in flags]
  if wanted == ['control']:
    control(pathlib.Path(workdir))
    return
  if wanted == ['speeds']:
    measure(pathlib.Path(workdir))
  for name in VARIANTS:
    if not wanted or name in wanted:
      compress(pathlib.Path(workdir), name, flags)
  titles, cells = compression_table.table(
    compression_table.read(pathlib.Path(workdir))
  )
  for line in (titles, *cells):
    print(' | '.join(line))


if __name__ == '__main__':
  main()
