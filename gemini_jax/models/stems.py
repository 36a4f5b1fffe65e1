"""Pictures and sounds as vectors, before the layers that read them.

B media, H x W pixels of C channels, F frames, M bands of the mel scale, N
tokens of the canvas or of the longest sound, P numbers in a patch, D width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.layers import convolution, linear
from gemini_jax.models import patch_positions


class ImageStem(nn.Module):
  """Patches as vectors, by one linear map (ViT, Dosovitskiy et al. 2021).

  With `num_blocks` by convolutions, which also see the neighbours of a patch
  and are the same at every position: small data needs both (Xiao et al. 2021).

  Attributes:
    patch: pixels along its sides.
    width: D.
    num_blocks: residual convolutions after each stride; 0: a linear map.
    dtype: of the computation.
    param_dtype: of the parameters.
    scale: root mean square of the output, for inputs of 1.
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
  ) -> tuple[jax.Array, patch_positions.Positions]:
    """Patches of the extent, those of its first row first, [B, N, D].

    Args:
      values_BHWC: pixels from 0 to 255, each picture in its canvas' top left
        corner.
      sizes_B2: int32, height and width in pixels. Pixels outside are grey;
        patches outside come last and have no meaning.
    """
    B, height, width, C = values_BHWC.shape
    side = self.patch
    config_lib.check(
      height % side == 0 == width % side,
      f'model.image.patch={side} must divide the sides of a canvas of '
      f'{height} x {width} pixels',
    )
    grid = height // side, width // side
    positions = patch_positions.of_sizes(sizes_B2, (side, side), grid)
    at_BN = (
      positions.coordinates_BNA[..., 0] * grid[1]
      + positions.coordinates_BNA[..., 1]
    )
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
      x = patch_positions.take_rows(x.reshape(B, -1, self.width), at_BN)
      return self.scale * linear.RMSNorm(dtype=types['dtype'], name='norm')(
        x
      ), positions
    patches = values_BHWC.reshape(B, grid[0], side, grid[1], side, C)
    patches = patches.swapaxes(2, 3).reshape(B, grid[0] * grid[1], -1)
    # Gathered as bytes: nothing has a gradient yet.
    patches = patch_positions.take_rows(patches, at_BN)
    pixels = patches.astype(jnp.float32) / 127.5 - 1
    # Rows and columns of a patch that lie in the picture.
    left_BN2 = sizes_B2[:, None] - positions.coordinates_BNA * side
    inside_BNA = jnp.arange(side)[None, None, None] < left_BN2[..., None]
    inside = inside_BNA[:, :, 0, :, None] & inside_BNA[:, :, 1, None, :]
    inside = inside & positions.real[..., None, None]
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
    return x_BND, positions


class AudioStem(nn.Module):
  """Frames of a spectrogram as vectors, by two convolutions along time.

  As in Whisper (Radford et al. 2022). The window of each is its stride and one
  frame more on either side.

  Attributes:
    patch: frames from one token to the next.
    hop: samples from one frame to the next.
    width: D.
    dtype: of the computation.
    param_dtype: of the parameters.
    scale: root mean square of the output, for inputs of 1.
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
  ) -> tuple[jax.Array, patch_positions.Positions]:
    """A vector for every `patch` frames, [B, N, D].

    Args:
      values_BFM: log-mel spectrogram, about zero mean and unit variance.
      sizes_B1: int32, samples. Frames after them are zeros, and their tokens
        have no meaning.
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
    return x_BND, patch_positions.of_sizes(
      sizes_B1, (step,), (F // self.patch,)
    )


class WhisperStem(nn.Module):
  """Frames of a spectrogram as vectors, as in Whisper: two frames a token.

  Both convolutions see three frames, the second at every other one.

  Attributes:
    hop: samples from one frame to the next.
    width: D.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  hop: int
  width: int
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, values_BFM: jax.Array, sizes_B1: jax.Array
  ) -> tuple[jax.Array, patch_positions.Positions]:
    """A vector for every second frame, [B, F / 2, D].

    Args:
      values_BFM: log-mel spectrogram.
      sizes_B1: int32, samples. What is silent after them is read as well.
    """
    _, F, M = values_BFM.shape
    types: dict[str, Any] = {
      'use_bias': True,
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    activate = functools.partial(nn.gelu, approximate=False)
    x_BFD = linear.Einsum(
      (3, M, self.width), (None, None, 'mlp'), **types, name='frames'
    )('BFKM,KMD->BFD', unfold(values_BFM, 1))
    # Of four frames the last is not seen.
    windows_BNKD = unfold(activate(x_BFD), 2)[:, :, :3]
    x_BND = linear.Einsum(
      (3, self.width, self.width),
      (None, 'mlp', 'embed'),
      **types,
      name='tokens',
    )('BNKD,KDE->BNE', windows_BNKD)
    return activate(x_BND), patch_positions.of_sizes(
      sizes_B1, (2 * self.hop,), (F // 2,)
    )


def masked(x_BFM: jax.Array, sizes_B1: jax.Array, step: int) -> jax.Array:
  """Frames that begin after the last sample become zeros.

  Args:
    x_BFM: frames.
    sizes_B1: samples.
    step: samples from one frame to the next.
  """
  starts_F = step * jnp.arange(x_BFM.shape[1])
  return jnp.where((starts_F[None] < sizes_B1)[..., None], x_BFM, 0)


def unfold(x_BFM: jax.Array, stride: int) -> jax.Array:
  """Windows of `stride` frames and one more on either side.

  [B, F / stride, stride + 2, M]; zeros before the first and after the last.
  """
  B, F, M = x_BFM.shape
  x_BFKM = x_BFM.reshape(B, F // stride, stride, M)
  zeros_B11M = jnp.zeros_like(x_BFKM[:, :1, :1])
  before = jnp.concatenate([zeros_B11M, x_BFKM[:, :-1, -1:]], axis=1)
  after = jnp.concatenate([x_BFKM[:, 1:, :1], zeros_B11M], axis=1)
  return jnp.concatenate([before, x_BFKM, after], axis=2)
