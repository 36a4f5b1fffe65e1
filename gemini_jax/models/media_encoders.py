"""Pictures, sounds and videos as soft tokens.

B media, H x W pixels of C channels, F frames, M bands of the mel scale, N
tokens of the canvas or of the longest sound, P numbers in a patch, A
coordinates of a place, R numbers of an extent, D width, K tokens of a frame.
"""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import spmd

from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import convolution, embedding, linear
from gemini_jax.models import fusion, stack, transformer
from gemini_jax.parallel import pipeline

# Ratio of the longest wavelength of places to the shortest: a picture has few
# rows (Heo et al. 2024), a sound many tokens.
_BASE = {'image': 100.0, 'audio': 10_000.0}


@flax.struct.dataclass
class Places:
  """Where each soft token comes from, the real ones first.

  Attributes:
    places_BNA: int32; (row, column) | (time,). 0 past the real ones.
    count_B: int32, the real ones.
    extent_BA: int32, how many there are along each coordinate.
  """

  places_BNA: jax.Array
  count_B: jax.Array
  extent_BA: jax.Array

  @property
  def real(self) -> jax.Array:
    """Which slots hold a token, bool[B, N]."""
    slots_N = jnp.arange(self.places_BNA.shape[1])
    return slots_N[None] < self.count_B[:, None]


def places_of(
  sizes_BA: jax.Array, steps: tuple[int, ...], grid: tuple[int, ...]
) -> Places:
  """Places of media, row by row of their own extent.

  Args:
    sizes_BA: real extents, in pixels or samples; 0 where there is no medium.
    steps: pixels or samples from one token to the next.
    grid: tokens along each coordinate of the canvas.
  """
  steps_1A, grid_1A = np.array(steps)[None], np.array(grid)[None]
  extent_BA = jnp.minimum(-(-sizes_BA // steps_1A), grid_1A)
  count_B = jnp.prod(extent_BA, axis=-1)
  rest_BN = jnp.broadcast_to(
    jnp.arange(np.prod(grid)), (count_B.shape[0], np.prod(grid))
  )
  rest_BN = jnp.where(rest_BN < count_B[:, None], rest_BN, 0)
  coordinates = []
  for extent_B in jnp.maximum(extent_BA, 1).T[::-1]:
    coordinates.append(rest_BN % extent_B[:, None])
    rest_BN = rest_BN // extent_B[:, None]
  return Places(jnp.stack(coordinates[::-1], axis=-1), count_B, extent_BA)


class ImageStem(nn.Module):
  """Patches as vectors, by one linear map (ViT, Dosovitskiy et al. 2021).

  With `num_blocks` by convolutions, which also see what lies around a patch
  and know things wherever they stand: small data needs it (Xiao et al. 2021).

  Attributes:
    patch: pixels along its sides.
    width: D.
    num_blocks: residual convolutions after each stride; 0: a linear map.
    dtype: of the computation.
    param_dtype: of the parameters.
    scale: root mean square of what comes out, of inputs of 1.
  """

  patch: int
  width: int
  num_blocks: int = 0
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  scale: float = 1.0

  @nn.compact
  def __call__(
    self, values_BHWC: jax.Array, sizes_B2: jax.Array
  ) -> tuple[jax.Array, Places]:
    """Patches of the extent, those of its first row first, [B, N, D].

    Args:
      values_BHWC: pixels from 0 to 255, each picture in its canvas' top left
        corner.
      sizes_B2: int32, height and width in pixels. What lies outside in a
        patch is grey, and the patches outside come last and mean nothing.
    """
    B, height, width, C = values_BHWC.shape
    side = self.patch
    config_lib.check(
      height % side == 0 == width % side,
      f'model.image.patch={side} must divide the sides of a canvas of '
      f'{height} x {width} pixels',
    )
    grid = height // side, width // side
    places = places_of(sizes_B2, (side, side), grid)
    at_BN = places.places_BNA[..., 0] * grid[1] + places.places_BNA[..., 1]
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    if self.num_blocks:
      # None among the pixels themselves: those would cost the most.
      first = (convolution.strides((side, side)) or ((1, 1),))[0]
      extent = convolution.Extent((B, height, width), sizes_B2)
      x = (values_BHWC.astype(jnp.float32) / 127.5 - 1) * extent.mask
      cells = convolution.gather(x, first)
      x = convolution.Pyramid(
        (side // first[0], side // first[1]),
        self.width,
        self.num_blocks,
        **types,
        name='pyramid',
      )(cells.reshape(*cells.shape[:3], -1), extent.after(first).sizes_B2)
      x = gather(x.reshape(B, -1, self.width), at_BN)
      return self.scale * linear.RMSNorm(**types, name='norm')(x), places
    patches = values_BHWC.reshape(B, grid[0], side, grid[1], side, C)
    patches = patches.swapaxes(2, 3).reshape(B, grid[0] * grid[1], -1)
    # Gathered as bytes: nothing has a gradient yet.
    patches = gather(patches, at_BN)
    pixels = patches.astype(jnp.float32) / 127.5 - 1
    # Pixels of a patch that are left inside, from its top left corner.
    left_BN2 = sizes_B2[:, None] - places.places_BNA * side
    inside_BNA = jnp.arange(side)[None, None, None] < left_BN2[..., None]
    inside = inside_BNA[:, :, 0, :, None] & inside_BNA[:, :, 1, None, :]
    inside = inside & places.real[..., None, None]
    pixels = jnp.where(
      inside[..., None], pixels.reshape(*inside.shape, C), 0
    ).reshape(patches.shape)
    x_BND = linear.Einsum(
      (pixels.shape[-1], self.width),
      (None, 'embed'),
      use_bias=True,
      init_scale=self.scale * pixels.shape[-1] ** -0.5,
      **types,
      name='patch',
    )('BNP,PD->BND', pixels)
    return x_BND, places


class AudioStem(nn.Module):
  """Frames of a spectrogram as vectors, by two convolutions along time.

  As in Whisper (Radford et al. 2022). Each sees what it strides over and one
  more at either side.

  Attributes:
    patch: frames from one token to the next.
    hop: samples from one frame to the next.
    width: D.
    dtype: of the computation.
    param_dtype: of the parameters.
    scale: root mean square of what comes out, of inputs of 1.
  """

  patch: int
  hop: int
  width: int
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  scale: float = 1.0

  @nn.compact
  def __call__(
    self, values_BFM: jax.Array, sizes_B1: jax.Array
  ) -> tuple[jax.Array, Places]:
    """A vector for every `patch` frames, [B, N, D].

    Args:
      values_BFM: log-mel spectrogram, about zero mean and unit variance.
      sizes_B1: int32, samples. What lies behind is zeros, and its tokens mean
        nothing.
    """
    _, F, M = values_BFM.shape
    config_lib.check(
      F % self.patch == 0,
      f'model.audio.patch={self.patch} must divide the {F} frames',
    )
    types: dict[str, Any] = {
      'use_bias': True,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    first = 2 if self.patch % 2 == 0 else 1
    x_BFM = masked(values_BFM, sizes_B1, self.hop)
    x_BFM = unfold(x_BFM, first)
    x_BFD = linear.Einsum(
      (first + 2, M, self.width), (None, None, 'mlp'), **types, name='frames'
    )('BFKM,KMD->BFD', x_BFM)
    x_BFD = masked(nn.gelu(x_BFD), sizes_B1, self.hop * first)
    second = self.patch // first
    shape = (second + 2, self.width, self.width)
    x_BND = linear.Einsum(
      shape,
      (None, 'mlp', 'embed'),
      # A GELU of a standard normal has a mean square of 0.43.
      init_scale=self.scale * (0.43 * shape[0] * shape[1]) ** -0.5,
      **types,
      name='tokens',
    )('BNKD,KDE->BNE', unfold(x_BFD, second))
    step = self.hop * self.patch
    return x_BND, places_of(sizes_B1, (step,), (F // self.patch,))


class Encoder(nn.Module):
  """Media of one kind as soft tokens, as large as tokens' vectors.

  A stem, layers of its own (bidirectional, over what is really there), a
  resampler; what is not configured is left out.

  Attributes:
    config: of the model; `image` or `audio` holds what is asked for.
    kind: of the media. The frames of videos are pictures: see Video.
    schedule: of the stages, where the mesh has some.
  """

  config: config_lib.Model
  kind: Literal['image', 'audio']
  schedule: pipeline.Schedule = pipeline.Schedule()

  @nn.compact
  def __call__(
    self, values: jax.Array, sizes_BR: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """Soft tokens [B, N, D], the real ones first, and how many they are, [B].

    Past those, zeros. As many are real as `config.tokens_of` says.

    Args:
      values: pictures [B, H, W, C] from 0 to 255, on a canvas of any size; or
        log-mel spectrograms [B, F, M].
      sizes_BR: int32, real extents: (height, width) | (samples,); 0 where
        there is no medium.
      deterministic: no dropout.
    """
    config = self.config
    part = config.image if self.kind == 'image' else config.audio
    soft_scale = fusion.soft_scale(config)
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    # Whether anything lies between the stem and the sequence.
    refined = bool(part.num_layers or part.num_tokens)
    scale = 1.0 if refined else soft_scale
    if self.kind == 'image':
      image = config.image
      stem: Any = ImageStem(
        image.patch,
        config.width,
        image.num_blocks,
        scale=scale,
        **types,
        name='stem',
      )
    else:
      audio = config.audio
      stem = AudioStem(
        audio.patch,
        audio.hop_samples,
        config.width,
        scale=scale,
        **types,
        name='stem',
      )
    x_BND, places = stem(values, sizes_BR)
    x_BND = spmd.with_logical_constraint(x_BND, ('batch', None, None))

    def located(x_BND):
      waves_BND = embedding.sinusoids(
        places.places_BNA, config.width, _BASE[self.kind]
      )
      return x_BND + (scale * waves_BND).astype(x_BND.dtype)

    rotary = part.num_layers > 0 and (
      self.kind == 'audio' or config.image.position == 'rotary'
    )
    if self.kind == 'image' and not rotary:
      x_BND = located(x_BND)
    if part.num_layers:
      x_BND = self.trunk(x_BND, places, rotary, deterministic)
      x_BND = linear.RMSNorm(config.norm_eps, **types, name='norm')(x_BND)
    real_BN, count_B = places.real, places.count_B
    if part.num_tokens:
      # A resampler sees no order.
      if self.kind == 'audio' or rotary:
        x_BND = located(x_BND)
      x_BND = fusion.Resampler(config, part.num_tokens, name='resampler')(
        x_BND, real_BN, deterministic
      )
      count_B = jnp.where(count_B > 0, part.num_tokens, 0)
      real_BN = jnp.broadcast_to(count_B[:, None] > 0, x_BND.shape[:2])
    if refined:
      x_BND = linear.Einsum(
        (config.width, config.width),
        (None, 'embed'),
        init_scale=soft_scale * config.width**-0.5,
        **types,
        name='projector',
      )('BND,DE->BNE', x_BND)
    return jnp.where(real_BN[..., None], x_BND, 0), count_B

  def trunk(
    self,
    x_BND: jax.Array,
    places: Places,
    rotary: bool,
    deterministic: bool,
  ) -> jax.Array:
    """The tokens after the encoder's own layers."""
    part = self.config.image if self.kind == 'image' else self.config.audio
    config = fusion.dense(self.config)
    angles = None
    if rotary:
      angles = embedding.rotation(
        embedding.place_angles(
          places.places_BNA, config.head_width // 2, _BASE[self.kind]
        )
      )
    sequence = fusion.plain_sequence(places.real)
    view = transformer.View(masking.visible(sequence, sequence), angles)
    context = transformer.Context(
      views={'global': view},
      positions_BT=sequence.positions,
      real_BT=places.real,
    )
    layers = stack.Stack(
      config, part.num_layers, schedule=self.schedule, name='layers'
    )
    with fusion.whole_length():
      x_BND, _, _ = layers(x_BND, context, deterministic=deterministic)
    return x_BND


class Video(nn.Module):
  """Videos as soft tokens: of each frame those of a picture, and its time.

  Attributes:
    config: of the model.
    picture: reads the frames, and pictures elsewhere: an Encoder.
  """

  config: config_lib.Model
  picture: nn.Module

  @nn.compact
  def __call__(
    self, values: jax.Array, sizes_B3: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """Soft tokens [B, F * K, D], frame by frame, and how many are real, [B].

    Args:
      values: frames [B, F, H, W, C] from 0 to 255.
      sizes_B3: int32, (frames, height, width).
      deterministic: no dropout.
    """
    config = self.config
    num, patch = config.video.frame_tokens, config.image.patch
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    B, F, H, W = values.shape[:4]
    config_lib.check(
      config.video.num_frames >= F,
      f'model.video.num_frames={config.video.num_frames} is less than the {F} '
      'frames of a video',
    )
    frames_F = jnp.arange(F)
    there_BF = frames_F[None] < sizes_B3[:, :1]
    sizes_BF2 = jnp.where(there_BF[..., None], sizes_B3[:, None, 1:], 0)
    # The frames of all videos are so many pictures.
    sizes_X2 = sizes_BF2.reshape(-1, 2)
    x_XND, count_X = self.picture(
      values.reshape(-1, *values.shape[2:]), sizes_X2, deterministic
    )
    if num:
      places = places_of(sizes_X2, (patch, patch), (H // patch, W // patch))
      if config.image.num_tokens:
        places = places_of(count_X[:, None], (1,), (x_XND.shape[1],))
      x_XND = pooled(x_XND, places, num)
      # As large as tokens again, which a mean of many is not.
      x_XND = linear.RMSNorm(config.norm_eps, **types, name='norm')(x_XND)
      x_XND = x_XND * jnp.asarray(fusion.soft_scale(config), x_XND.dtype)
      count_X = jnp.where(count_X > 0, num, 0)
    time_FD = embedding.Embedding(
      config.video.num_frames,
      config.width,
      axes=(None, 'embed'),
      init_scale=fusion.soft_scale(config),
      **types,
      name='time',
    )(frames_F)
    N, D = x_XND.shape[1:]
    x_BFND = x_XND.reshape(B, F, N, D) + time_FD[None, :, None]
    # All frames of a video have the same number of tokens.
    each_B = count_X.reshape(B, F)[:, 0]
    count_B = each_B * jnp.minimum(sizes_B3[:, 0], F)
    slots_B = jnp.maximum(each_B, 1)[:, None]
    slots_BN = jnp.broadcast_to(jnp.arange(F * N), (B, F * N))
    real_BN = slots_BN < count_B[:, None]
    at_BN = slots_BN // slots_B * N + slots_BN % slots_B
    x_BND = gather(x_BFND.reshape(B, F * N, D), jnp.where(real_BN, at_BN, 0))
    return jnp.where(real_BN[..., None], x_BND, 0), count_B


def pooled(x_BND: jax.Array, places: Places, num: int) -> jax.Array:
  """Means over `num` rectangles of the real tokens, [B, K, D].

  The rectangles make a grid, as square as can be, with no more rows than
  columns; they overlap where they do not divide the tokens.
  """
  num_rows = max(n for n in range(1, int(num**0.5) + 1) if num % n == 0)
  split = (num_rows, num // num_rows)
  weights_BKN = places.real[:, None].astype(jnp.float32)
  num_axes = places.places_BNA.shape[-1]
  split = split if num_axes == 2 else (num,)
  for axis in range(num_axes):
    parts_K = np.indices(split)[axis].reshape(1, -1)
    extent_B1 = places.extent_BA[:, axis, None]
    start_BK = parts_K * extent_B1 // split[axis]
    stop_BK = -(-(parts_K + 1) * extent_B1 // split[axis])
    place_B1N = places.places_BNA[:, None, :, axis]
    weights_BKN *= (place_B1N >= start_BK[..., None]) & (
      place_B1N < stop_BK[..., None]
    )
  total_BK1 = jnp.sum(weights_BKN, axis=-1, keepdims=True)
  weights_BKN = weights_BKN / jnp.maximum(total_BK1, 1)
  mean_BKD = jnp.einsum('BKN,BND->BKD', weights_BKN, x_BND.astype(jnp.float32))
  return mean_BKD.astype(x_BND.dtype)


def gather(x_BNP: jax.Array, at_BN: jax.Array) -> jax.Array:
  """Rows of each medium."""
  return jax.vmap(lambda x_NP, at_N: jnp.take(x_NP, at_N, axis=0))(x_BNP, at_BN)


def masked(x_BFM: jax.Array, sizes_B1: jax.Array, step: int) -> jax.Array:
  """Zeros in the place of what begins past so many samples."""
  starts_F = step * jnp.arange(x_BFM.shape[1])
  return jnp.where((starts_F[None] < sizes_B1)[..., None], x_BFM, 0)


def unfold(x_BFM: jax.Array, stride: int) -> jax.Array:
  """Windows of `stride` frames and one more at either side.

  [B, F / stride, stride + 2, M]; zeros before the first and after the last.
  """
  B, F, M = x_BFM.shape
  x_BFKM = x_BFM.reshape(B, F // stride, stride, M)
  zeros_B11M = jnp.zeros_like(x_BFKM[:, :1, :1])
  before = jnp.concatenate([zeros_B11M, x_BFKM[:, :-1, -1:]], axis=1)
  after = jnp.concatenate([x_BFKM[:, 1:, :1], zeros_B11M], axis=1)
  return jnp.concatenate([before, x_BFKM, after], axis=2)
