"""What pictures, sounds and videos are for a model: sections of `model`."""

import dataclasses
from typing import Annotated, Literal

from gemini_jax.config import schema

# What there is beside text.
KINDS = ('image', 'audio', 'video')
Pixels = Annotated[int, schema.Range(0, cap=2**14)]
Seconds = Annotated[float, schema.Range(0, above=True, cap=60)]
# Numbers of the matrix from a spectrum to the mel scale.
_MAX_FILTERS = 2**28


@schema.section('model.KIND.autoencoder')
class Autoencoder:
  """A convolutional VAE whose z the Transformer reads, and can write.

  One z for each token; see models/autoencoder.
  """

  # Numbers in the z of a token; 0: no autoencoder.
  dim: schema.SizeOrZero = 0
  # Channels of the widest convolution.
  width: schema.Size = 64
  # Residual convolutions between two strides, of the encoder and the decoder.
  num_blocks: schema.Layers = 1
  # Normals in the mixture that the Transformer writes z from.
  num_components: schema.Size = 8


@schema.section('model.image')
class Image:
  """Pictures, as soft tokens in a sequence; see models/media_encoders."""

  # Pixels of the canvas that pictures are fitted to; 0: no pictures.
  height: Pixels = 0
  width: Pixels = 0
  # 1: grey, 3: red, green and blue.
  channels: Literal[1, 3] = 3
  # Pixels along a side of what one token sees.
  patch: Annotated[int, schema.Range(1, cap=2**14)] = 8
  # Residual convolutions after each stride from pixels to patches, which see
  # beyond a patch; 0: a patch is mapped alone, by a matrix.
  num_blocks: schema.LayersOrZero = 0
  # Layers of an encoder of its own, before what it says enters a sequence.
  num_layers: schema.LayersOrZero = 0
  # How that encoder knows places: rotary angles or sinusoids, in two dims.
  # Patches that go straight into a sequence always bring sinusoids.
  position: Literal['rotary', 'sincos'] = 'rotary'
  # Tokens that a resampler leaves of a picture; 0: no resampler, all.
  num_tokens: schema.SizeOrZero = 0
  # Reads and writes pictures as z; without one they are read as patches.
  autoencoder: Autoencoder = dataclasses.field(default_factory=Autoencoder)

  def __post_init__(self):
    schema.check(
      self.height % self.patch == 0 == self.width % self.patch,
      f'model.image.patch={self.patch} must divide model.image.height='
      f'{self.height} and model.image.width={self.width}',
    )
    schema.check(
      bool(self.height) == bool(self.width),
      f'model.image.height={self.height} and model.image.width={self.width} '
      'must be set together',
    )

  @property
  def grid(self) -> tuple[int, int]:
    """Patches along height and width."""
    return self.height // self.patch, self.width // self.patch

  def patches_of(self, height: int, width: int) -> int:
    """Patches of a picture of so many pixels."""
    rows, columns = (
      min(-(-size // self.patch), most)
      for size, most in zip((height, width), self.grid, strict=True)
    )
    return rows * columns

  def tokens_of(self, height: int, width: int) -> int:
    """Soft tokens of a picture of so many pixels; of a resampler always all."""
    count = self.patches_of(height, width)
    return (self.num_tokens or count) if count else 0

  @property
  def soft_tokens(self) -> int:
    """Tokens of a picture of the canvas' size."""
    return self.tokens_of(self.height, self.width)


@schema.section('model.audio')
class Audio:
  """Sounds, as soft tokens in a sequence: their log-mel spectrogram is read."""

  # Samples a second that sounds are brought to; 0: no sounds.
  sample_rate: Annotated[int, schema.Range(0, cap=1_000_000)] = 0
  # The longest sound; of longer ones the beginning is read.
  seconds: Annotated[float, schema.Range(0, above=True, cap=1_000_000)] = 1.0
  # Bands of the mel scale.
  num_mels: Annotated[int, schema.Range(1, cap=1024)] = 64
  # Where they begin and end, in Hz; None: half the rate.
  f_min: schema.NonNegative = 20.0
  f_max: schema.Positive | None = None
  # Seconds that a frame of the spectrogram sees, and from one to the next.
  window: Seconds = 0.025
  hop: Seconds = 0.010
  # Frames that one token sees.
  patch: schema.Size = 4
  # Layers of an encoder of its own, and tokens that a resampler leaves.
  num_layers: schema.LayersOrZero = 0
  num_tokens: schema.SizeOrZero = 0
  # Reads and writes sounds as z; without one, convolutions read the frames.
  autoencoder: Autoencoder = dataclasses.field(default_factory=Autoencoder)

  def __post_init__(self):
    path = 'model.audio'
    if not self.sample_rate:
      return
    schema.check(
      self.f_min < self.top <= self.sample_rate / 2,
      f'{path}.f_max={self.f_max} must be above {path}.f_min={self.f_min} and '
      f'at most half of {path}.sample_rate={self.sample_rate}',
    )
    schema.check(
      self.hop_samples > 0, f'{path}.hop={self.hop} is less than a sample'
    )
    filters = self.window_samples * self.num_mels
    schema.check(
      filters <= _MAX_FILTERS,
      f'{path}.window={self.window} of {self.window_samples:,} samples and '
      f'{path}.num_mels={self.num_mels} make a matrix of {filters:,} numbers; '
      f'it holds at most {_MAX_FILTERS:,}',
    )

  @property
  def top(self) -> float:
    """The highest frequency of the bands, Hz."""
    return self.sample_rate / 2 if self.f_max is None else self.f_max

  @property
  def window_samples(self) -> int:
    """Samples that a frame sees."""
    return max(round(self.window * self.sample_rate), self.hop_samples)

  @property
  def hop_samples(self) -> int:
    """Samples from one frame to the next."""
    return round(self.hop * self.sample_rate)

  @property
  def num_samples(self) -> int:
    """Samples of the longest sound: of whole tokens."""
    if not self.sample_rate:
      return 0
    size = self.hop_samples * self.patch
    return -(-round(self.seconds * self.sample_rate) // size) * size

  @property
  def num_frames(self) -> int:
    """Frames of the longest sound."""
    return self.num_samples // self.hop_samples if self.sample_rate else 0

  def tokens_of(self, num_samples: int) -> int:
    """Soft tokens of a sound of so many samples; of a resampler always all."""
    if not self.sample_rate:
      return 0
    num_samples = min(num_samples, self.num_samples)
    count = -(-num_samples // (self.hop_samples * self.patch))
    return (self.num_tokens or count) if count else 0

  @property
  def soft_tokens(self) -> int:
    """Tokens of the longest sound."""
    return self.tokens_of(self.num_samples)


@schema.section('model.video')
class Video:
  """Frames, each read as a picture (model.image), as soft tokens in order."""

  # Frames of a video, taken at even distances; 0: no videos.
  num_frames: schema.SizeOrZero = 0
  # Tokens that are left of each frame: the mean over patches (1) or of as many
  # rectangles of them; 0: all. A mean is of use where model.image.num_layers
  # has made patches tell of their place and neighbours.
  frame_tokens: schema.SizeOrZero = 0
