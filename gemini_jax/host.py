"""Settings of the host process: before jax starts, and for faster steps."""

import ctypes
import os
import sys
from importlib import metadata

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
