"""Reads a picture from a field of a record.

H, W canvas; C channels.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import medium

# Larger pictures are refused before they are decoded, since a small file can
# expand to fill the memory. Height and width may each be at most
# 1/_SIDE_DIVISOR of data.max_media_pixels, all frames of a video together at
# most _FRAMES_FACTOR times that.
_SIDE_DIVISOR, _FRAMES_FACTOR = 2048, 64
_TOO_LARGE = 'more pixels than data.max_media_pixels'
# Pillow knows more formats, and starts other programs for some of them.
_FORMATS = ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'JPEG2000')


def read(
  value: Any,
  config: config_lib.Image,
  folder: str | None = '',
  max_pixels: int = config_lib.Data.max_media_pixels,
) -> medium.Medium:
  """The picture of a field, in the top left corner of the canvas.

  A picture larger than the canvas is shrunk to fit, one less than half as
  large in both dims is enlarged to fit, and others keep their size. Both dims
  are then rounded to whole patches; up to that the aspect ratio is kept.
  Transparent pixels are blended with white, 16 bits are reduced to 8, and the
  orientation of a photo is applied.

  Args:
    value: bytes, a path, or an array [h, w] or [h, w, 1 to 4] of uint8, uint16
      or floats in [0, 1].
    config: the canvas.
    folder: that relative paths are relative to; None: they are refused.
    max_pixels: see data.max_media_pixels.

  Raises:
    UnusableError: the value is not a picture; one of a few reasons.
    ConfigError: Pillow is missing.
  """
  if isinstance(value, np.ndarray):
    picture = from_array(value, config.channels)
  else:
    with (
      medium.open_file(value, folder) as file,
      open_picture(file, max_pixels) as opened,
    ):
      with medium.decoding('a damaged picture'):
        # MPO files hold a photo and a thumbnail, not an animation.
        moves = opened.format != 'MPO' and getattr(opened, 'is_animated', False)
      medium.check(not moves, 'an animated picture')
      picture = flatten(opened, config.channels)
  fitted = fit(picture, canvas_extent(picture, config))
  return medium.on_canvas(
    fitted, (config.height, config.width, config.channels)
  )


@contextlib.contextmanager
def open_picture(
  file: BinaryIO, max_pixels: int, otherwise: str = 'not a picture'
) -> Iterator[Any]:
  """Opens a file with Pillow, without decoding it, and checks its size."""
  pillow = medium.library('PIL').Image
  # Pillow also checks frames that enlarge the picture: it warns above this
  # limit and refuses above twice of it.
  pillow.MAX_IMAGE_PIXELS = max_pixels
  is_bomb = False
  with contextlib.ExitStack() as stack:
    with medium.decoding(otherwise), warnings.catch_warnings():
      warnings.simplefilter('ignore', pillow.DecompressionBombWarning)
      try:
        opened = stack.enter_context(pillow.open(file, formats=_FORMATS))
      except pillow.DecompressionBombError:
        is_bomb = True
    medium.check(not is_bomb, _TOO_LARGE)
    check_size(opened.size, max_pixels)
    yield opened


def check_size(size: tuple[int, int], max_pixels: int, count: int = 1):
  """UnusableError if a frame is too large, or `count` of them together."""
  medium.check(math.prod(size) <= max_pixels, _TOO_LARGE)
  medium.check(
    max(size) <= max(max_pixels // _SIDE_DIVISOR, 1),
    'a side too long for data.max_media_pixels',
  )
  medium.check(
    math.prod(size) * count <= _FRAMES_FACTOR * max_pixels,
    'a video too large for data.max_media_pixels',
  )


def flatten(opened: Any, channels: int) -> Any:
  """A Pillow picture decoded, upright, without alpha, as L or RGB."""
  pil = medium.library('PIL')
  with medium.decoding('a damaged picture'):
    upright = pil.ImageOps.exif_transpose(opened)
    # Pillow would clip values above 255.
    wide = np.asarray(upright) if upright.mode.startswith('I') else None
  if wide is not None:
    return from_array(wide, channels)
  medium.check(upright.mode != 'F', 'a picture of floats')
  with medium.decoding('a damaged picture'):
    if upright.has_transparency_data:
      upright = upright.convert('RGBA')
      white = pil.Image.new('RGBA', upright.size, 'white')
      upright = pil.Image.alpha_composite(white, upright)
    if upright.mode not in ('L', 'RGB'):
      upright = upright.convert('RGB')
    return upright.convert('L' if channels == 1 else 'RGB')


def from_array(values: np.ndarray, channels: int) -> Any:
  """An array as a Pillow picture, L or RGB."""
  values = values[..., None] if values.ndim == 2 else values
  medium.check(
    values.ndim == 3 and 1 <= values.shape[-1] <= 4,
    'not an array [h, w] or [h, w, 1 to 4]',
  )
  medium.check(values.size > 0, 'an empty picture')
  if values.dtype.kind == 'f':
    medium.check(
      np.isfinite(values).all(), 'a picture of numbers that are not finite'
    )
    medium.check(
      values.min() >= 0 and values.max() <= 1, 'a picture beyond [0, 1]'
    )
    values = np.round(values * 255.0).astype(np.uint8)
  elif values.dtype == np.int32:  # Pillow's type of some 16-bit pictures.
    medium.check(
      values.min() >= 0 and values.max() <= 65535, 'a picture beyond 16 bits'
    )
    values = values.astype(np.uint16)
  if values.dtype.kind == 'u' and values.dtype.itemsize == 2:
    values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
  medium.check(values.dtype == np.uint8, f'a picture of dtype {values.dtype}')
  values = values[..., 0] if values.shape[-1] == 1 else values
  picture = medium.library('PIL').Image.fromarray(np.ascontiguousarray(values))
  return flatten(picture, channels)


def canvas_extent(picture: Any, config: config_lib.Image) -> tuple[int, int]:
  """Height and width of a picture on the canvas, multiples of a patch."""
  width, height = picture.size
  scale = min(config.height / height, config.width / width)
  if 1 < scale <= 2:
    scale = 1.0
  rows, columns = (
    min(max(round(pixels * scale / config.patch), 1), limit)
    for pixels, limit in zip((height, width), config.grid, strict=True)
  )
  return rows * config.patch, columns * config.patch


def fit(picture: Any, extent: tuple[int, int]) -> np.ndarray:
  """uint8[height, width, C], the picture resized to `extent`."""
  height, width = extent
  if picture.size != (width, height):
    bicubic = medium.library('PIL').Image.Resampling.BICUBIC
    picture = picture.resize((width, height), bicubic)
  return np.asarray(picture).reshape(height, width, -1)
