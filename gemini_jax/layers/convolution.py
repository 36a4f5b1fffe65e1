"""Residual convolutions of pictures, and strides that keep every cell.

B batch, H height, W width, C channels in, D and E channels out, P cells that
are merged into one or that one sees, F hidden channels.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax.layers import feedforward, linear, matmul

# The least number of channels, of which all others are multiples.
_LANES = 8


class Block(nn.Module):
  """A residual convolution over each cell and its eight neighbours.

  Each channel is mixed over space, then each cell over channels, as in
  ConvNeXt (Liu et al. 2022), but with RMSNorm, so that no cell beyond the
  neighbours is read. A 3x3 convolution of all channels costs 9 C^2
  a cell, this one 2 expansion C^2.

  Attributes:
    expansion: hidden channels F over C.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  expansion: int = 2
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array, real_BHW1: jax.Array) -> jax.Array:
    """The cells after the convolution; padding is read as zeros.

    Args:
      x_BHWC: the cells.
      real_BHW1: 1 where a cell is real, 0 at padding.
    """
    C = x_BHWC.shape[-1]
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    kernel_PC = matmul.to_array(
      matmul.param(
        self,
        'neighbours',
        nn.initializers.normal(1 / 3),
        (None, None),
        (9, C),
        self.param_dtype,
      ),
      self.dtype,
    )
    masked_BHWC = (x_BHWC * real_BHW1).astype(self.dtype)
    mixed_BHWC = jnp.zeros_like(masked_BHWC)
    for shifted_BHWC, kernel_C in zip(
      neighbours(masked_BHWC), kernel_PC, strict=True
    ):
      mixed_BHWC += shifted_BHWC * kernel_C.reshape(1, 1, 1, C)
    mixed_BHWC = linear.RMSNorm(name='norm', dtype=types['dtype'])(mixed_BHWC)
    return x_BHWC + feedforward.FeedForward(
      self.expansion * C,
      gated=False,
      use_bias=True,
      axes=(None, None),
      name='mlp',
      **types,
    )(mixed_BHWC)


class Pyramid(nn.Module):
  """One vector for each patch of a picture.

  Each stride merges a rectangle of cells into one, with residual convolutions
  before and after it. The strides of a side are the prime factors of the patch,
  the largest first. A cell of 2x2 cells has twice their channels, so that all
  convolutions cost the same. The parameters are few, and whole on every device.

  Attributes:
    patch: rows and columns of cells that one vector stands for.
    width: size of that vector.
    num_blocks: residual convolutions between two strides.
    dtype: of the computation.
    param_dtype: of the parameters.
  """

  patch: tuple[int, int]
  width: int
  num_blocks: int
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x_BHWC: jax.Array, sizes_B2: jax.Array | None
  ) -> jax.Array:
    """A vector of each patch, [B, H / rows, W / columns, width].

    Args:
      x_BHWC: pictures about -1 to 1; the patch divides their sides.
      sizes_B2: real rows and columns, from the top left corner; None: all. A
        smaller picture's patches do not depend on the rest of the canvas.
    """
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    steps = strides(self.patch)
    widths = channels(self.width, steps)
    extent = Extent(x_BHWC.shape[:3], sizes_B2)
    dense = lambda name, *shape: linear.Einsum(
      shape, (None,) * len(shape), use_bias=True, name=name, **types
    )
    x = dense('read', x_BHWC.shape[-1], widths[0])('BHWC,CD->BHWD', x_BHWC)
    for level, stride in enumerate((*steps, None)):
      real = extent.mask.astype(self.dtype)
      for i in range(self.num_blocks):
        x = Block(name=f'block_{level}_{i}', **types)(x, real)
      if stride:
        x = gather(x * real, stride)
        wider = math.prod(stride), *widths[level : level + 2]
        x = dense(f'down_{level}', *wider)('BHWPD,PDE->BHWE', x)
        extent = extent.after(stride)
    return x


def neighbours(x_BHWC: jax.Array) -> list[jax.Array]:
  """The picture shifted by at most one cell each way, padded with zeros."""
  _, H, W, _ = x_BHWC.shape
  x_BHWC = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [
    x_BHWC[:, row : row + H, column : column + W]
    for row in range(3)
    for column in range(3)
  ]


def gather(x_BHWC: jax.Array, stride: tuple[int, int]) -> jax.Array:
  """Cells of each rectangle side by side, [B, H / rows, W / columns, P, C]."""
  B, H, W, C = x_BHWC.shape
  rows, columns = stride
  x = x_BHWC.reshape(B, H // rows, rows, W // columns, columns, C)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(B, H // rows, W // columns, rows * columns, C)


def spread(x_BHWPC: jax.Array, stride: tuple[int, int]) -> jax.Array:
  """The inverse of `gather`, [B, H * rows, W * columns, C]."""
  B, H, W, _, C = x_BHWPC.shape
  rows, columns = stride
  x = x_BHWPC.reshape(B, H, W, rows, columns, C).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(B, H * rows, W * columns, C)


@dataclasses.dataclass(frozen=True)
class Extent:
  """The real cells of a canvas, in its top left corner.

  Attributes:
    shape: (B, H, W).
    sizes_B2: real rows and columns; None: all.
  """

  shape: tuple[int, ...]
  sizes_B2: jax.Array | None

  @property
  def mask(self) -> jax.Array:
    """1 where real, else 0: float32[B, H, W, 1], or what broadcasts to it."""
    B, H, W = self.shape
    if self.sizes_B2 is None:
      return jnp.ones((1, 1, 1, 1))
    rows_B1, columns_B1 = jnp.split(self.sizes_B2, 2, axis=-1)
    real_BH = jnp.arange(H).reshape(1, H) < rows_B1
    real_BW = jnp.arange(W).reshape(1, W) < columns_B1
    both_BHW = real_BH.reshape(B, H, 1) & real_BW.reshape(B, 1, W)
    return both_BHW[..., None].astype(jnp.float32)

  def after(self, stride: tuple[int, int]) -> 'Extent':
    """The extent after `gather`: a cell is real if it holds a real one."""
    B, H, W = self.shape
    rows, columns = stride
    sizes_B2 = self.sizes_B2
    if sizes_B2 is not None:
      sizes_B2 = -(-sizes_B2 // jnp.array([stride]))
    return Extent((B, H // rows, W // columns), sizes_B2)

  def before(self, stride: tuple[int, int]) -> 'Extent':
    """The extent after `spread`."""
    B, H, W = self.shape
    rows, columns = stride
    sizes_B2 = self.sizes_B2
    if sizes_B2 is not None:
      sizes_B2 = sizes_B2 * jnp.array([stride])
    return Extent((B, H * rows, W * columns), sizes_B2)


def strides(patch: tuple[int, int]) -> tuple[tuple[int, int], ...]:
  """What each step divides height and width by, the finest first.

  Both sides shrink from the first step on, so that most steps have few cells.
  """
  rows, columns = (_prime_factors(side) for side in patch)
  count = max(len(rows), len(columns))
  rows, columns = (side + [1] * (count - len(side)) for side in (rows, columns))
  return tuple(zip(rows, columns, strict=True))


def _prime_factors(number: int) -> list[int]:
  """Prime factors from the largest down; none of 1."""
  factors, factor = [], 2
  while number > 1:
    while number % factor == 0:
      factors.insert(0, factor)
      number //= factor
    factor += 1
  return factors


def channels(width: int, steps: tuple[tuple[int, int], ...]) -> list[int]:
  """Channels before each step and after the last: `width`."""
  areas = [
    math.prod(math.prod(step) for step in steps[level:])
    for level in range(len(steps))
  ]
  less = [int(width / area**0.5) // _LANES * _LANES for area in areas]
  return [min(max(count, _LANES), width) for count in less] + [width]
