"""What a field of a record holds, to a picture, a sound or a video.

A field holds an array, the bytes of a file, or the path of one; a video may
also be a folder of frames. A path that is not absolute is looked for in
`folder`, the one of the list that names it; a list may name any file that its
user may read, since nothing but pictures and sounds is made of them.

H, W canvas; C channels; F frames; N samples.
"""

import contextlib
import io
import math
import os
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import readers

# Larger ones are refused before they are decoded: a small file can hold
# pixels or samples enough to fill the memory, or for minutes of work. Of
# data.max_media_pixels a side may be this part, all frames so many times.
_SIDE_PART, _FRAMES_TIMES = 2048, 64
_TOO_LARGE = 'more pixels than data.max_media_pixels'
_MAX_FRAMES = 100_000
_MAX_CHANNELS = 64
_RATES = (100, 1_000_000)
# Samples that are decoded at once.
_BLOCK = 1 << 16
# Of an MP3: tags and padding before it, and bytes that are decoded at most,
# more than half an hour at the highest rate.
_MPEG_TAGS, _MPEG_BYTES = 8, 1 << 26
# Of the slower rate: a resampler sees no farther ahead.
_REACH = 400
# Floats are nominally in [-1, 1] and clipped; beyond this they are no samples.
_LOUDEST = 2.0
# Pillow reads more, and starts other programs for some.
_PICTURES = ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'JPEG2000')
_SUFFIXES = ('png', 'jpg', 'jpeg', 'gif', 'webp', 'bmp', 'tif', 'tiff', 'ppm')
_SUFFIXES += ('pgm', 'jp2')
# How containers begin: FFmpeg would also follow playlists to other files.
_CONTAINERS = {
  'mov': re.compile(rb'....(ftyp|moov|mdat|wide|free|skip)', re.DOTALL),
  'matroska': re.compile(rb'\x1a\x45\xdf\xa3'),
  'avi': re.compile(rb'RIFF....AVI ', re.DOTALL),
}

# Of ID3: the version, flags and the size of what follows.
_MPEG_TAG = re.compile(rb'ID3[\x02-\x04].(.)([\x00-\x7f]{4})', re.DOTALL)


class Medium(NamedTuple):
  """A picture, sound or video on the canvas of a model.

  Attributes:
    values: uint8[H, W, C], int16[N] or uint8[F, H, W, C]; 0 beyond `size`.
    size: int32[R], its extent: (height, width), (samples,) or
      (frames, height, width).
  """

  values: np.ndarray
  size: np.ndarray

  @property
  def content(self) -> np.ndarray:
    """The values within the extent."""
    return self.values[tuple(map(slice, self.size))]


def read(
  kind: str,
  value: Any,
  config: config_lib.Model,
  sample_rate: int | None = None,
  folder: str | None = '',
  max_pixels: int = config_lib.Data.max_media_pixels,
) -> Medium:
  """The picture, sound or video that a field holds, by its kind.

  Args:
    kind: of KINDS.
    value: of the field.
    config: of the model.
    sample_rate: samples a second of sounds that do not tell; None: the model's.
    folder: where relative paths begin; None: nowhere.
    max_pixels: see data.max_media_pixels.
  """
  if kind == 'image':
    return image(value, config.image, folder, max_pixels)
  if kind == 'audio':
    return audio(value, config.audio, sample_rate, folder)
  return video(value, config, folder, max_pixels)


def image(
  value: Any,
  config: config_lib.Image,
  folder: str | None = '',
  max_pixels: int = config_lib.Data.max_media_pixels,
) -> Medium:
  """The picture that a field holds, in the top left corner of the canvas.

  What is larger than the canvas is shrunk to fit, what is less than half as
  large in both dims is enlarged to fit, all else stays as large as it is; then
  both dims become whole patches. The proportions stay, up to that. Alpha goes
  over white, 16 bits become 8, a photo's orientation is applied.

  Args:
    value: bytes, a path, or an array [h, w] or [h, w, 1 to 4] of uint8, uint16
      or floats in [0, 1].
    config: the canvas.
    folder: where relative paths begin; None: nowhere.
    max_pixels: see data.max_media_pixels.

  Raises:
    UnusableError: it is no picture, with one of a few reasons.
    ConfigError: Pillow is missing.
  """
  if isinstance(value, np.ndarray):
    picture = _of_array(value, config.channels)
  else:
    with _open(value, folder) as file, _picture(file, max_pixels) as opened:
      with _decoding('a damaged picture'):
        # A photo with a small one beside it (MPO) is none.
        moves = opened.format != 'MPO' and getattr(opened, 'is_animated', False)
      _check(not moves, 'an animated picture')
      picture = _flat(opened, config.channels)
  fitted = _fitted(picture, _extent(picture, config))
  return _on_canvas(fitted, (config.height, config.width, config.channels))


def audio(
  value: Any,
  config: config_lib.Audio,
  sample_rate: int | None = None,
  folder: str | None = '',
) -> Medium:
  """The beginning of the sound that a field holds, at the model's rate.

  Channels are averaged. Floats beyond [-1, 1] are clipped.

  Args:
    value: bytes, a path, or an array [n] or [n, channels] of floats in [-1, 1]
      or of signed integers that int16 can hold.
    config: the rate and the longest.
    sample_rate: samples a second of an array; None: the model's.
    folder: where relative paths begin; None: nowhere.

  Raises:
    UnusableError: it is no sound, with one of a few reasons.
    ConfigError: soundfile or soxr is missing.
  """
  if isinstance(value, np.ndarray):
    source = config.sample_rate if sample_rate is None else sample_rate
    _check(_RATES[0] <= source <= _RATES[1], 'a sound of an unlikely rate')
    samples = _mono(value)[: _needed(config, source)]
  else:
    with _open(value, folder) as file:
      samples, source = _decoded(file, config)
  _check(len(samples) > 0, 'an empty sound')
  _check(np.isfinite(samples).all(), 'a sound of numbers that are not finite')
  _check(np.abs(samples).max() <= _LOUDEST, 'a sound far beyond [-1, 1]')
  if source != config.sample_rate:
    samples = _module('soxr').resample(samples, source, config.sample_rate)
    _check(len(samples) > 0, 'an empty sound')
  samples = samples[: config.num_samples]
  samples = np.clip(np.round(samples * 32768), -32768, 32767)
  return _on_canvas(samples.astype(np.int16), (config.num_samples,))


def video(
  value: Any,
  config: config_lib.Model,
  folder: str | None = '',
  max_pixels: int = config_lib.Data.max_media_pixels,
) -> Medium:
  """Frames at even distances of the video that a field holds.

  Of fewer frames than the model has all are there. Each is a picture as
  `image` makes it. Time is counted in frames, however long each is shown.

  Args:
    value: bytes or a path of a GIF or another moving picture, of MP4 or MOV,
      WebM or MKV, or AVI; a folder of frames, in the order of the numbers in
      their names; a list of frames, each bytes, a path or an array, as TFDS
      has them; or an array [f, h, w] or [f, h, w, 1 to 4].
    config: of the model, for the canvas and the number of frames.
    folder: where relative paths begin; None: nowhere.
    max_pixels: see data.max_media_pixels.

  Raises:
    UnusableError: it is no video, with one of a few reasons.
    ConfigError: Pillow is missing, or av for what is no moving picture.
  """
  channels, count = config.image.channels, config.video.num_frames
  if isinstance(value, np.ndarray):
    _check(value.ndim in (3, 4), 'not an array [f, h, w] or [f, h, w, c]')
  if isinstance(value, np.ndarray | list):
    pictures = _of_frames(value, folder, channels, count, max_pixels)
  elif isinstance(value, str | os.PathLike) and os.path.isdir(
    _path(value, folder)
  ):
    pictures = _of_folder(_path(value, folder), channels, count, max_pixels)
  else:
    pictures = _of_file(value, folder, channels, count, max_pixels)
  frames, first, extent = [], None, None
  for picture in pictures:
    if extent is None:
      first, extent = picture.size, _extent(picture, config.image)
    _check(picture.size == first, 'a video of frames of several sizes')
    frames.append(_fitted(picture, extent))
  _check(len(frames) > 0, 'a video without frames')
  canvas = config.image.height, config.image.width, channels
  return _on_canvas(np.stack(frames), (count, *canvas))


# What all of them do.


def _check(condition: Any, reason: str):
  if not condition:
    raise readers.UnusableError(reason)


@contextlib.contextmanager
def _decoding(reason: str) -> Iterator[None]:
  """UnusableError(reason) for whatever a decoder raises on hostile bytes.

  Holds calls of a decoder's library alone, so that no mistake of this module
  counts as a damaged file.
  """
  try:
    yield
  # Each format has its own, and sizes that are forged make a MemoryError.
  except Exception as error:
    raise readers.UnusableError(reason) from error


def _module(name: str) -> Any:
  """An optional library, or a ConfigError that says how to get it."""
  what = {'PIL': 'pictures need Pillow', 'av': 'videos need av'}
  asked = what.get(name, f'sounds need {name}')
  extra = 'video' if name == 'av' else 'media'
  if name == 'PIL':
    # With its parts that are used here.
    config_lib.optional('PIL.ImageOps', asked, extra)
  return config_lib.optional(name, asked, extra)


@contextlib.contextmanager
def _open(value: Any, folder: str | None) -> Iterator[BinaryIO]:
  """The file that a field holds or names."""
  if isinstance(value, bytes):
    _check(len(value) > 0, 'an empty file')
    yield io.BytesIO(value)
    return
  _check(
    isinstance(value, str | os.PathLike), 'neither an array, bytes nor a path'
  )
  path = _path(value, folder)
  _check(os.path.isfile(path), 'a missing file')
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path, 'rb'))
    except OSError as error:
      raise readers.UnusableError('a file that may not be read') from error
    _check(os.fstat(file.fileno()).st_size > 0, 'an empty file')
    yield file


def _path(value: str | os.PathLike, folder: str | None) -> str:
  """Where a file or folder is that a list names."""
  _check(bool(os.fspath(value)), 'a missing file')
  _check(
    folder is not None or os.path.isabs(value),
    'a relative path, of lists in several folders',
  )
  return os.path.join(folder or '', value)


def _on_canvas(values: np.ndarray, shape: tuple[int, ...]) -> Medium:
  canvas = np.zeros(shape, values.dtype)
  canvas[tuple(map(slice, values.shape))] = values
  # The channels are no part of an extent.
  size = values.shape if values.ndim == 1 else values.shape[:-1]
  return Medium(canvas, np.array(size, np.int32))


# Pictures.


@contextlib.contextmanager
def _picture(
  file: BinaryIO, max_pixels: int, otherwise: str = 'not a picture'
) -> Iterator[Any]:
  """Pillow's picture of a file, not yet decoded and not too large."""
  pillow = _module('PIL').Image
  # Pillow looks as well where a frame makes the picture larger: it warns, and
  # refuses twice as many.
  pillow.MAX_IMAGE_PIXELS = max_pixels
  is_bomb = False
  with contextlib.ExitStack() as stack:
    with _decoding(otherwise), warnings.catch_warnings():
      warnings.simplefilter('ignore', pillow.DecompressionBombWarning)
      try:
        opened = stack.enter_context(pillow.open(file, formats=_PICTURES))
      except pillow.DecompressionBombError:
        is_bomb = True
    _check(not is_bomb, _TOO_LARGE)
    _check_frame(opened.size, max_pixels)
    yield opened


def _check_frame(size: tuple[int, int], max_pixels: int, count: int = 1):
  """UnusableError if frames are too large, or all of them together."""
  _check(math.prod(size) <= max_pixels, _TOO_LARGE)
  _check(
    max(size) <= max(max_pixels // _SIDE_PART, 1),
    'a side too long for data.max_media_pixels',
  )
  _check(
    math.prod(size) * count <= _FRAMES_TIMES * max_pixels,
    'a video too large for data.max_media_pixels',
  )


def _flat(opened: Any, channels: int) -> Any:
  """A picture as Pillow's L or RGB, upright, decoded, without alpha."""
  pil = _module('PIL')
  with _decoding('a damaged picture'):
    upright = pil.ImageOps.exif_transpose(opened)
    # Pillow would clip what exceeds 255.
    wide = np.asarray(upright) if upright.mode.startswith('I') else None
  if wide is not None:
    return _of_array(wide, channels)
  _check(upright.mode != 'F', 'a picture of floats')
  with _decoding('a damaged picture'):
    if upright.has_transparency_data:
      upright = upright.convert('RGBA')
      white = pil.Image.new('RGBA', upright.size, 'white')
      upright = pil.Image.alpha_composite(white, upright)
    if upright.mode not in ('L', 'RGB'):
      upright = upright.convert('RGB')
    return upright.convert('L' if channels == 1 else 'RGB')


def _of_array(values: np.ndarray, channels: int) -> Any:
  """Pillow's L or RGB of an array."""
  values = values[..., None] if values.ndim == 2 else values
  _check(
    values.ndim == 3 and 1 <= values.shape[-1] <= 4,
    'not an array [h, w] or [h, w, 1 to 4]',
  )
  _check(values.size > 0, 'an empty picture')
  if values.dtype.kind == 'f':
    _check(
      np.isfinite(values).all(), 'a picture of numbers that are not finite'
    )
    _check(values.min() >= 0 and values.max() <= 1, 'a picture beyond [0, 1]')
    values = np.round(values * 255.0).astype(np.uint8)
  elif values.dtype == np.int32:  # Some of Pillow's pictures of 16 bits.
    _check(
      values.min() >= 0 and values.max() <= 65535, 'a picture beyond 16 bits'
    )
    values = values.astype(np.uint16)
  if values.dtype.kind == 'u' and values.dtype.itemsize == 2:
    values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
  _check(values.dtype == np.uint8, f'a picture of dtype {values.dtype}')
  values = values[..., 0] if values.shape[-1] == 1 else values
  picture = _module('PIL').Image.fromarray(np.ascontiguousarray(values))
  return _flat(picture, channels)


def _extent(picture: Any, config: config_lib.Image) -> tuple[int, int]:
  """Height and width of a picture on the canvas: whole patches."""
  width, height = picture.size
  scale = min(config.height / height, config.width / width)
  if 1 < scale <= 2:
    scale = 1.0
  rows, columns = (
    min(max(round(pixels * scale / config.patch), 1), most)
    for pixels, most in zip((height, width), config.grid, strict=True)
  )
  return rows * config.patch, columns * config.patch


def _fitted(picture: Any, extent: tuple[int, int]) -> np.ndarray:
  """uint8[height, width, C] of a picture resized to an extent."""
  height, width = extent
  if picture.size != (width, height):
    bicubic = _module('PIL').Image.Resampling.BICUBIC
    picture = picture.resize((width, height), bicubic)
  return np.asarray(picture).reshape(height, width, -1)


# Sounds.


def _needed(config: config_lib.Audio, source: int) -> int:
  """Samples at the rate `source` that the longest sound is made of."""
  reach = _REACH / min(source, config.sample_rate)
  return math.ceil((config.num_samples / config.sample_rate + reach) * source)


def _mono(values: np.ndarray) -> np.ndarray:
  """float32[n], in [-1, 1] where the array is, the channels averaged."""
  values = values[:, None] if values.ndim == 1 else values
  _check(values.ndim == 2, 'not an array [n] or [n, channels]')
  _check(values.size > 0, 'an empty sound')
  _check(values.shape[1] <= _MAX_CHANNELS, 'a sound of too many channels')
  if values.dtype.kind == 'i':
    _check(
      values.min() >= -32768 and values.max() <= 32767,
      'a sound beyond 16 bits',
    )
    values = values / np.float32(32768)
  _check(values.dtype.kind == 'f', f'a sound of dtype {values.dtype}')
  return values.mean(1, dtype=np.float64).astype(np.float32)


def _decoded(
  file: BinaryIO, config: config_lib.Audio
) -> tuple[np.ndarray, int]:
  """float32[n], as much of a file as is needed, and its rate."""
  soundfile = _module('soundfile')
  with contextlib.ExitStack() as stack:
    with _decoding('not a sound'):
      try:
        opened = stack.enter_context(soundfile.SoundFile(file))
      except soundfile.LibsndfileError:
        start = _mpeg_start(file)
        if not start:
          raise
        file.seek(start)
        # libsndfile would seek to what stands before.
        frames = io.BytesIO(file.read(_MPEG_BYTES))
        opened = stack.enter_context(soundfile.SoundFile(frames))
    _check(opened.channels <= _MAX_CHANNELS, 'a sound of too many channels')
    sample_rate = opened.samplerate
    _check(_RATES[0] <= sample_rate <= _RATES[1], 'a sound of an unlikely rate')
    left, blocks = _needed(config, sample_rate), [np.zeros(0, np.float32)]
    while left > 0:
      with _decoding('a damaged sound'):
        block = opened.read(min(left, _BLOCK), 'float32', always_2d=True)
      if not len(block):
        break
      blocks.append(_mono(block))
      left -= len(block)
    return np.concatenate(blocks), sample_rate


def _mpeg_start(file: BinaryIO) -> int:
  """Where the frames of an MP3 begin, behind what libsndfile does not skip.

  Without a file's name it goes by the first bytes, and knows neither a tag
  with a footer nor the zeros that some writers put behind a tag.
  """
  start = 0
  for _ in range(_MPEG_TAGS):
    file.seek(start)
    block = file.read(_BLOCK)
    start += len(block) - len(block.lstrip(b'\0'))
    tag = _MPEG_TAG.match(block.lstrip(b'\0'))
    if not tag:
      break
    # Seven bits of each byte.
    size = sum(byte << (21 - 7 * i) for i, byte in enumerate(tag[2]))
    start += tag.end() + size + (10 if tag[1][0] & 16 else 0)
  return start


# Videos.


def _even(count: int, num: int) -> list[int]:
  """Which of `count` frames are taken: the middles of `num` equal parts."""
  num = min(count, num)
  return [(2 * i + 1) * count // (2 * num) for i in range(num)]


def _of_folder(
  folder: str, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  try:
    paths = list(pathlib.Path(folder).iterdir())
  except OSError as error:
    raise readers.UnusableError('a folder that may not be read') from error
  files = (
    path
    for path in paths
    if path.suffix[1:].lower() in _SUFFIXES and not path.name.startswith('.')
  )
  frames = sorted(files, key=_numbered)
  yield from _of_frames(frames, '', channels, num, max_pixels)


def _of_frames(
  frames: Any, folder: str | None, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  for index in _even(len(frames), num):
    frame = frames[index]
    if isinstance(frame, np.ndarray):
      yield _of_array(frame, channels)
      continue
    with _open(frame, folder) as file, _picture(file, max_pixels) as opened:
      yield _flat(opened, channels)


def _numbered(path: pathlib.Path) -> list[tuple[int, str]]:
  """A key that has frame2 before frame10."""
  parts = re.split(r'(\d+)', path.name)
  return [(int(p), '') if p.isdecimal() else (-1, p) for p in parts]


def _of_file(
  value: Any, folder: str | None, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  with _open(value, folder) as file:
    head = file.read(12)
    file.seek(0)
    for name, begins in _CONTAINERS.items():
      if begins.match(head):
        yield from _of_container(file, name, channels, num, max_pixels)
        return
    with _picture(file, max_pixels, 'not a video') as opened:
      with _decoding('a damaged picture'):
        frames = getattr(opened, 'n_frames', 1)
      _check(frames <= _MAX_FRAMES, 'a video of too many frames')
      # Each is made of those before it.
      _check_frame(opened.size, max_pixels, frames)
      chosen = _even(frames, num)
      for index in range(chosen[-1] + 1 if chosen else 0):
        # Each page of a TIFF has its own size.
        if opened.format != 'TIFF' or index in chosen:
          with _decoding('a damaged picture'):
            opened.seek(index)
          _check_frame(opened.size, max_pixels, frames)
        if index in chosen:
          yield _flat(opened, channels)


def _of_container(
  file: BinaryIO, name: str, channels: int, num: int, max_pixels: int
) -> Iterator[Any]:
  """Of MP4 and others: read once to count the frames, then to decode them."""
  pillow = _module('PIL').Image
  with _container(file, name, max_pixels) as (opened, stream):
    count = 0
    packets = iter(opened.demux(stream) if stream else ())
    while True:
      with _decoding('a damaged video'):
        packet = next(packets, None)
        size = packet.size if packet else 0
      if packet is None:
        break
      count += size > 0
      _check(count <= _MAX_FRAMES, 'a video of too many frames')
  _check(count > 0, 'a video without frames')
  chosen = _even(count, num)
  file.seek(0)
  with _container(file, name, max_pixels, chosen[-1] + 1) as (opened, stream):
    frames = iter(opened.decode(stream))
    for index in range(chosen[-1] + 1):
      with _decoding('a damaged video'):
        frame = next(frames, None)
      if frame is None:
        return
      _check_frame((frame.width, frame.height), max_pixels, index + 1)
      if index not in chosen:
        continue
      with _decoding('a damaged video'):
        pixels = frame.to_ndarray(format='rgb24')
        turns = frame.rotation // 90
      pixels = np.ascontiguousarray(np.rot90(pixels, turns))
      yield _flat(pillow.fromarray(pixels), channels)


@contextlib.contextmanager
def _container(
  file: BinaryIO, name: str, max_pixels: int, count: int = 1
) -> Iterator[tuple[Any, Any]]:
  """PyAV's container and its video stream, of `count` frames to be decoded."""
  av = _module('av')
  with contextlib.ExitStack() as stack:
    with _decoding('a damaged video'):
      opened = stack.enter_context(av.open(file, format=name))
      stream = next(iter(opened.streams.video), None)
      size = (0, 0)
      if stream is not None:
        context = stream.codec_context
        size = context.width, context.height
        # FFmpeg refuses larger frames in the middle, before it makes them.
        most = min(max_pixels, 2**31 - 1)
        context.options = context.options | {'max_pixels': str(most)}
    _check_frame(size, max_pixels, count)
    yield opened, stream
