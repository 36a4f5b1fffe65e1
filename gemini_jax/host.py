"""The host process: XLA's flags, memory, output, files and caches."""

import atexit
import contextlib
import ctypes
import errno
import functools
import glob
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

import absl.logging

# Error numbers for a file that no longer exists.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

# What reading JSON raises that is damaged, or not of the expected structure.
MALFORMED = (
  ValueError,
  LookupError,
  TypeError,
  AttributeError,
  RecursionError,
)

# glibc's mallopt parameters, from malloc.h.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2
_MMAP_THRESHOLD = -3
# Bytes of a step's temporaries from which memory is worth more than time.
_LARGE_STEP = 1 << 30

# Releases whose CPU back end fuses some reductions into kernels that give
# wrong sums or crash (jax issues 39103 and 39257), and the flag that disables
# it. 0.10.2 is the last release for Python 3.11.
_FAULTY_JAXLIBS = ('0.10.2', '0.11.0')
FUSIONS = '--xla_cpu_experimental_ynn_fusion_type'


def avoid_faulty_fusions():
  """Disables reduce fusions on CPUs if this jaxlib computes them wrong.

  Call before jax first runs anything, which is when XLA reads its flags. The
  flag is left alone if the user has set it in XLA_FLAGS. Only the CPU back end
  knows it, so it is not set if JAX_PLATFORMS excludes CPUs.
  """
  platforms = os.environ.get('JAX_PLATFORMS', '')
  flags = os.environ.get('XLA_FLAGS', '')
  if platforms and 'cpu' not in platforms.split(','):
    return
  if FUSIONS in flags or metadata.version('jaxlib') not in _FAULTY_JAXLIBS:
    return
  os.environ['XLA_FLAGS'] = f'{flags} {FUSIONS}=-reduce'.lstrip()


def keep_freed_memory():
  """Makes malloc keep freed memory for reuse by the process.

  XLA's CPU back end allocates a step's temporaries anew every step; returning
  them to the system in between cost about a fifth of a small step in page
  faults (see LOG.md). The process keeps its peak memory. Call before jax
  starts; without glibc it does nothing.
  """
  _mallopt(
    (_ARENA_MAX, 1),
    (_MMAP_MAX, 0),
    (_TRIM_THRESHOLD, 2**31 - 1),
    (_TOP_PAD, 256 << 20),
  )


def return_freed_blocks(num_bytes: int):
  """Makes malloc return large blocks to the system again, if steps are large.

  Freed memory is cut up by other allocations, so that the next step's
  temporaries don't fit where the last ones were: a process grew to five times
  the `num_bytes` of its temporaries (see LOG.md). Page faults are a small part
  of large steps.
  """
  if num_bytes > _LARGE_STEP:
    _mallopt((_MMAP_THRESHOLD, 32 << 20), (_MMAP_MAX, 65536))


def _mallopt(*options: tuple[int, int]):
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    for option, value in options:
      mallopt(option, value)


class _Lossy(io.FileIO):
  """A file descriptor whose writes never fail."""

  def write(self, data: Any, /) -> int:
    """Writes `data`; drops it if the reader has gone."""
    try:
      count = super().write(data)
      while count is None:
        # The pipe is non-blocking, by the reader, and full.
        select.select([], [self.fileno()], [])
        count = super().write(data)
    except OSError:
      # A closed pipe (EPIPE), a closed terminal (EIO), a full disk.
      return memoryview(data).nbytes
    return count


def keep_output():
  """Replaces stdout and stderr by streams whose writes never fail.

  Output after the reader has gone (`| head -1`, a closed terminal) is dropped,
  and characters that the encoding lacks are escaped. Call before anything keeps
  a reference to the streams.
  """
  sys.stdout = _lossy(sys.stdout, 1)
  sys.stderr = _lossy(sys.stderr, 2)


def start_output():
  """Output that never fails, and a log of what a user wants to know.

  Orbax tells of every file, JAX of every back end that it does not find.
  """
  keep_output()
  # Imports may have set up handlers of their own.
  logging.basicConfig(
    level=logging.INFO, format='%(levelname)s %(message)s', force=True
  )
  absl.logging.set_verbosity(absl.logging.WARNING)
  logging.getLogger('jax').setLevel(logging.WARNING)
  logging.getLogger('jax._src.xla_bridge').addFilter(_in_one_line)


def _has_nvidia_gpu() -> bool:
  """Whether there is a device file of one; on Windows' Linux /dev/dxg."""
  return bool(glob.glob('/dev/nvidia*') or glob.glob('/dev/dxg'))


def _in_one_line(record: logging.LogRecord) -> bool:
  """Shortens what JAX logs of a plug-in that it cannot start.

  A CUDA plug-in without a GPU is no mistake, and nothing is logged of it.
  """
  if record.exc_info and record.exc_info[1] is not None:
    if 'cuda' in record.getMessage() and not _has_nvidia_gpu():
      return False
    reason = str(record.exc_info[1]).partition('\n')[0]
    record.msg, record.args = f'{record.getMessage()}: {reason}', ()
    record.exc_info = record.exc_text = None
    record.levelno, record.levelname = logging.WARNING, 'WARNING'
  return True


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
  """Delays the KeyboardInterrupt of Ctrl-C until after the block.

  For libraries that would take it for an error of their own. A second Ctrl-C is
  not delayed. Threads other than the main one never receive it.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.getsignal(signal.SIGINT)
  if before is not signal.default_int_handler:
    # Already ignored, or handled by a preemption guard.
    yield
    return
  interrupted = False

  def note(number: int, frame: Any):
    nonlocal interrupted
    if interrupted:
      raise KeyboardInterrupt
    interrupted = True

  signal.signal(signal.SIGINT, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if interrupted:
    raise KeyboardInterrupt


def expand_path(path: str | os.PathLike) -> pathlib.Path:
  """`path` with `~` and `~user` expanded; unchanged if the user is unknown."""
  return pathlib.Path(os.path.expanduser(path))


def cache_folder(name: str) -> pathlib.Path:
  """The folder of a cache: ~/.cache/gemini_jax/`name`.

  XDG_CACHE_HOME replaces ~/.cache. If there is no home folder, or it is not
  writable, a temporary folder is used, which is removed when the process ends.
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
    # Writing to it will raise the error.
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
  """OSError unless `path` is a regular file or a link to one.

  Reading a FIFO would wait for its writer; a device may never end.

  Raises:
    OSError: the file does not exist or is not a regular file.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise OSError(errno.EINVAL, 'not a regular file', str(path))


def replace_file(path: pathlib.Path, content: bytes):
  """Replaces a file atomically: a reader sees the old content or the new.

  Raises:
    OSError: it cannot be written; the old file is then unchanged.
  """
  draft = path.with_name(f'{path.name}.draft')
  # Never written to, in case it is something else, such as a FIFO.
  draft.unlink(missing_ok=True)
  with draft.open('xb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  draft.replace(path)


def read_file(path: str | os.PathLike, limit: int = 1 << 26) -> bytes:
  """The content of a regular file of at most `limit` bytes.

  Raises:
    OSError: the file does not exist, is not a regular file, or is larger.
  """
  check_regular(path)
  content = bytearray()
  with pathlib.Path(path).open('rb') as file:
    # A read of `limit` bytes would allocate them, however small the file is.
    while chunk := file.read(1 << 20):
      content += chunk
      if len(content) > limit:
        raise OSError(errno.EFBIG, f'larger than {limit:,} bytes', str(path))
  return bytes(content)


def is_at(descriptor: int, path: pathlib.Path) -> bool:
  """Whether the open file is the one at `path`."""
  try:
    return os.path.samestat(os.fstat(descriptor), os.lstat(path))
  except OSError as error:
    if error.errno in GONE:
      return False
    raise
