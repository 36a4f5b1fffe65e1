"""Settings of the host process that make a step faster; files of its disks."""

import ctypes
import errno
import os
import pathlib
import stat
import sys

# glibc's mallopt parameters, from malloc.h.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


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


def check_regular(path: str | os.PathLike):
  """Refuses what is no file, or link to one, before it is read.

  A FIFO would wait for its writer, a device may never end.

  Raises:
    OSError: nothing is there, or something else.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise OSError(errno.EINVAL, 'not a regular file', str(path))


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
