"""Reads a video from a field of a record.

F frames; H, W canvas; C channels.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import image, medium, unusable

_MAX_FRAMES = 100_000
_SUFFIXES = ('png', 'jpg', 'jpeg', 'gif', 'webp', 'bmp', 'tif', 'tiff', 'ppm')
_SUFFIXES += ('pgm', 'jp2')
# First bytes of the containers that are read. FFmpeg knows more formats, such
# as playlists, which refer to other files.
_CONTAINERS = {
  'mov': re.compile(rb'....(ftyp|moov|mdat|wide|free|skip)', re.DOTALL),
  'matroska': re.compile(rb'\x1a\x45\xdf\xa3'),
  'avi': re.compile(rb'RIFF....AVI ', re.DOTALL),
}


def read(
  value: Any,
  config: config_lib.Model,
  folder: str | None = '',
  max_pixels: int = config_lib.Data.max_media_pixels,
) -> medium.Medium:
  """Frames at equal distances of the video of a field.

  A video of fewer frames than the model takes gives all of them. Each frame is
  fitted to the canvas as `image.read` does. Distances are in frames, whatever
  their durations.

  Args:
    value: bytes or a path of a GIF or another moving picture, of MP4 or MOV,
      WebM or MKV, or AVI; a folder of frames, in the order of the numbers in
      their names; a list of frames, each bytes, a path or an array, as TFDS
      has them; or an array [f, h, w] or [f, h, w, 1 to 4].
    config: of the model, for the canvas and the number of frames.
    folder: that relative paths are relative to; None: they are refused.
    max_pixels: see data.max_media_pixels.

  Raises:
    UnusableError: the value is not a video; one of a few reasons.
    ConfigError: Pillow is missing, or av for a container of video.
  """
  channels, count = config.image.channels, config.video.num_frames
  if isinstance(value, np.ndarray):
    medium.check(value.ndim in (3, 4), 'not an array [f, h, w] or [f, h, w, c]')
  if isinstance(value, np.ndarray | list):
    pictures = _listed_frames(value, folder, channels, count, max_pixels)
  elif isinstance(value, str | os.PathLike) and os.path.isdir(
    medium.locate(value, folder)
  ):
    pictures = _folder_frames(
      medium.locate(value, folder), channels, count, max_pixels
    )
  else:
    pictures = _file_frames(value, folder, channels, count, max_pixels)
  frames, first, extent = [], None, None
  for picture in pictures:
    if extent is None:
      first, extent = picture.size, image.canvas_extent(picture, config.image)
    medium.check(picture.size == first, 'a video of frames of several sizes')
    frames.append(image.fit(picture, extent))
  medium.check(len(frames) > 0, 'a video without frames')
  canvas = config.image.height, config.image.width, channels
  return medium.on_canvas(np.stack(frames), (count, *canvas))


def _spread(count: int, num: int) -> list[int]:
  """Indices of `num` frames of `count`: the middles of `num` equal parts."""
  num = min(count, num)
  return [(2 * i + 1) * count // (2 * num) for i in range(num)]


def _folder_frames(
  folder: str, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  try:
    paths = list(pathlib.Path(folder).iterdir())
  except OSError as error:
    raise unusable.UnusableError('a folder that may not be read') from error
  files = (
    path
    for path in paths
    if path.suffix[1:].lower() in _SUFFIXES and not path.name.startswith('.')
  )
  frames = sorted(files, key=_numbered)
  yield from _listed_frames(frames, '', channels, num, max_pixels)


def _listed_frames(
  frames: Any, folder: str | None, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  for index in _spread(len(frames), num):
    frame = frames[index]
    if isinstance(frame, np.ndarray):
      yield image.from_array(frame, channels)
      continue
    with (
      medium.open_file(frame, folder) as file,
      image.open_picture(file, max_pixels) as opened,
    ):
      yield image.flatten(opened, channels)


def _numbered(path: pathlib.Path) -> list[tuple[int, str]]:
  """A sort key that puts frame2 before frame10."""
  parts = re.split(r'(\d+)', path.name)
  return [(int(p), '') if p.isdecimal() else (-1, p) for p in parts]


def _file_frames(
  value: Any, folder: str | None, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  with medium.open_file(value, folder) as file:
    head = file.read(12)
    file.seek(0)
    for name, begins in _CONTAINERS.items():
      if begins.match(head):
        yield from _container_frames(file, name, channels, num, max_pixels)
        return
    with image.open_picture(file, max_pixels, 'not a video') as opened:
      with medium.decoding('a damaged picture'):
        frames = getattr(opened, 'n_frames', 1)
      medium.check(frames <= _MAX_FRAMES, 'a video of too many frames')
      # A frame is decoded from those before it.
      image.check_size(opened.size, max_pixels, frames)
      chosen = _spread(frames, num)
      for index in range(chosen[-1] + 1 if chosen else 0):
        # Pages of a TIFF are independent and may differ in size.
        if opened.format != 'TIFF' or index in chosen:
          with medium.decoding('a damaged picture'):
            opened.seek(index)
          image.check_size(opened.size, max_pixels, frames)
        if index in chosen:
          yield image.flatten(opened, channels)


def _container_frames(
  file: BinaryIO, name: str, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  """Frames of MP4 and others: one pass to count them, one to decode them."""
  pillow = medium.library('PIL').Image
  with _container(file, name, max_pixels) as (opened, stream):
    count = 0
    packets = iter(opened.demux(stream) if stream else ())
    while True:
      with medium.decoding('a damaged video'):
        packet = next(packets, None)
        size = packet.size if packet else 0
      if packet is None:
        break
      count += size > 0
      medium.check(count <= _MAX_FRAMES, 'a video of too many frames')
  medium.check(count > 0, 'a video without frames')
  chosen = _spread(count, num)
  file.seek(0)
  with _container(file, name, max_pixels, chosen[-1] + 1) as (opened, stream):
    frames = iter(opened.decode(stream))
    for index in range(chosen[-1] + 1):
      with medium.decoding('a damaged video'):
        frame = next(frames, None)
      if frame is None:
        return
      image.check_size((frame.width, frame.height), max_pixels, index + 1)
      if index not in chosen:
        continue
      with medium.decoding('a damaged video'):
        pixels = frame.to_ndarray(format='rgb24')
        turns = frame.rotation // 90
      pixels = np.ascontiguousarray(np.rot90(pixels, turns))
      yield image.flatten(pillow.fromarray(pixels), channels)


@contextlib.contextmanager
def _container(
  file: BinaryIO, name: str, max_pixels: int, count: int = 1
) -> Iterator[tuple[Any, Any]]:
  """Opens a container with PyAV and checks the size of `count` frames."""
  av = medium.library('av')
  with contextlib.ExitStack() as stack:
    with medium.decoding('a damaged video'):
      opened = stack.enter_context(av.open(file, format=name))
      stream = next(iter(opened.streams.video), None)
      size = (0, 0)
      if stream is not None:
        context = stream.codec_context
        size = context.width, context.height
        # Frames may become larger on the way; FFmpeg then refuses them before
        # it allocates them.
        limit = min(max_pixels, 2**31 - 1)
        context.options = context.options | {'max_pixels': str(limit)}
    image.check_size(size, max_pixels, count)
    yield opened, stream
