"""Reads a sound from a field of a record.

N samples.
"""

import contextlib
import io
import math
import re
from typing import Any, BinaryIO

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import medium

_MAX_CHANNELS = 64
_RATES = (100, 1_000_000)
# Samples (or bytes) that are read at once.
_BLOCK = 1 << 16
# Of an MP3: the most tags before the frames, and the most bytes to decode, more
# than half an hour at the highest bit rate.
_MPEG_TAGS, _MPEG_BYTES = 8, 1 << 26
# Samples, at the lower of both rates, that a resampler looks ahead.
_REACH = 400
# Floats are nominally in [-1, 1] and clipped to it; larger ones than this are
# not samples.
_LOUDEST = 2.0
# An ID3 tag: version, flags and the size of its content.
_MPEG_TAG = re.compile(rb'ID3[\x02-\x04].(.)([\x00-\x7f]{4})', re.DOTALL)


def read(
  value: Any,
  config: config_lib.Audio,
  sample_rate: int | None = None,
  folder: str | None = '',
) -> medium.Medium:
  """The beginning of the sound of a field, at the model's sample rate.

  Channels are averaged. Floats outside [-1, 1] are clipped.

  Args:
    value: bytes, a path, or an array [n] or [n, channels] of floats in [-1, 1]
      or of signed integers that int16 can hold.
    config: of sounds, for the sample rate and the longest duration.
    sample_rate: sample rate (Hz) of an array; None: the model's.
    folder: that relative paths are relative to; None: they are refused.

  Raises:
    UnusableError: the value is not a sound; one of a few reasons.
    ConfigError: soundfile or soxr is missing.
  """
  if isinstance(value, np.ndarray):
    source = config.sample_rate if sample_rate is None else sample_rate
    medium.check(
      _RATES[0] <= source <= _RATES[1], 'a sound of an unlikely rate'
    )
    samples = _mono(value)[: _needed(config, source)]
  else:
    with medium.open_file(value, folder) as file:
      samples, source = _decoded(file, config)
  medium.check(len(samples) > 0, 'an empty sound')
  medium.check(
    np.isfinite(samples).all(), 'a sound of numbers that are not finite'
  )
  medium.check(np.abs(samples).max() <= _LOUDEST, 'a sound far beyond [-1, 1]')
  if source != config.sample_rate:
    samples = medium.library('soxr').resample(
      samples, source, config.sample_rate
    )
    medium.check(len(samples) > 0, 'an empty sound')
  samples = samples[: config.num_samples]
  samples = np.clip(np.round(samples * 32768), -32768, 32767)
  return medium.on_canvas(samples.astype(np.int16), (config.num_samples,))


def _needed(config: config_lib.Audio, source: int) -> int:
  """Samples at the rate `source` that the longest sound needs."""
  reach = _REACH / min(source, config.sample_rate)
  return math.ceil((config.num_samples / config.sample_rate + reach) * source)


def _mono(values: np.ndarray) -> np.ndarray:
  """float32[n], the mean of the channels; integers are scaled to [-1, 1]."""
  values = values[:, None] if values.ndim == 1 else values
  medium.check(values.ndim == 2, 'not an array [n] or [n, channels]')
  medium.check(values.size > 0, 'an empty sound')
  medium.check(values.shape[1] <= _MAX_CHANNELS, 'a sound of too many channels')
  if values.dtype.kind == 'i':
    medium.check(
      values.min() >= -32768 and values.max() <= 32767,
      'a sound beyond 16 bits',
    )
    values = values / np.float32(32768)
  medium.check(values.dtype.kind == 'f', f'a sound of dtype {values.dtype}')
  return values.mean(1, dtype=np.float64).astype(np.float32)


def _decoded(
  file: BinaryIO, config: config_lib.Audio
) -> tuple[np.ndarray, int]:
  """float32[n], as much of a file as is needed, and its sample rate."""
  soundfile = medium.library('soundfile')
  with contextlib.ExitStack() as stack:
    with medium.decoding('not a sound'):
      try:
        opened = stack.enter_context(soundfile.SoundFile(file))
      except soundfile.LibsndfileError:
        start = _mpeg_start(file)
        if not start:
          raise
        file.seek(start)
        # libsndfile would seek to the start of the file.
        frames = io.BytesIO(file.read(_MPEG_BYTES))
        opened = stack.enter_context(soundfile.SoundFile(frames))
    medium.check(
      opened.channels <= _MAX_CHANNELS, 'a sound of too many channels'
    )
    sample_rate = opened.samplerate
    medium.check(
      _RATES[0] <= sample_rate <= _RATES[1], 'a sound of an unlikely rate'
    )
    remaining, blocks = _needed(config, sample_rate), [np.zeros(0, np.float32)]
    while remaining > 0:
      with medium.decoding('a damaged sound'):
        block = opened.read(min(remaining, _BLOCK), 'float32', always_2d=True)
      if not len(block):
        break
      blocks.append(_mono(block))
      remaining -= len(block)
    return np.concatenate(blocks), sample_rate


def _mpeg_start(file: BinaryIO) -> int:
  """Offset of the frames of an MP3, after tags that libsndfile cannot skip.

  Without a file name libsndfile decides by the first bytes, and handles neither
  tags with a footer nor zeros after a tag, which some programs write.
  """
  start = 0
  for _ in range(_MPEG_TAGS):
    file.seek(start)
    block = file.read(_BLOCK)
    start += len(block) - len(block.lstrip(b'\0'))
    tag = _MPEG_TAG.match(block.lstrip(b'\0'))
    if not tag:
      break
    # Each byte holds seven bits of the size.
    size = sum(byte << (21 - 7 * i) for i, byte in enumerate(tag[2]))
    start += tag.end() + size + (10 if tag[1][0] & 16 else 0)
  return start
