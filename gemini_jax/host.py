"""Settings of the host process: its memory, its output."""

import ctypes
import io
import os
import select
import sys
from typing import Any, TextIO

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
