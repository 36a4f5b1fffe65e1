"""The host: its paths, and settings of the process for faster steps."""

import ctypes
import os
import pathlib
import sys

# glibc's mallopt parameters, from malloc.h.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


def expand_path(path: str | os.PathLike) -> pathlib.Path:
  """A path that a user wrote, with `~` and `~name` as the shell has them."""
  return pathlib.Path(os.path.expanduser(path))


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
