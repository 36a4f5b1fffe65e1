r"""Benchmarks: a training step, alone or in turn with nanoGPT's, and its parts.

  python -m gemini_jax.commands.bench --what=step --config=FILE [--nanogpt=DIR]
  python -m gemini_jax.commands.bench --config=FILE \
      --what=attention|cross_entropy|decode|checkpoint|data

Times are reported with the ceilings of the device in the same run: the rates of
a matrix product and of a copy. Prints a summary, and a JSON object as its last
line. All data are random, so that no value is cheaper than another.
"""

import json
import sys
from collections.abc import Sequence

from gemini_jax import command, help_page, host
from gemini_jax import config as config_lib
from gemini_jax.commands import bench_kernels, bench_step, bench_system

WHAT = {
  'step': bench_step.bench_step,
  'attention': bench_kernels.bench_attention,
  'cross_entropy': bench_kernels.bench_cross_entropy,
  'decode': bench_system.bench_decode,
  'checkpoint': bench_system.bench_checkpoint,
  'data': bench_system.bench_data,
}


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark that --what names; returns the exit code."""
  flags = {'what': 'step', 'nanogpt': ''}
  code = help_page.exit_code(argv, __doc__ or '', {'config': None, **flags})
  if code is not None:
    return code
  try:
    parsed = command.parse(argv, flags)
    what = parsed.values['what']
    config_lib.check(
      what in WHAT, f'--what={what} must be one of {", ".join(WHAT)}'
    )
    nanogpt = parsed.values['nanogpt']
    nanogpt = str(command.folder('nanogpt', nanogpt)) if nanogpt else ''
    result = WHAT[what](parsed.config, nanogpt)
  except config_lib.ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(json.dumps(result))
  return 0


if __name__ == '__main__':
  host.keep_freed_memory()
  sys.exit(main(sys.argv))
