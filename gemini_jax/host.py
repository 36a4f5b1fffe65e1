"""The host process: XLA's flags, memory, output, files and caches."""

import atexit
import contextlib
import ctypes
import errno
import functools
import io
import logging
import os
import pathlib
import select
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import metadata
from typing import Any, TextIO

# What the system says of a file that is no longer where it was.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

# glibc's mallopt parameters, from malloc.h.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2

# Releases whose CPU back end fuses some reductions into kernels that give
# wrong sums or crash (jax issues 39103 and 39257), and the flag that keeps
# them apart. 0.10.2 is the last release for Python 3.11.
_FAULTY_JAXLIBS = ('0.10.2', '0.11.0')
FUSIONS = '--xla_cpu_experimental_ynn_fusion_type'


def avoid_faulty_fusions():
  """Turns off reduce fusions of CPUs where this jaxlib computes them wrong.

  XLA reads its flags when jax first runs something: call before that. What a
  user says of these fusions in XLA_FLAGS is kept. Only CPUs know the flag, so
  it is not set where JAX_PLATFORMS leaves them out.
  """
  platforms = os.environ.get('JAX_PLATFORMS', '')
  flags = os.environ.get('XLA_FLAGS', '')
  if platforms and 'cpu' not in platforms.split(','):
    return
  if FUSIONS in flags or metadata.version('jaxlib') not in _FAULTY_JAXLIBS:
    return
  os.environ['XLA_FLAGS'] = f'{flags} {FUSIONS}=-reduce'.lstrip()


def keep_freed_memory():
  """Lets the process reuse freed memory without asking the system again.

  XLA's CPU back end allocates a step's temporaries anew each time; giving
  them back in between cost about a fifth of a small step in page faults (see
  LOG.md). Memory stays at its peak. Call before jax starts; does nothing
  where the C library is not glibc.
  """
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)
  mallopt(_TRIM_THRESHOLD, 2**31 - 1)
  mallopt(_TOP_PAD, 256 << 20)


class _Lossy(io.FileIO):
  """A file descriptor to which writing never fails."""

  def write(self, data: Any, /) -> int:
    """Writes `data`, or drops it where nobody can read it any more."""
    try:
      count = super().write(data)
      while count is None:
        # The reader has made the pipe non-blocking, and it is full.
        select.select([], [self.fileno()], [])
        count = super().write(data)
    except OSError:
      # A closed pipe (EPIPE), a terminal that is gone (EIO), a full disk.
      return memoryview(data).nbytes
    return count


def keep_output():
  """Makes stdout and stderr streams that cannot end a run.

  What is written after the reader has gone (`| head -1`, a closed terminal)
  is dropped, and characters that the encoding lacks are escaped.
  Call before anything keeps a reference to the streams.
  """
  sys.stdout = _lossy(sys.stdout, 1)
  sys.stderr = _lossy(sys.stderr, 2)


def _lossy(stream: TextIO | None, descriptor: int) -> TextIO:
  if stream is None:
    # The process was started with the descriptor closed.
    return open(os.devnull, 'w', encoding='utf-8')
  stream.flush()
  return io.TextIOWrapper(
    io.BufferedWriter(_Lossy(descriptor, 'w', closefd=False)),
    encoding=stream.encoding,
    errors='backslashreplace',
    line_buffering=descriptor == 2 or stream.isatty(),
  )


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
  """Ctrl-C is a KeyboardInterrupt after the block, and not inside of it.

  For libraries that take it for an error of theirs. A second one is not held
  back. Other threads than the main one see no Ctrl-C.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.getsignal(signal.SIGINT)
  if before is not signal.default_int_handler:
    # Ignored, or turned into a wish to stop already.
    yield
    return
  wished = False

  def note(number: int, frame: Any):
    nonlocal wished
    if wished:
      raise KeyboardInterrupt
    wished = True

  signal.signal(signal.SIGINT, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if wished:
    raise KeyboardInterrupt


def expand_path(path: str | os.PathLike) -> pathlib.Path:
  """`path` with `~` and `~user` expanded, unchanged where that is unknown."""
  return pathlib.Path(os.path.expanduser(path))


def cache_folder(name: str) -> pathlib.Path:
  """Where files that can be made again are kept: ~/.cache/gemini_jax/`name`.

  XDG_CACHE_HOME stands for ~/.cache. Without a home folder, or where nothing
  can be made in it, the files go to a temporary folder that is removed when
  the process ends.
  """
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  path = expand_path(root) / 'gemini_jax' / name
  if path.parts[0].startswith('~'):
    reason = 'no home folder is known'
  else:
    try:
      path.mkdir(parents=True, exist_ok=True)
      return path
    except OSError as error:
      reason = f'{path} cannot be made: {error.strerror}'
  try:
    return _temporary_folder(reason) / name
  except OSError:
    # Whoever writes there says that it cannot be written.
    return path


@functools.cache
def _temporary_folder(reason: str) -> pathlib.Path:
  folder = tempfile.mkdtemp(prefix='gemini_jax_')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  logging.warning(
    '%s: caches are in %s until this process ends; set XDG_CACHE_HOME to a '
    'folder that stays',
    reason,
    folder,
  )
  return pathlib.Path(folder)


def check_regular(path: str | os.PathLike):
  """Refuses what is no file, or link to one, before it is read.

  A FIFO would wait for its writer, a device may never end.

  Raises:
    OSError: nothing is there, or something else.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise OSError(errno.EINVAL, 'not a regular file', str(path))


def replace_file(path: pathlib.Path, content: bytes):
  """Writes a file in one piece: a reader sees the old one or the new one.

  Raises:
    OSError: it cannot be written; the old one is then still there.
  """
  draft = path.with_name(f'{path.name}.draft')
  # Whatever has that name, such as a FIFO, is not written to.
  draft.unlink(missing_ok=True)
  with draft.open('xb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  draft.replace(path)


def read_file(path: str | os.PathLike, limit: int = 1 << 26) -> bytes:
  """What a regular file holds, which is at most `limit` bytes.

  Raises:
    OSError: nothing is there, something else, or more.
  """
  check_regular(path)
  with pathlib.Path(path).open('rb') as file:
    content = file.read(limit + 1)
  if len(content) > limit:
    raise OSError(errno.EFBIG, f'larger than {limit:,} bytes', str(path))
  return content


def is_at(descriptor: int, path: pathlib.Path) -> bool:
  """Whether the open file is the one at `path`."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))
  except OSError as error:
    if error.errno in GONE:
      return False
    raise
