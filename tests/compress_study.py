"""What compression costs a real model, method beside method.

    python tests/compress_study.py WORKDIR [NAME ...]

Each variant, or those whose names contain one of the NAMEs, is a run of
--mode=compress on a workdir such as `commands/convert` makes, calibrated with
and judged on different topics of CPython's language reference. Writes the
table that report.md has, and adds to WORKDIR/compress.json.
"""

import pathlib
import sys

from gemini_jax import host
from gemini_jax import main as main_lib
from gemini_jax.train import compression_table

DATA = (
  "data.train=('python:pydoc_data.topics#[!9::10]',)",
  "data.validation=('python:pydoc_data.topics#[9::10]',)",
  'data.deduplicate=True',
  'data.batch_size=8',
  'data.sequence_length=256',
  'evaluate.max_batches=4',
  'compress.sequences=32',
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
    f'{name} {alpha}': (f'alpha={alpha}', 'block=64', *fields)
    for name, fields in {
      'blocks': ('method=wanda',),
      'blocks recovered': (
        *('method=wanda', 'recovery.steps=100'),
        'recovery.learning_rate=3e-4',
      ),
    }.items()
    for alpha in (0.5, 0.75, 0.9)
  },
  'recovered': (
    *('method=sparsegpt', 'n_m=2:4', 'recovery.steps=200'),
    'recovery.learning_rate=2e-5',
  ),
}


def main():
  host.start_output()
  workdir, *wanted = sys.argv[1:]
  for name, fields in VARIANTS.items():
    if wanted and not any(part in name for part in wanted):
      continue
    overrides = (*DATA, *(f'compress.{field}' for field in fields))
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
