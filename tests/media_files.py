"""Pictures, sounds and videos in files, made in memory."""

import io
import struct
import zlib

import av
import numpy as np
import PIL.Image
import soundfile

from gemini_jax import config as config_lib

GREY = config_lib.Image(height=28, width=28, channels=1, patch=7)
COLOUR = config_lib.Image(height=32, width=48, channels=3, patch=8)
SOUND = config_lib.Audio(sample_rate=8000, seconds=0.5)
FILM = config_lib.Model(image=COLOUR, video=config_lib.Video(num_frames=4))


def pixels(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(values, kind='PNG', **options):
  file = io.BytesIO()
  picture = (
    values
    if not isinstance(values, np.ndarray)
    else PIL.Image.fromarray(values)
  )
  picture.save(file, kind, **options)
  return file.getvalue()


def wav(samples, sample_rate, kind='WAV', subtype=None):
  file = io.BytesIO()
  soundfile.write(file, samples, sample_rate, format=kind, subtype=subtype)
  return file.getvalue()


def tone(frequency, sample_rate, seconds=0.5, level=0.5):
  times = np.arange(round(sample_rate * seconds)) / sample_rate
  return level * np.sin(2 * np.pi * frequency * times)


def film(count, height=16, width=24):
  """uint8[F, H, W, 3]: frame i is of the grey 10 i, its upper half red."""
  frames = np.empty((count, height, width, 3), np.uint8)
  frames[:] = 10 * np.arange(count)[:, None, None, None]
  frames[:, : height // 2, :, 0] = 255
  return frames


def gif(frames, **options):
  first, *others = map(PIL.Image.fromarray, frames)
  return encoded(first, 'GIF', save_all=True, append_images=others, **options)


def mp4(frames, rotation=0, **options):
  file = io.BytesIO()
  with av.open(file, 'w', format='mp4', options=options) as container:
    stream = container.add_stream('libx264', rate=10)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.options = 'yuv444p', {'qp': '0'}
    if rotation:
      stream.set_display_rotation(rotation)
    for values in frames:
      frame = av.VideoFrame.from_ndarray(values, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return file.getvalue()


def large_png(width, height):
  """The beginning of a PNG: what it says of its size."""

  def chunk(name, content):
    whole = name + content
    size, sum_ = struct.pack('>I', len(content)), zlib.crc32(whole)
    return size + whole + struct.pack('>I', sum_)

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  body = chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + body


PNG = encoded(pixels(8, 40, 40, 3))
FLAC = wav(tone(440, 8000), 8000, 'FLAC')
MP4 = mp4(film(9))
