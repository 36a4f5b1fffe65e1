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

# Of the log-variance of z. Below, a token would say more than 5 nats a number;
# above, the draw is of no use.
_LOG_VAR = (-10.0, 2.0)


class Autoencoder(nn.Module):
  """One normal z for each patch (Kingma and Welling 2014), and a decoder.

  The encoder is a pyramid of convolutions, the decoder its mirror image. The
  parameters are the same on all devices: there are few.

  Attributes:
    config: dim, width and num_blocks.
    patch: rows and columns that one token sees.
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
    """The two halves, mirror images."""
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
    self.encoder_norm = linear.RMSNorm(**types)
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
    self.decoder_norm = linear.RMSNorm(**types)
    self.write = dense(widths[0], self.channels)

  def __call__(
    self, x_BHWC: jax.Array, key: jax.Array, sizes_B2: jax.Array | None = None
  ) -> tuple[jax.Array, latent.Normal]:
    """The picture from a draw of its z, and the posterior."""
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
      sizes_B2: real rows and columns, from the top left corner; None: all. A
        smaller picture's z is as if the canvas ended with its last token.
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
    """Pictures float32[B, H, W, C], zero beyond their last tokens.

    Args:
      z_BNZ: z of every token of the canvas, row by row.
      grid: tokens along the height and the width of the canvas.
      sizes_B2: as in `encode`; only which tokens they touch has a say.
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


def losses(
  x_BHWC: jax.Array,
  decoded_BHWC: jax.Array,
  posterior: latent.Normal,
  patch: tuple[int, int],
  sizes_B2: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Means over what is real; 0 of a batch where nothing is.

  `l1` a number of the picture; `kl`, to a standard normal, nats a token;
  `edge`, the L1 of differences of neighbours, for pictures (Mathieu et al.
  2016); `spectral`, the spectral convergence, for log-mel spectrograms
  (Arik et al. 2018): the error's norm over the sound's, of exp(x), in which
  what is loud counts more.

  Args:
    x_BHWC: the pictures.
    decoded_BHWC: what the decoder made of them.
    posterior: of [B, N, Z].
    patch: rows and columns of a token.
    sizes_B2: real rows and columns; 0: no picture; None: all is real.
  """
  x_BHWC, decoded_BHWC = (
    part.astype(jnp.float32) for part in (x_BHWC, decoded_BHWC)
  )
  B = x_BHWC.shape[0]
  extent = convolution.Extent(x_BHWC.shape[:3], sizes_B2)
  gap_BHWC = decoded_BHWC - x_BHWC
  real_BHWC = jnp.broadcast_to(extent.mask, gap_BHWC.shape)
  real_BN1 = jnp.broadcast_to(
    extent.after(patch).mask, (*extent.after(patch).shape, 1)
  ).reshape(B, -1, 1)

  def edge(axis):
    # The later of two neighbours is real only if both are.
    later = jax.lax.slice_in_dim(real_BHWC, 1, None, axis=axis)
    return _mean(jnp.abs(jnp.diff(gap_BHWC, axis=axis)), later)

  divergence_BNZ = posterior.divergence()
  count = jnp.sum(real_BN1)
  return {
    'l1': _mean(jnp.abs(gap_BHWC), real_BHWC),
    'kl': jnp.sum(divergence_BNZ * real_BN1) / jnp.maximum(count, 1),
    'edge': (edge(1) + edge(2)) / 2,
    'spectral': _spectral_convergence(x_BHWC, decoded_BHWC, real_BHWC),
  }


def _mean(values: jax.Array, real: jax.Array) -> jax.Array:
  return jnp.sum(values * real) / jnp.maximum(jnp.sum(real), 1)


def _spectral_convergence(
  x_BHWC: jax.Array, decoded_BHWC: jax.Array, real_BHWC: jax.Array
) -> jax.Array:
  # A decoder that is not trained yet may say anything.
  true, made = (jnp.exp(jnp.clip(x, -8, 8)) for x in (x_BHWC, decoded_BHWC))
  norms_B = (
    # The gradient of a root is infinite at 0.
    jnp.sqrt(jnp.sum(jnp.square(x) * real_BHWC, axis=(1, 2, 3)) + 1e-6)
    for x in (made - true, true)
  )
  there_B = jnp.max(real_BHWC, axis=(1, 2, 3))
  return _mean(jnp.divide(*norms_B), there_B)
