"""What compression costs a real model, method beside method.

    python tests/compress_study.py WORKDIR [NAME ...]
    python tests/compress_study.py WORKDIR speeds

Each variant, or each that is named, is a run of
--mode=compress on a workdir such as `commands/convert` makes, calibrated with
and judged on different topics of CPython's language reference. Writes the
table that report.md has, and adds to WORKDIR/compress.json. With `speeds` all
models that the file names take turns, in one process, and it has their speeds
from then on: for a time when the machine does nothing else.
"""

import pathlib
import sys

from gemini_jax import host
from gemini_jax import main as main_lib
from gemini_jax import run as run_lib
from gemini_jax.compress import speed
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


def main():
  host.start_output()
  workdir, *wanted = sys.argv[1:]
  if wanted == ['speeds']:
    measure(pathlib.Path(workdir))
  for name, fields in VARIANTS.items():
    if wanted and name not in wanted:
      continue
    rows = 2 if name.endswith(' recovered') else 8
    overrides = (
      *(*DATA, f'data.batch_size={rows}', 'compress.sequences=32'),
      *(f'compress.{field}' for field in fields),
    )
    flags = [f'--config.{field}' for field in overrides]
    code = main_lib.main(
      ['main', f'--workdir={workdir}', '--mode=compress', *flags]
    )
    print(f'{name}: exit code {code}', flush=True)
  titles, cells = compression_table.table(
    compression_table.read(pathlib.Path(workdir))
  )
  for line in (titles, *cells):
    print(' | '.join(line))


if __name__ == '__main__':
  main()
