"""Synthetic records made of those of other data sets, each from its index.

H, W canvas; F frames; n samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import image, prepared, readers

# Part of the seed of a record, which differs between splits.
_SPLITS = {'train': 0, 'test': 1}
# Pictures for each sound. Every fifth picture belongs to the test split.
_PAIRS = {'train': 8, 'test': 4}
_FOLDS = 5
# So much noise that either one alone is recognised in about three of four
# cases: standard deviation as a share of the range of pixels; signal-to-noise
# ratio in dB.
_PICTURE_NOISE = 0.5
_SOUND_TO_NOISE = -9.0
# Rows and columns that a picture moves in a step, by direction.
DIRECTIONS = {'up': (-1, 0), 'down': (1, 0), 'left': (0, -1), 'right': (0, 1)}
_NUM_FRAMES, _PIXELS_A_FRAME = 6, 2
_CANVAS = 40
# The size of pictures in Fashion-MNIST.
_PICTURE = config_lib.Image(height=28, width=28, channels=1, patch=1)


def digits(where: str, config: config_lib.Data) -> readers.Rows:
  """`image`, `audio` and `label`: a noisy picture and a noisy sound of a digit.

  Pictures are those of scikit-learn, uint8[8, 8] (Alpaydin and Kaynak 1998),
  sounds those of spoken_digit in `data.data_dir`, int16[n] at 8 kHz. Every
  sound is paired with several pictures of the same digit. The splits share no
  picture and no sound.

  Args:
    where: train or test.
    config: for `data_dir`.

  Raises:
    ConfigError: `where` is no split; scikit-learn or spoken_digit is missing.
  """
  _check_split(where)
  datasets = config_lib.optional(
    'sklearn.datasets', 'pictures of digits are of scikit-learn', 'judge'
  )
  sounds = prepared.read('spoken_digit', where, config)
  digits_8x8 = datasets.load_digits()
  images = np.asarray(digits_8x8['images'])
  labels = np.asarray(digits_8x8['target'])
  in_split = (np.arange(len(images)) % _FOLDS == _FOLDS - 1) == (
    where == 'test'
  )
  pictures = [images[in_split & (labels == digit)] for digit in range(10)]
  records = _Digits(_SPLITS[where], sounds.records, pictures, _PAIRS[where])
  identity = (
    f'{sounds.identity} {_PAIRS} {_FOLDS} {_PICTURE_NOISE} {_SOUND_TO_NOISE}'
  )
  return readers.Rows(records, identity, ('audio', 'image', 'label'))


@dataclasses.dataclass(frozen=True)
class _Digits(Sequence):
  """Each sound `num_pairs` times in a row, each time with a random picture."""

  split: int
  sounds: Sequence[dict[str, Any]]
  pictures: Sequence[np.ndarray]
  num_pairs: int

  def __len__(self) -> int:
    return len(self.sounds) * self.num_pairs

  def __getitem__(self, index: int) -> dict[str, Any]:
    random = np.random.default_rng([self.split, index])
    sound = self.sounds[index // self.num_pairs]
    digit = int(sound['label'])
    # Pixels are 0 to 16.
    picture_HW = random.choice(self.pictures[digit]) / 16
    picture_HW = picture_HW + _PICTURE_NOISE * random.normal(
      size=picture_HW.shape
    )
    samples_n = np.asarray(sound['audio'], np.float64)
    power = np.mean(np.square(samples_n)) * 10 ** (-_SOUND_TO_NOISE / 10)
    samples_n = samples_n + power**0.5 * random.normal(size=samples_n.shape)
    loudest = max(np.abs(samples_n).max(), 1.0)
    return {
      # The range [-1, 2] as bytes.
      'image': _bytes((picture_HW + 1) / 3),
      'audio': np.round(samples_n / loudest * 32767).astype(np.int16),
      'label': digit,
    }


def moving(where: str, config: config_lib.Data) -> readers.Rows:
  """`video`, `direction` and `label` of moving clothes, from Fashion-MNIST.

  Each picture of the split moves on a straight line, uint8[F, H, W]; direction
  and start depend on its index alone. `NAME,shuffled` has the same frames in a
  random order. The data set is read from `data.data_dir`.

  Args:
    where: train or test, or either with `,shuffled`.
    config: for `data_dir`.

  Raises:
    ConfigError: `where` is no split; Pillow or Fashion-MNIST is missing.
  """
  split, _, option = where.partition(',')
  _check_split(split)
  config_lib.check(
    option in ('', 'shuffled'),
    f'write moving:{split} or moving:{split},shuffled',
  )
  clothes = prepared.read('fashion_mnist', split, config)
  records = _Moving(_SPLITS[split], clothes.records, bool(option))
  identity = (
    f'{clothes.identity} {_NUM_FRAMES} {_PIXELS_A_FRAME} {_CANVAS} {option}'
  )
  fields = ('direction', 'label', 'video')
  return readers.Rows(records, identity, fields, clothes.names)


@dataclasses.dataclass(frozen=True)
class _Moving(Sequence):
  """Record i is the video of picture i."""

  split: int
  clothes: Sequence[dict[str, Any]]
  shuffled: bool

  def __len__(self) -> int:
    return len(self.clothes)

  def __getitem__(self, index: int) -> dict[str, Any]:
    random = np.random.default_rng([self.split, index])
    item = self.clothes[index]
    picture_HW = image.read(item['image'], _PICTURE).content[..., 0]
    direction = random.choice(list(DIRECTIONS))
    step_2 = np.array(DIRECTIONS[direction]) * _PIXELS_A_FRAME
    way_2 = step_2 * (_NUM_FRAMES - 1)
    # The whole picture is visible in all frames.
    free_2 = _CANVAS - np.array(picture_HW.shape)
    start_2 = random.integers(
      np.maximum(-way_2, 0), free_2 - np.maximum(way_2, 0), endpoint=True
    )
    video_FHW = np.zeros((_NUM_FRAMES, _CANVAS, _CANVAS), np.uint8)
    for i, frame_HW in enumerate(video_FHW):
      row, column = start_2 + i * step_2
      height, width = picture_HW.shape
      frame_HW[row : row + height, column : column + width] = picture_HW
    if self.shuffled:
      video_FHW = random.permutation(video_FHW)
    return {'video': video_FHW, 'direction': direction, 'label': item['label']}


def _bytes(values: np.ndarray) -> np.ndarray:
  """Values in [0, 1] as bytes; others are clipped."""
  return np.clip(np.round(255 * values), 0, 255).astype(np.uint8)


def _check_split(name: str):
  config_lib.check(
    name in _SPLITS, f'{name!r} is not a split; write train or test'
  )
