"""A picture, a sound or a video from a field of a record, by its kind."""

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
    return image.read(value, config.image, folder, max_pixels)
  if kind == 'audio':
    return audio.read(value, config.audio, sample_rate, folder)
  return video.read(value, config, folder, max_pixels)
