"""A convolutional VAE of pictures and of log-mel spectrograms.

A spectrogram [frames, bands] is a picture of one channel, whose patch is some
frames by all bands.

B batch, H height, W width, C channels, N tokens, Z numbers in the z of one,
P cells that are made one, D channels of convolutions.
"""

import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.layers import convolution, linear
from gemini_jax.models import latent, mixture

# Bounds of the log-variance of z. Below, each number of z would hold more than
# 5 nats; above, a draw holds next to nothing.
_LOG_VAR = (-10.0, 2.0)


class Autoencoder(nn.Module):
  """One normal z for each patch (Kingma and Welling 2014), and a decoder.

  The encoder is a pyramid of convolutions, the decoder its mirror image. Their
  few parameters are replicated on all devices.

  Attributes:
    config: dim, width and num_blocks.
    patch: rows and columns of the picture that one token stands for.
    channels: C of a picture.
    dtype: of the convolutions; z, its statistics and pictures are float32.
    param_dtype: of the parameters.
  """

  config: config_lib.Autoencoder
  patch: tuple[int, int]
  channels: int
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self):
    """Encoder and decoder."""
    config = self.config
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    self.strides = convolution.strides(self.patch)
    widths = convolution.channels(config.width, self.strides)
    dense = lambda *shape, **more: linear.Einsum(
      shape, (None,) * len(shape), use_bias=True, **(types | more)
    )
    self.encoder = convolution.Pyramid(
      self.patch, config.width, config.num_blocks, **types
    )
    self.encoder_norm = linear.RMSNorm(dtype=types['dtype'])
    self.statistics = dense(widths[-1], 2, config.dim, dtype=jnp.float32)
    self.reread = dense(config.dim, widths[-1])
    self.up = [
      dense(many, math.prod(stride), few)
      for stride, (few, many) in zip(
        self.strides, itertools.pairwise(widths), strict=True
      )
    ]
    self.decoder = [
      [convolution.Block(**types) for _ in range(config.num_blocks)]
      for _ in widths
    ]
    self.decoder_norm = linear.RMSNorm(dtype=types['dtype'])
    self.write = dense(widths[0], self.channels)

  def __call__(
    self, x_BHWC: jax.Array, key: jax.Array, sizes_B2: jax.Array | None = None
  ) -> tuple[jax.Array, latent.Normal]:
    """The picture decoded from a draw of its z, and the posterior."""
    posterior = self.encode(x_BHWC, sizes_B2)
    _, H, W, _ = x_BHWC.shape
    grid = H // self.patch[0], W // self.patch[1]
    decoded_BHWC = self.decode(posterior.sample(key), grid, sizes_B2)
    return decoded_BHWC, posterior

  def encode(
    self, x_BHWC: jax.Array, sizes_B2: jax.Array | None = None
  ) -> latent.Normal:
    """The posterior of every token of the canvas, [B, N, Z], row by row.

    Args:
      x_BHWC: pictures about -1 to 1; the patch divides their sides.
      sizes_B2: rows and columns of the picture, from the top left corner;
        None: all of the canvas. The rest of a larger canvas changes nothing.
    """
    B = x_BHWC.shape[0]
    x = self.encoder(x_BHWC, sizes_B2)
    statistics = self.statistics('BHWD,DSZ->BHWSZ', self.encoder_norm(x))
    mean, log_var = jnp.moveaxis(
      statistics.reshape(B, -1, 2, self.config.dim), 2, 0
    )
    return latent.Normal(mean, mixture.soft_clamp(log_var, *_LOG_VAR))

  def decode(
    self,
    z_BNZ: jax.Array,
    grid: tuple[int, int],
    sizes_B2: jax.Array | None = None,
  ) -> jax.Array:
    """Pictures float32[B, H, W, C], zero outside of their tokens.

    Args:
      z_BNZ: z of every token of the canvas, row by row.
      grid: tokens along the height and the width of the canvas.
      sizes_B2: as in `encode`, rounded up to whole tokens.
    """
    B, _, Z = z_BNZ.shape
    rows, columns = grid
    z_BHWZ = z_BNZ.reshape(B, rows, columns, Z)
    canvas = (B, rows * self.patch[0], columns * self.patch[1])
    extent = convolution.Extent(canvas, sizes_B2).after(self.patch)
    x = self.reread('BHWZ,ZD->BHWD', z_BHWZ * extent.mask)
    for level, stride in reversed(tuple(enumerate((None, *self.strides)))):
      real = extent.mask.astype(self.dtype)
      for block in self.decoder[level]:
        x = block(x, real)
      if stride:
        x = self.up[level - 1]('BHWD,DPE->BHWPE', x)
        x = convolution.spread(x, stride)
        extent = extent.before(stride)
    x = self.write('BHWD,DC->BHWC', self.decoder_norm(x))
    return x.astype(jnp.float32) * extent.mask
