r"""Benchmarks: a training step, alone or in turn with nanoGPT's, and its parts.

  python -m gemini_jax.commands.bench --what=step --config=FILE [--nanogpt=DIR]
  python -m gemini_jax.commands.bench --what=decode --config=FILE \
      [--gguf=FILE] [--huggingface=DIR]
  python -m gemini_jax.commands.bench --config=FILE \
      --what=attention|cross_entropy|checkpoint|data

Decoding is timed in float32, bfloat16 and int8 for 1 and 8 rows; with a GGUF
file llama.cpp (pip install xllamacpp), with a folder of Hugging Face's
transformers take turns with it.

Times are reported with the ceilings of the device in the same run: the rates of
a matrix product and of a copy. Prints a summary, and a JSON object as its last
line. All data are random, so that no value is cheaper than another.
"""

import json
import sys
from collections.abc import Sequence

from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax.commands import (
  bench_decode,
  bench_kernels,
  bench_step,
  bench_system,
  peer,
  program,
)

WHAT = {
  'step': bench_step.bench_step,
  'attention': bench_kernels.bench_attention,
  'cross_entropy': bench_kernels.bench_cross_entropy,
  'decode': bench_decode.bench_decode,
  'checkpoint': bench_system.bench_checkpoint,
  'data': bench_system.bench_data,
}


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark that --what names; returns the exit code."""
  flags = {'what': 'step', 'nanogpt': '', 'gguf': '', 'huggingface': ''}

  def work():
    parsed = command.parse(argv, flags)
    what = parsed.values['what']
    config_lib.check(
      what in WHAT, f'--what={what} must be one of {", ".join(WHAT)}'
    )
    paths = {name: parsed.values[name] for name in flags if name != 'what'}
    for name in ('nanogpt', 'huggingface'):
      if paths[name]:
        paths[name] = str(command.folder(name, paths[name]))
    print(json.dumps(WHAT[what](parsed.config, peer.Paths(**paths))))

  return program.main(argv, __doc__, {'config': None, **flags}, work)


if __name__ == '__main__':
  host.keep_freed_memory()
  sys.exit(main(sys.argv))
