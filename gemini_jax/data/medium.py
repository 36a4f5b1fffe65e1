"""Code that pictures, sounds and videos share: files, the canvas, errors.

H, W canvas; C channels; F frames; N samples.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import unusable


class Medium(NamedTuple):
  """A picture, sound or video on the canvas of a model.

  Attributes:
    values: uint8[H, W, C], int16[N] or uint8[F, H, W, C]; 0 outside `size`.
    size: int32[R], the extent on the canvas: (height, width), (samples,) or
      (frames, height, width).
  """

  values: np.ndarray
  size: np.ndarray

  @property
  def content(self) -> np.ndarray:
    """The values within the extent."""
    return self.values[tuple(map(slice, self.size))]


def check(condition: Any, reason: str):
  """UnusableError(reason) unless the condition holds."""
  if not condition:
    raise unusable.UnusableError(reason)


@contextlib.contextmanager
def decoding(reason: str) -> Iterator[None]:
  """Turns what a decoder raises on damaged bytes into UnusableError(reason).

  Wraps calls of a decoding library alone, so that a bug of this package is not
  taken for a damaged file.
  """
  try:
    yield
  # Each format has exceptions of its own; forged sizes raise MemoryError.
  except Exception as error:
    raise unusable.UnusableError(reason) from error


def library(name: str) -> Any:
  """An optional library, or a ConfigError that says how to install it."""
  needs = {'PIL': 'pictures need Pillow', 'av': 'videos need av'}
  reason = needs.get(name, f'sounds need {name}')
  extra = 'video' if name == 'av' else 'media'
  if name == 'PIL':
    # The submodule that is used here is not imported with the package.
    config_lib.optional('PIL.ImageOps', reason, extra)
  return config_lib.optional(name, reason, extra)


@contextlib.contextmanager
def open_file(value: Any, folder: str | None) -> Iterator[BinaryIO]:
  """Opens the bytes or the path of a field as a file."""
  if isinstance(value, bytes):
    check(len(value) > 0, 'an empty file')
    yield io.BytesIO(value)
    return
  check(
    isinstance(value, str | os.PathLike), 'neither an array, bytes nor a path'
  )
  path = locate(value, folder)
  check(os.path.isfile(path), 'a missing file')
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path, 'rb'))
    except OSError as error:
      raise unusable.UnusableError('a file that may not be read') from error
    check(os.fstat(file.fileno()).st_size > 0, 'an empty file')
    yield file


def locate(value: str | os.PathLike, folder: str | None) -> str:
  """The path of a file or folder, relative to the list that names it."""
  check(bool(os.fspath(value)), 'a missing file')
  check(
    folder is not None or os.path.isabs(value),
    'a relative path, of lists in several folders',
  )
  return os.path.join(folder or '', value)


def on_canvas(values: np.ndarray, shape: tuple[int, ...]) -> Medium:
  """`values` in the first corner of a canvas of `shape`; 0 elsewhere."""
  canvas = np.zeros(shape, values.dtype)
  canvas[tuple(map(slice, values.shape))] = values
  # An extent does not include the channels.
  size = values.shape if values.ndim == 1 else values.shape[:-1]
  return Medium(canvas, np.array(size, np.int32))
