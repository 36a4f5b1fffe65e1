"""Output that nobody reads ends nothing."""

import io
import os
import subprocess
import sys

import tiny
from gemini_jax import host


def test_writing_to_a_closed_pipe():
  reader, writer = os.pipe()
  os.close(reader)
  stream = io.BufferedWriter(host._Lossy(writer, 'w'))
  for _ in range(2):
    stream.write(b'words')
    stream.flush()
  stream.close()


def test_a_pipe_that_is_full_for_a_moment():
  """A reader that shares the pipe may have made it non-blocking."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  program = 'import os\nwhile os.read(0, 65536): pass'
  with subprocess.Popen([sys.executable, '-c', program], stdin=reader) as drain:
    os.close(reader)
    with io.BufferedWriter(host._Lossy(writer, 'w')) as stream:
      assert stream.write(b'x' * (1 << 22)) == 1 << 22
    assert drain.wait(30) == 0


def test_closed_and_narrow_streams():
  program = (
    'import sys\n'
    'from gemini_jax import host\n'
    'host.keep_output()\n'
    "print('caf\\xe9 \\u4e00')\n"
    "print('dropped', file=sys.stderr, flush=True)\n"
    'assert not sys.stderr.isatty()\n'
  )
  done = subprocess.run(
    ['sh', '-c', f'exec "{sys.executable}" -c "$0" 2>&-', program],
    cwd=tiny.ROOT,
    env=os.environ | {'PYTHONIOENCODING': 'latin-1'},
    stdout=subprocess.PIPE,
    check=True,
  )
  assert done.stdout == b'caf\xe9 \\u4e00\n'
