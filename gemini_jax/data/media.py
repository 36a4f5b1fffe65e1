"""Reads a picture, a sound or a video from a field of a record.

A field holds an array, the bytes of a file, or its path; a video may also be a
folder of frames. Relative paths are relative to `folder`, that of the list that
holds the record. A list may name any file that its user may read, since nothing
but pictures and sounds is made of it.
"""

from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.data import audio, image, medium, video


def read(
  kind: str,
  value: Any,
  config: config_lib.Model,
  sample_rate: int | None = None,
  folder: str | None = '',
  max_pixels: int = config_lib.Data.max_media_pixels,
) -> medium.Medium:
  """The picture, sound or video of a field.

  Args:
    kind: one of KINDS.
    value: of the field.
    config: of the model.
    sample_rate: sample rate (Hz) of arrays of samples; None: the model's.
    folder: that relative paths are relative to; None: they are refused.
    max_pixels: see data.max_media_pixels.

  Raises:
    UnusableError: the value is not a medium of this kind.
    ConfigError: a library is missing.
  """
  if kind == 'image':
    return image.read(value, config.image, folder, max_pixels)
  if kind == 'audio':
    return audio.read(value, config.audio, sample_rate, folder)
  return video.read(value, config, folder, max_pixels)
