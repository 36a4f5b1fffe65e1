"""Linear maps spelled as equations, and the norms between them."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax.layers import matmul


class Einsum(nn.Module):
  """A learned linear map, spelled by an equation at the call site.

  In `'BTD,DNH->BTNH'` the last dims of the input are contracted with the first
  dims of the kernel.

  Attributes:
    shape: of the kernel, in the order of the equation's letters.
    axes: logical axis of each kernel dim, for sharding.
    use_bias: add a bias over the output dims.
    dtype: of the computation.
    param_dtype: of the kernel and the bias.
    init_scale: standard deviation of the initial kernel; None:
      1 / sqrt(fan in).
    out_dtype: of the output and of the sums before it; None: dtype.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  use_bias: bool = False
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float | None = None
  out_dtype: jax.typing.DTypeLike | None = None

  @nn.compact
  def __call__(self, equation: str, x: jax.Array) -> jax.Array:
    """The output of the equation for `x` and the kernel."""
    num_in = contracted_dims(equation)
    in_dims, out_dims = self.shape[:num_in], self.shape[num_in:]
    fan_in = math.prod(in_dims)
    scale = self.init_scale or fan_in**-0.5
    kernel = matmul.param(
      self,
      'kernel',
      nn.initializers.normal(scale),
      self.axes,
      self.shape,
      self.param_dtype,
    )
    y = matmul.dot(
      x, kernel, num_in, dtype=self.dtype, out_dtype=self.out_dtype
    )
    if self.use_bias:
      bias: Any = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros, self.axes[num_in:]),
        out_dims,
        self.param_dtype,
      )
      lead = (1,) * (x.ndim - num_in)
      y = y + bias.astype(y.dtype).reshape(*lead, *out_dims)
    return y


def contracted_dims(equation: str) -> int:
  """How many dims an Einsum equation contracts.

  Raises:
    ValueError: the equation contracts other dims than the last of the input
      with the first of the kernel.
  """
  inputs, output = equation.split('->')
  x, kernel = inputs.split(',')
  num = len([letter for letter in kernel if letter in x])
  if x[len(x) - num :] != kernel[:num] or output != x[:-num] + kernel[num:]:
    raise ValueError(f'{equation} does not contract end with begin')
  return num


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last dim (Zhang and Sennrich 2019).

  The scale is stored as its difference from 1, as Gemma does, so that zeros
  are the identity and weight decay pulls towards it. It is computed with and
  stored in float32: bfloat16 would round a scale of 0.05 by a twentieth.
  """

  eps: float = 1e-6
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`x` normalised over its last dim."""
    scale: Any = self.param(
      'scale',
      nn.with_logical_partitioning(nn.initializers.zeros, (None,)),
      (x.shape[-1],),
      jnp.float32,
    )
    return rms_norm(x, scale, self.eps).astype(self.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """`x / rms(x) * (1 + scale)` in float32."""
  x = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
  scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
  return x * inverse * (1 + scale)


class LayerNorm(nn.Module):
  """Norm by mean and variance over the last dim, with a bias (Ba et al. 2016).

  Computed and stored in float32; the scale as its difference from 1, as in
  RMSNorm.
  """

  eps: float = 1e-6
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`x` normalised over its last dim."""
    params: Any = [
      self.param(
        name,
        nn.with_logical_partitioning(nn.initializers.zeros, (None,)),
        (x.shape[-1],),
        jnp.float32,
      )
      for name in ('scale', 'bias')
    ]
    scale, bias = params
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    lead = (1,) * (x.ndim - 1)
    y = rms_norm(x, scale, self.eps) + bias.reshape(*lead, -1)
    return y.astype(self.dtype)
