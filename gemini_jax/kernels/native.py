"""Kernels in C++ for CPUs, compiled for this machine by its own compiler.

XLA copies a layer out of a stack before it multiplies with it; a kernel reads
it where it is. Nothing is compiled until a kernel is asked for. The library is
kept in the cache folder, under a name that holds all that it depends on.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time
from typing import Any

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host

_FOLDER = pathlib.Path(__file__).parent
_SOURCES = tuple(
  _FOLDER / name
  for name in ('integer_products.cc', 'block_product.cc', 'float_product.cc')
)
_HEADER = _FOLDER / 'product.h'
# Handlers in the library, by the names under which jax knows them.
_INT8, _INT4 = 'gemini_jax_int8_product', 'gemini_jax_int4_product'
_BLOCKS, _FLOATS = 'gemini_jax_block_product', 'gemini_jax_float_product'
_SYMBOLS = {
  _INT8: 'GeminiInt8Product',
  _INT4: 'GeminiInt4Product',
  _BLOCKS: 'GeminiBlockProduct',
  _FLOATS: 'GeminiFloatProduct',
}
_OPTIONS = ('-std=c++17', '-O3', '-march=native', '-shared', '-fPIC', '-w')
_SECONDS = 120
# Beyond it sums of products of bytes leave int32.
LARGEST_INPUT = 2**15
# Beyond these XLA is as fast: its product of several rows of floats or of int8,
# making the array of 4-bit codes, or its product of several rows with blocks.
MOST_FLOAT_ROWS = {'float32': 16, 'bfloat16': 4}
MOST_ROWS = 4
MOST_INT4_ROWS = 16
MOST_BLOCK_ROWS = 32
# The size of a block is a multiple of it.
LANES = 16


class NoKernelError(Exception):
  """The kernels can't be compiled or loaded here; says why."""


def choose(name: str) -> str:
  """The kernel of few rows' products on this machine, 'xla' or 'native'.

  Args:
    name: as `generate.cpu_kernel`.

  Raises:
    ConfigError: native is asked for by name and can't be had.
  """
  if name == 'xla':
    return name
  try:
    load()
  except NoKernelError as error:
    config_lib.check(
      name == 'auto',
      f'generate.cpu_kernel={name!r}: {error}; use auto or xla',
    )
    logging.info('products by XLA; no kernel of ours: %s', error)
    return 'xla'
  logging.info(
    'products by our kernels, of up to %d rows with float32, %d with bfloat16, '
    '%d with int8, %d with int4 and %d with blocks',
    *MOST_FLOAT_ROWS.values(),
    *(MOST_ROWS, MOST_INT4_ROWS, MOST_BLOCK_ROWS),
  )
  return 'native'


def int8_product(
  x_RD: jax.Array, stack_LFD: jax.Array, scale_LF: jax.Array, layer: jax.Array
) -> jax.Array:
  """float32[R, F], rows times the matrix of a layer; after `load`.

  Args:
    x_RD: float32.
    stack_LFD: int8, matrices.
    scale_LF: float32, of each output.
    layer: int32, which matrix.
  """
  num_out = stack_LFD.shape[1]
  return _call(_INT8, num_out, x_RD, stack_LFD, scale_LF, layer)


def int4_product(
  group: int,
  x_RD: jax.Array,
  stack_LFP: jax.Array,
  scale_LFG: jax.Array,
  layer: jax.Array,
) -> jax.Array:
  """float32[R, F], rows times the matrix of a layer; after `load`.

  Args:
    group: inputs that share a scale, an even number.
    x_RD: float32.
    stack_LFP: uint8, two codes a byte, see weights/int4.py.
    scale_LFG: bfloat16, of each group.
    layer: int32, which matrix.
  """
  operands = (x_RD, stack_LFP, scale_LFG, layer)
  return _call(_INT4, stack_LFP.shape[1], *operands, group=np.int64(group))


def block_product(
  x_RD: jax.Array,
  stack_LFKbb: jax.Array,
  index_LFK: jax.Array,
  layer: jax.Array,
) -> jax.Array:
  """float32[R, F b], rows times the blocks of a layer; after `load`.

  Args:
    x_RD: float32.
    stack_LFKbb: float32 or bfloat16, see weights/block_ell.py.
    index_LFK: int32, which block of inputs each one multiplies.
    layer: int32, which matrix.
  """
  num_out = stack_LFKbb.shape[1] * stack_LFKbb.shape[-1]
  return _call(_BLOCKS, num_out, x_RD, stack_LFKbb, index_LFK, layer)


def float_product(
  is_table: bool, x_RD: jax.Array, stack: jax.Array, layer: jax.Array
) -> jax.Array:
  """float32[R, F], rows times the matrix of a layer; after `load`.

  Args:
    is_table: whether the outputs come first in the matrix.
    x_RD: float32.
    stack: float32 or bfloat16, [L, D, F], of tables [L, F, D].
    layer: int32, which matrix.
  """
  num_out = stack.shape[1 if is_table else 2]
  return _call(_FLOATS, num_out, x_RD, stack, layer, is_table=is_table)


def _call(
  target: str, num_out: int, x_RD: jax.Array, *rest: Any, **options: Any
) -> jax.Array:
  shape = x_RD.shape[0], num_out
  call = jax.ffi.ffi_call(
    target,
    jax.ShapeDtypeStruct(shape, np.float32),
    vmap_method='sequential',
  )
  return call(x_RD, *rest, **options)


def load():
  """Makes the products callable; compiles it if that was not done before.

  Raises:
    NoKernelError: there is no compiler, or it fails.
  """
  if reason := _load():
    raise NoKernelError(reason)


@functools.cache
def _load() -> str:
  """Compiles and registers once in a process; says why it can't."""
  if jax.default_backend() != 'cpu':
    return f'the device is a {jax.default_backend()}'
  compiler = os.environ.get('CXX') or shutil.which('c++')
  if compiler is None:
    return 'no C++ compiler (c++, or the one that CXX names)'
  try:
    library = ctypes.CDLL(str(_compiled(compiler)))
  except (OSError, subprocess.SubprocessError) as error:
    return f'{compiler}: {_reason(error)}'
  for target, symbol in _SYMBOLS.items():
    jax.ffi.register_ffi_target(
      target, jax.ffi.pycapsule(getattr(library, symbol)), platform='cpu'
    )
  return ''


def _compiled(compiler: str) -> pathlib.Path:
  """The library's path; raises what starting the compiler raises."""
  parts = (compiler, *_OPTIONS, _processor(), jax.__version__)
  digest = hashlib.sha256('\n'.join(parts).encode())
  for file in (*_SOURCES, _HEADER):
    digest.update(file.read_bytes())
  path = host.cache_folder('native') / f'{digest.hexdigest()[:32]}.so'
  if path.exists():
    return path
  begin = time.monotonic()
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    unfinished = pathlib.Path(folder) / path.name
    folders = f'-I{jax.ffi.include_dir()}', f'-I{_FOLDER}'
    subprocess.run(
      [compiler, *_OPTIONS, *folders, '-x', 'c++', '-', '-o', str(unfinished)],
      # As one file, since most of the time goes into XLA's headers.
      input=''.join(f'#include "{file.name}"\n' for file in _SOURCES),
      check=True,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
    unfinished.replace(path)
  names = ', '.join(file.name for file in _SOURCES)
  logging.info('compiled %s in %.1f s', names, time.monotonic() - begin)
  return path


def _processor() -> str:
  """What -march=native depends on: the flags of the processor."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  return next(
    (line for line in lines if line.startswith(('flags', 'Features'))), ''
  )


def _reason(error: Exception) -> str:
  output = getattr(error, 'stderr', None) or str(error)
  return (output.strip().splitlines() or ['it failed'])[-1]
