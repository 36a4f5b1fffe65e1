"""XLA's flags, output that nobody reads, paths and caches without a home."""

import io
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import types
from importlib import metadata

import pytest

import tiny
from gemini_jax import host

# Jaxlib 0.10.2 gives 6.41 for the last row, 1.44 is right (jax issue 39103).
PROGRAM = """
import numpy as np
import gemini_jax
import jax, jax.numpy as jnp
rng = np.random.default_rng(0)
m_HH = rng.normal(size=(3, 3)).astype(np.float32)
r_NH = rng.normal(size=(32769, 3)).astype(np.float32)
function = jax.jit(jax.vmap(lambda r_H: jnp.sum((m_HH @ r_H) ** 2)))
error_N = np.asarray(function(r_NH)) - np.sum((r_NH @ m_HH.T) ** 2, axis=1)
print(np.abs(error_N).max())
"""


def test_reductions_are_right_as_a_user_runs_them():
  names = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS')
  environment = {k: v for k, v in os.environ.items() if k not in names}
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert float(result.stdout) < 1e-4


@pytest.mark.parametrize(
  ('device', 'plugin', 'expected'),
  [
    ([], 'xla_cuda12', ''),
    (
      ['/dev/nvidia0'],
      'xla_cuda12',
      'WARNING Exception of xla_cuda12: no GPU\n',
    ),
    ([], 'xla_other', 'WARNING Exception of xla_other: no GPU\n'),
  ],
)
def test_a_plug_in_that_cannot_start_is_no_traceback(
  monkeypatch, device, plugin, expected
):
  monkeypatch.setattr(host.glob, 'glob', lambda pattern: device)
  stream = io.StringIO()
  logger = logging.getLogger('plug-in test')
  handler = logging.StreamHandler(stream)
  handler.setFormatter(logging.Formatter('%(levelname)s %(message)s'))
  logger.addHandler(handler)
  logger.addFilter(host._in_one_line)
  logger.propagate = False
  try:
    raise RuntimeError('no GPU\nand more')
  except RuntimeError:
    logger.exception('Exception of %s', plugin)
  logger.info('a line')
  assert stream.getvalue() == expected


@pytest.mark.parametrize(
  ('jaxlib', 'platforms', 'flags', 'expected'),
  [
    ('0.10.2', 'cpu', None, f'{host.FUSIONS}=-reduce'),
    ('0.11.0', None, '', f'{host.FUSIONS}=-reduce'),
    ('0.10.2', 'cuda,cpu', '--other=1', f'--other=1 {host.FUSIONS}=-reduce'),
    ('0.10.2', 'tpu', '--other=1', '--other=1'),
    ('0.12.0.1', 'cpu', None, None),
    ('0.10.2', 'cpu', f'{host.FUSIONS}=all', f'{host.FUSIONS}=all'),
  ],
)
def test_faulty_fusions_are_off_where_they_are(
  monkeypatch, jaxlib, platforms, flags, expected
):
  for name, value in (('JAX_PLATFORMS', platforms), ('XLA_FLAGS', flags)):
    monkeypatch.delenv(name, raising=False)
    if value is not None:
      monkeypatch.setenv(name, value)
  monkeypatch.setattr(metadata, 'version', {'jaxlib': jaxlib}.get)
  host.avoid_faulty_fusions()
  assert os.environ.get('XLA_FLAGS') == expected


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  host._temporary_folder.cache_clear()
  yield
  host._temporary_folder.cache_clear()


def test_a_home_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/homes/a')
  assert host.expand_path('~/x') == pathlib.Path('/homes/a/x')
  assert host.expand_path(pathlib.Path('~')) == pathlib.Path('/homes/a')
  assert host.expand_path('x/~/y') == pathlib.Path('x/~/y')
  assert host.expand_path('~nobody_here/x') == pathlib.Path('~nobody_here/x')


def test_caches_are_in_the_home(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  expected = tmp_path / '.cache/gemini_jax/xla'
  assert host.cache_folder('xla') == expected and expected.is_dir()
  monkeypatch.setenv('XDG_CACHE_HOME', f'{tmp_path}/other')
  assert host.cache_folder('xla') == tmp_path / 'other/gemini_jax/xla'


def test_without_a_home_they_are_temporary(monkeypatch, tmp_path, caplog):
  # Nobody has this number.
  monkeypatch.delenv('HOME')
  monkeypatch.setattr(os, 'getuid', lambda: 12345678)
  folder = host.cache_folder('tokens')
  assert folder.parent.parent == tmp_path and folder.parent.is_dir()
  assert host.cache_folder('xla').parent == folder.parent
  assert caplog.text.count('no home folder is known') == 1


def test_where_nothing_can_be_made_they_are_temporary(
  monkeypatch, tmp_path, caplog
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('HOME', str(tmp_path / 'file'))
  folder = host.cache_folder('tokens')
  assert folder.parent.parent == tmp_path
  assert 'cannot be made: Not a directory' in caplog.text
  # Nor a temporary one: the path says where it would have been.
  host._temporary_folder.cache_clear()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'file'))
  folder = host.cache_folder('tokens')
  assert folder == tmp_path / 'file/.cache/gemini_jax/tokens'


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


def test_an_interrupt_waits_for_the_end_of_a_block():
  steps = []
  with pytest.raises(KeyboardInterrupt), host.no_interrupt():
    signal.raise_signal(signal.SIGINT)
    steps.append('after the first')
  assert steps == ['after the first']
  with pytest.raises(KeyboardInterrupt), host.no_interrupt():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    steps.append('after the second')
  assert len(steps) == 1
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(('num_bytes', 'calls'), [(1 << 29, 0), (1 << 31, 2)])
def test_large_steps_return_their_memory(monkeypatch, num_bytes, calls):
  made = []
  library = types.SimpleNamespace(mallopt=lambda *option: made.append(option))
  monkeypatch.setattr(host.ctypes, 'CDLL', lambda _: library)
  monkeypatch.setattr(host.sys, 'platform', 'linux')
  host.return_freed_blocks(num_bytes)
  assert len(made) == calls
