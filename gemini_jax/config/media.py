"""How a model represents pictures, sounds and videos: sections of `model`."""

import dataclasses
from typing import Annotated, Literal

from gemini_jax.config import schema

# Kinds of media.
MEDIA = ('image', 'audio', 'video')
NUMERIC = ('number', 'series')
# All that soft tokens are of. Their order is that of their placeholders, which
# are the last rows of the token table: a new kind goes to the front, so that
# those of earlier models stay where they are.
KINDS = (*NUMERIC, *MEDIA)
Pixels = Annotated[int, schema.Range(0, cap=2**14)]
Seconds = Annotated[float, schema.Range(0, above=True, cap=60)]
# Largest matrix from a spectrum to the mel scale, in entries.
_MAX_FILTERS = 2**28


@schema.section('model.KIND.autoencoder')
class Autoencoder:
  """A convolutional VAE whose z the Transformer reads and can generate.

  One z a token; see models/autoencoder.
  """

  # Dims of z; 0: no autoencoder.
  dim: schema.SizeOrZero = 0
  # Channels of the widest convolution.
  width: schema.Size = 64
  # Residual blocks between two strided convolutions, in each half.
  num_blocks: schema.Layers = 1
  # Components of the Gaussian mixture that the Transformer predicts z with.
  num_components: schema.Size = 8


@schema.section('model.KIND.tower')
class Tower:
  """A separate encoder as others train them: ViT, SigLIP, Whisper.

  Its `num_layers` layers have a width of their own, LayerNorms, biases and
  learned positions. The tower of sounds reads what Whisper does, silence up to
  the longest sound included. A published one is added to a model by
  commands/convert.
  """

  # Width of the residual stream; 0: no tower, the layers are as the model's.
  width: schema.SizeOrZero = 0
  # Heads, and hidden width of the feed-forward layer.
  num_heads: schema.Size = 12
  mlp_dim: schema.Size = 3072
  # Nonlinearity of the feed-forward layer.
  activation: Literal['gelu', 'gelu_exact', 'relu'] = 'gelu_exact'
  # Added to the variance under the root of every norm.
  norm_eps: schema.PositiveShare = 1e-6
  # A vector more before the patches, which all attend to, as in ViT.
  class_token: bool = False

  def __post_init__(self):
    schema.check(
      self.width % self.num_heads == 0,
      f'model.KIND.tower.num_heads={self.num_heads} must divide '
      f'model.KIND.tower.width={self.width}',
    )


def check_tower(path: str, section: 'Image | Audio'):
  """ConfigError where a tower and the rest of a section do not fit."""
  schema.check(
    not section.tower.width or section.num_layers > 0,
    f'{path}.tower.width={section.tower.width} needs {path}.num_layers above 0',
  )
  blocks = getattr(section, 'num_blocks', 0)
  schema.check(
    not (section.tower.width and blocks),
    f'{path}.tower.width={section.tower.width} needs {path}.num_blocks=0, not '
    f'{blocks}: a tower projects each patch by itself',
  )


@schema.section('model.image')
class Image:
  """Pictures, as soft tokens in a sequence; see models/media_encoders."""

  # Height and width, in pixels, of the canvas that pictures are resized to
  # fit; 0: no pictures.
  height: Pixels = 0
  width: Pixels = 0
  # 1: grey; 3: RGB.
  channels: Literal[1, 3] = 3
  # Height and width (pixels) of a patch; a patch is one token.
  patch: Annotated[int, schema.Range(1, cap=2**14)] = 8
  # Residual blocks after each strided convolution from pixels to patches, whose
  # receptive field is larger than a patch; 0: each patch is projected by
  # itself, as in ViT.
  num_blocks: schema.LayersOrZero = 0
  # Transformer layers of a separate encoder, before the tokens enter the
  # sequence; 0: none.
  num_layers: schema.LayersOrZero = 0
  # 2-D position encoding of that encoder: rotary or sinusoidal. Without an
  # encoder patches always have sinusoidal encodings.
  position: Literal['rotary', 'sincos'] = 'rotary'
  # That encoder as others train it.
  tower: Tower = dataclasses.field(default_factory=Tower)
  # Tokens that a Perceiver resampler makes of a picture; 0: no resampler.
  num_tokens: schema.SizeOrZero = 0
  # Represents pictures by z, as is needed to generate them; without one they
  # are read as patches.
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
    check_tower('model.image', self)

  @property
  def grid(self) -> tuple[int, int]:
    """Patches along height and width."""
    return self.height // self.patch, self.width // self.patch

  def patches_of(self, height: int, width: int) -> int:
    """Number of patches of a picture of the given size in pixels."""
    rows, columns = (
      min(-(-size // self.patch), limit)
      for size, limit in zip((height, width), self.grid, strict=True)
    )
    return rows * columns

  def tokens_of(self, height: int, width: int) -> int:
    """Number of soft tokens of a picture of the given size in pixels.

    With a resampler it does not depend on the size.
    """
    count = self.patches_of(height, width)
    return (self.num_tokens or count) if count else 0

  @property
  def soft_tokens(self) -> int:
    """Number of soft tokens of a picture as large as the canvas."""
    return self.tokens_of(self.height, self.width)


@schema.section('model.audio')
class Audio:
  """Sounds, as soft tokens in a sequence: their log-mel spectrogram is read."""

  # Sample rate (Hz) that sounds are resampled to; 0: no sounds.
  sample_rate: Annotated[int, schema.Range(0, cap=1_000_000)] = 0
  # Longest sound, in seconds; longer ones are cut.
  seconds: Annotated[float, schema.Range(0, above=True, cap=1_000_000)] = 1.0
  # Number of mel bands.
  num_mels: Annotated[int, schema.Range(1, cap=1024)] = 64
  # Lowest and highest frequency of the bands, in Hz; f_max None: half the
  # sample rate.
  f_min: schema.NonNegative = 20.0
  f_max: schema.Positive | None = None
  # Length of a frame of the spectrogram, and the step between frames, in
  # seconds.
  window: Seconds = 0.025
  hop: Seconds = 0.010
  # Frames in one token.
  patch: schema.Size = 4
  # Transformer layers of a separate encoder (0: none), and tokens that a
  # Perceiver resampler makes of a sound (0: no resampler).
  num_layers: schema.LayersOrZero = 0
  num_tokens: schema.SizeOrZero = 0
  # That encoder as others train it.
  tower: Tower = dataclasses.field(default_factory=Tower)
  # Represents sounds by z, as is needed to generate them; without one,
  # convolutions read the frames.
  autoencoder: Autoencoder = dataclasses.field(default_factory=Autoencoder)

  def __post_init__(self):
    path = 'model.audio'
    check_tower(path, self)
    schema.check(
      not self.tower.class_token,
      f'{path}.tower.class_token=True is of pictures',
    )
    schema.check(
      not self.tower.width or self.patch == 2,
      f'{path}.tower.width={self.tower.width} needs {path}.patch=2, not '
      f'{self.patch}',
    )
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
    """Samples in a frame."""
    return max(round(self.window * self.sample_rate), self.hop_samples)

  @property
  def hop_samples(self) -> int:
    """Samples from one frame to the next."""
    return round(self.hop * self.sample_rate)

  @property
  def num_samples(self) -> int:
    """Samples of the longest sound, rounded up to whole tokens."""
    if not self.sample_rate:
      return 0
    size = self.hop_samples * self.patch
    return -(-round(self.seconds * self.sample_rate) // size) * size

  @property
  def num_frames(self) -> int:
    """Frames of the longest sound."""
    return self.num_samples // self.hop_samples if self.sample_rate else 0

  def tokens_of(self, num_samples: int) -> int:
    """Number of soft tokens of a sound of `num_samples` samples.

    With a resampler it does not depend on the length.
    """
    if not self.sample_rate:
      return 0
    num_samples = min(num_samples, self.num_samples)
    count = -(-num_samples // (self.hop_samples * self.patch))
    return (self.num_tokens or count) if count else 0

  @property
  def soft_tokens(self) -> int:
    """Number of soft tokens of the longest sound."""
    return self.tokens_of(self.num_samples)


@schema.section('model.video')
class Video:
  """Videos: frames, each read as a picture (model.image), in order."""

  # Frames that are sampled from a video at equal distances; 0: no videos.
  num_frames: schema.SizeOrZero = 0
  # Tokens of each frame after average pooling: 1 pools all patches, more pool
  # that many rectangles of patches; 0: no pooling. Pooling works best after
  # model.image.num_layers, whose outputs know their position and context.
  frame_tokens: schema.SizeOrZero = 0


@schema.section('model.series')
class Series:
  """Series of numbers, as soft tokens in a sequence: patches of steps.

  Each channel is normalised by its mean and standard deviation in the training
  data (data.normalization).
  """

  # Steps of the longest series; longer ones are cut; 0: no series.
  length: schema.LengthOrZero = 0
  # Numbers of a step.
  channels: schema.Size = 1
  # Steps in one token; a series must have as many.
  patch: schema.Size = 8

  def __post_init__(self):
    schema.check(
      not self.length or self.patch <= self.length,
      f'model.series.patch={self.patch} must be at most model.series.length='
      f'{self.length}',
    )

  @property
  def num_steps(self) -> int:
    """Steps of the longest series, rounded up to whole tokens."""
    return -(-self.length // self.patch) * self.patch

  def tokens_of(self, num_steps: int) -> int:
    """Number of soft tokens of a series of `num_steps` steps."""
    return -(-min(num_steps, self.length) // self.patch)
