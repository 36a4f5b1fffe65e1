"""Data augmentation: random changes of pictures, sounds and videos.

Functions of the values and a random generator, deterministic in its state; none
changes the shape. `apply`, `mixup` and `cutmix` take a canvas and its extent,
all others the values within the extent. Pictures are uint8[..., H, W, C]; all
frames of a video get the same change. Sounds are floats [N] of any scale.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gemini_jax import config as config_lib


def apply(
  kind: str,
  values: np.ndarray,
  size: np.ndarray,
  augment: config_lib.Augment,
  rng: np.random.Generator,
  sample_rate: int = 0,
) -> np.ndarray:
  """A picture, sound or video with all changes of `augment` to it alone.

  Args:
    kind: 'image', 'audio' or 'video'.
    values: uint8[H, W, C], int16[N] or uint8[F, H, W, C], a canvas.
    size: int[R], the extent.
    augment: the changes and their strengths.
    rng: random generator.
    sample_rate: of a sound, in Hz.
  """
  region = tuple(map(slice, size))
  inside = values[region]
  if not inside.size:
    return values
  change = _sound if kind == 'audio' else _picture
  result = values.copy()
  result[region] = change(inside, augment, rng, sample_rate)
  return result


def mixup(
  values: np.ndarray,
  size: np.ndarray,
  others: np.ndarray,
  other_size: np.ndarray,
  rng: np.random.Generator,
  alpha: float,
) -> tuple[np.ndarray, float]:
  """MixUp (Zhang et al. 2018): a weighted mean, and the weight of the first.

  The weight is drawn from Beta(alpha, alpha). The paper mixes targets with the
  same weights; texts cannot be mixed, so the losses of both texts would be. The
  result has the extent of the first; where the other does not reach, it equals
  the first.
  """
  weight = float(rng.beta(alpha, alpha))
  region = tuple(map(slice, np.minimum(size, other_size)))
  mixed = weight * values[region] + (1 - weight) * others[region]
  result = values.copy()
  result[region] = np.round(mixed).astype(values.dtype)
  return result, weight


def cutmix(
  values: np.ndarray,
  size: np.ndarray,
  others: np.ndarray,
  other_size: np.ndarray,
  rng: np.random.Generator,
  alpha: float,
) -> tuple[np.ndarray, float]:
  """CutMix (Yun et al. 2019): a part of another, and the share of the first.

  The part is a box with the proportions of the first, of all frames of a video,
  or a span of a sound. Its share is drawn from Beta(alpha, alpha), its centre
  uniformly; where it lies outside of one of the two, the first stays.
  """
  extent, limit = size[-2:], np.minimum(size, other_size)
  sides = extent * rng.beta(alpha, alpha) ** (1 / len(extent))
  centre = rng.uniform(0, extent)
  edges = np.round([centre - sides / 2, centre + sides / 2]).astype(int)
  starts, stops = np.clip(edges, 0, limit[-2:])
  frames = [slice(number) for number in limit[:-2]]
  region = (*frames, *map(slice, starts, stops))
  result = values.copy()
  result[region] = others[region]
  cut = np.prod(limit[:-2]) * np.prod(stops - starts)
  return result, 1 - float(cut / np.prod(size))


# Pictures.


def _picture(
  values, augment: config_lib.Augment, rng, sample_rate
) -> np.ndarray:
  del sample_rate
  if augment.crop_padding:
    values = crop(values, rng, augment.crop_padding)
  if augment.flip and rng.random() < 0.5:
    values = mirror(values)
  if augment.randaugment_ops:
    ops, magnitude = augment.randaugment_ops, augment.randaugment_magnitude
    values = randaugment(values, rng, ops, magnitude)
  return values


def crop(
  values: np.ndarray, rng: np.random.Generator, padding: int
) -> np.ndarray:
  """A random crop after padding all sides with the values of the edge."""
  around = [(0, 0)] * (values.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
  top, left = rng.integers(0, 2 * padding + 1, 2)
  height, width = values.shape[-3:-1]
  padded = np.pad(values, around, 'edge')
  return padded[..., top : top + height, left : left + width, :]


def mirror(values: np.ndarray) -> np.ndarray:
  """Mirrored left to right."""
  return values[..., ::-1, :]


def randaugment(
  values: np.ndarray, rng: np.random.Generator, num_ops: int, magnitude: float
) -> np.ndarray:
  """RandAugment (Cubuk et al. 2019): random operations one after another.

  Pixels that an operation moves in from outside get the median colour of the
  edges, so that a plain background stays plain.

  Args:
    values: uint8[..., H, W, 1 or 3].
    rng: draws the operations and their signs.
    num_ops: number of operations.
    magnitude: of the operations, from 0 to 10.
  """
  import PIL.Image

  names = tuple(OPERATIONS)
  drawn = [
    (OPERATIONS[names[rng.integers(len(names))]], rng.choice((-1, 1)))
    for _ in range(num_ops)
  ]
  result = []
  for frame in values.reshape(-1, *values.shape[-3:]):
    edge = np.concatenate([*frame[[0, -1]], *frame[:, [0, -1]]])
    fill = tuple(np.median(edge, 0).astype(int).tolist())
    grey = len(fill) == 1
    picture = PIL.Image.fromarray(
      np.ascontiguousarray(frame.squeeze(-1) if grey else frame)
    )
    for operation, sign in drawn:
      level = float(sign * magnitude / 10)
      picture = operation(picture, level, fill[0] if grey else fill)
    result.append(np.asarray(picture).reshape(frame.shape))
  return np.stack(result).reshape(values.shape)


def _affine(
  matrix: Callable[[float], tuple[float, float, float, float, float, float]],
) -> Callable[[Any, float, Any], Any]:
  """An operation that transforms a picture affinely about its centre.

  `matrix` gives the matrix for a level; translations are shares of the picture.
  """

  def operation(picture, level, fill):
    import PIL.Image

    width, height = picture.size
    a, b, c, d, e, f = matrix(level)
    x, y = width / 2, height / 2
    moved = c * width + x - a * x - b * y, f * height + y - d * x - e * y
    return picture.transform(
      picture.size,
      PIL.Image.Transform.AFFINE,
      (a, b, moved[0], d, e, moved[1]),
      PIL.Image.Resampling.BILINEAR,
      fillcolor=fill,
    )

  return operation


def _rotation(level: float) -> tuple[float, float, float, float, float, float]:
  angle = np.deg2rad(30 * level)
  cos, sin = float(np.cos(angle)), float(np.sin(angle))
  return cos, sin, 0, -sin, cos, 0


def _enhance(name: str) -> Callable[[Any, float, Any], Any]:
  def operation(picture, level, fill):
    del fill
    import PIL.ImageEnhance

    return getattr(PIL.ImageEnhance, name)(picture).enhance(1 + 0.9 * level)

  return operation


def _tones(
  name: str, *amounts: Callable[[float], int]
) -> Callable[[Any, float, Any], Any]:
  """One of Pillow's ImageOps; `amounts` give its arguments for a level."""

  def operation(picture, level, fill):
    del fill
    import PIL.ImageOps

    function = getattr(PIL.ImageOps, name)
    return function(picture, *(amount(abs(level)) for amount in amounts))

  return operation


# (picture, level from -1 to 1, fill colour) -> picture.
OPERATIONS: dict[str, Callable[[Any, float, Any], Any]] = {
  'identity': lambda picture, level, fill: picture,
  'shear_x': _affine(lambda level: (1, 0.3 * level, 0, 0, 1, 0)),
  'shear_y': _affine(lambda level: (1, 0, 0, 0.3 * level, 1, 0)),
  'translate_x': _affine(lambda level: (1, 0, 0.3 * level, 0, 1, 0)),
  'translate_y': _affine(lambda level: (1, 0, 0, 0, 1, 0.3 * level)),
  'rotate': _affine(_rotation),
  'color': _enhance('Color'),
  'contrast': _enhance('Contrast'),
  'brightness': _enhance('Brightness'),
  'sharpness': _enhance('Sharpness'),
  'autocontrast': _tones('autocontrast'),
  'equalize': _tones('equalize'),
  'posterize': _tones('posterize', lambda level: 8 - round(4 * level)),
  'solarize': _tones('solarize', lambda level: 256 - round(256 * level)),
}


# Sounds.


def _sound(
  values: np.ndarray,
  augment: config_lib.Augment,
  rng: np.random.Generator,
  sample_rate: int,
) -> np.ndarray:
  """int16[N] of int16[N]; masks come last, so that noise does not fill them."""
  assert sample_rate > 0, 'the changes of a sound are in seconds and Hz'
  samples = values.astype(np.float64)
  if augment.time_shift_seconds:
    samples = shift(
      samples, rng, round(augment.time_shift_seconds * sample_rate)
    )
  if augment.gain_db:
    samples = gain(samples, rng, augment.gain_db)
  if augment.noise_db:
    samples = noise(samples, rng, *augment.noise_db)
  if augment.frequency_masks:
    num, share = augment.frequency_masks, augment.frequency_mask_share
    samples = mask_frequencies(samples, rng, num, share, sample_rate)
  if augment.time_masks:
    longest = round(augment.time_mask_seconds * sample_rate)
    samples = mask_times(samples, rng, augment.time_masks, longest)
  return np.clip(np.round(samples), -32768, 32767).astype(np.int16)


def shift(
  samples: np.ndarray, rng: np.random.Generator, limit: int
) -> np.ndarray:
  """Shifted by up to `limit` samples either way, filled with silence."""
  limit = min(limit, len(samples))
  offset = int(rng.integers(-limit, limit + 1))
  result = np.zeros_like(samples)
  if offset >= 0:
    result[offset:] = samples[: len(samples) - offset]
  else:
    result[:offset] = samples[-offset:]
  return result


def gain(
  samples: np.ndarray, rng: np.random.Generator, decibels: float
) -> np.ndarray:
  """A random gain of up to `decibels` either way."""
  return samples * 10 ** (rng.uniform(-decibels, decibels) / 20)


def noise(
  samples: np.ndarray, rng: np.random.Generator, low: float, high: float
) -> np.ndarray:
  """White noise added at a random signal-to-noise ratio, low to high in dB.

  Silence stays silent.
  """
  power = np.mean(np.square(samples, dtype=np.float64))
  ratio = 10 ** (rng.uniform(low, high) / 10)
  return samples + rng.normal(0, np.sqrt(power / ratio), samples.shape)


def mask_times(
  samples: np.ndarray, rng: np.random.Generator, num: int, longest: int
) -> np.ndarray:
  """`num` random spans of up to `longest` samples set to 0 (SpecAugment)."""
  result = samples.copy()
  for _ in range(num):
    length = int(rng.integers(min(longest, len(samples)) + 1))
    start = int(rng.integers(len(samples) - length + 1))
    result[start : start + length] = 0
  return result


def mask_frequencies(
  samples: np.ndarray,
  rng: np.random.Generator,
  num: int,
  share: float,
  sample_rate: int,
) -> np.ndarray:
  """`num` random frequency bands removed (SpecAugment, on the waveform).

  Widths, up to `share`, and positions are drawn on the mel scale, so that each
  band masks the same part of a log-mel spectrogram wherever it lies.
  """
  spectrum = np.fft.rfft(samples)
  mels = _mel(np.fft.rfftfreq(len(samples), 1 / sample_rate))
  top = _mel(sample_rate / 2)
  for _ in range(num):
    width = rng.uniform(0, share * top)
    start = rng.uniform(0, top - width)
    spectrum[(start <= mels) & (mels < start + width)] = 0
  return np.fft.irfft(spectrum, len(samples))


def _mel(frequency):
  """The mel scale of O'Shaughnessy (1987)."""
  return 2595 * np.log10(1 + frequency / 700)
