"""The variational head: posterior and prior of a latent z of each sequence.

B batch, S encoder length, D width, Z numbers in z, C components of the prior.
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import attention, linear, matmul


@flax.struct.dataclass
class Normal:
  """Independent normals over the last dim, in float32.

  Attributes:
    mean: [..., Z].
    log_var: [..., Z], log of the variance.
  """

  mean: jax.Array
  log_var: jax.Array

  def sample(self, key: jax.Array, temperature: Any = 1.0) -> jax.Array:
    """A draw, float32[..., Z]; deviations are multiplied by `temperature`."""
    noise = jax.random.normal(key, self.mean.shape, jnp.float32)
    return self.mean + temperature * jnp.exp(0.5 * self.log_var) * noise

  def log_prob(self, z: jax.Array) -> jax.Array:
    """Log-density of each number of z, nats[..., Z]."""
    square = jnp.square(z - self.mean) * jnp.exp(-self.log_var)
    return -0.5 * (square + self.log_var + math.log(2 * math.pi))

  def divergence(self) -> jax.Array:
    """KL(this || standard normal) of each dim, nats[..., Z]."""
    return 0.5 * (
      jnp.square(self.mean) + jnp.exp(self.log_var) - self.log_var - 1
    )


@flax.struct.dataclass
class Mixture:
  """One or more mixtures of normals; the plain prior has one component.

  Attributes:
    logits: [..., C], unnormalised log-weights.
    normals: of [..., C, Z].
  """

  logits: jax.Array
  normals: Normal

  def log_prob(self, z: jax.Array) -> jax.Array:
    """Log-density of z [..., Z], nats[...]; z may have more leading dims."""
    lead = (1,) * (z.ndim - self.logits.ndim)
    normals, logits = jax.tree.map(
      lambda leaf: leaf.reshape(*lead, *leaf.shape), (self.normals, self.logits)
    )
    each = jnp.sum(normals.log_prob(z[..., None, :]), axis=-1)
    return jax.nn.logsumexp(each + jax.nn.log_softmax(logits), axis=-1)

  def moments(self) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of each dim, float32[Z] both, of one mixture."""
    weight_C1 = jax.nn.softmax(self.logits)[:, None]
    normals = self.normals
    mean_Z = jnp.sum(weight_C1 * normals.mean, axis=0)
    square_CZ = jnp.square(normals.mean - mean_Z[None]) + jnp.exp(
      normals.log_var
    )
    return mean_Z, jnp.sqrt(jnp.sum(weight_C1 * square_CZ, axis=0))

  def sample(
    self, key: jax.Array, count: int, temperature: Any = 1.0
  ) -> jax.Array:
    """Draws of one mixture, float32[count, Z]; 0 gives components' means."""
    which_key, noise_key = jax.random.split(key)
    which = jax.random.categorical(which_key, self.logits, shape=(count,))
    chosen = jax.tree.map(lambda leaf: leaf[which], self.normals)
    return chosen.sample(noise_key, temperature)


@flax.struct.dataclass
class LatentOutput:
  """Distributions of z in a forward pass.

  Attributes:
    posterior: of each row, [B, Z].
    prior: of any row.
    z_BZ: what the decoder read, a draw of the posterior or its mean.
    multiplier: Lagrange multiplier of the constraint `min_kl`, learned, at
      least 0.
  """

  posterior: Normal
  prior: Mixture
  z_BZ: jax.Array
  multiplier: jax.Array


class Latent(nn.Module):
  """Posterior and prior of z.

  The posterior pools the encoder's output by attention of a learned query,
  and is a diagonal normal (Kingma and Welling 2014; Bowman et al. 2016).

  Attributes:
    config: of the latent.
    width: D.
    num_heads: of the pooling.
    dtype: of the pooling; all else is float32.
    param_dtype: of the parameters.
  """

  config: config_lib.Latent
  width: int
  num_heads: int
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self):
    """The pooling, the two maps to z, the prior and the multiplier."""
    dim, num = self.config.dim, self.config.num_components
    head_dim = self.width // self.num_heads
    self.query = self.vector('query', nn.initializers.normal(1.0), self.width)
    self.pool = attention.Attention(
      num_heads=self.num_heads,
      num_kv_heads=self.num_heads,
      head_dim=head_dim,
      scale=head_dim**-0.5,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    self.posterior = linear.Einsum(
      (self.width, 2, dim),
      ('embed', None, None),
      use_bias=True,
      param_dtype=self.param_dtype,
    )
    if self.config.prior == 'mixture':
      self.means = self.vector(
        'prior_means', nn.initializers.normal(1.0), num, dim
      )
      self.log_vars = self.vector(
        'prior_log_vars', nn.initializers.zeros, num, dim
      )
      self.logits = self.vector('prior_logits', nn.initializers.zeros, num)
    self.raw = self.vector('multiplier', nn.initializers.zeros)

  def vector(self, name: str, init: Any, *shape: int) -> Any:
    """A parameter that is the same on all devices."""
    names = (None,) * len(shape)
    return matmul.param(self, name, init, names, shape, self.param_dtype)

  def __call__(
    self, x_BSD: jax.Array, sequence: batch_lib.Sequence
  ) -> tuple[Normal, Mixture, jax.Array]:
    """Posterior of each row, the prior, and the multiplier of `min_kl`.

    Args:
      x_BSD: the encoder's output.
      sequence: what the encoder read; padding is left out.
    """
    B, _, D = x_BSD.shape
    # One query a row, of the row's only segment.
    one_B1 = jnp.ones((B, 1), jnp.int32)
    pooled_B1D, _ = self.pool(
      jnp.broadcast_to(self.query.astype(self.dtype), (B, 1, D)),
      masking.visible(batch_lib.Sequence(one_B1, 0 * one_B1, one_B1), sequence),
      memory_BSD=x_BSD,
      cross=True,
    )
    statistics_B2Z = self.posterior(
      'BD,DPZ->BPZ', pooled_B1D[:, 0].astype(jnp.float32)
    )
    posterior = Normal(statistics_B2Z[:, 0], statistics_B2Z[:, 1])
    multiplier = jax.nn.softplus(self.raw.astype(jnp.float32))
    return posterior, self.prior(), multiplier

  def prior(self) -> Mixture:
    """Distribution of z without a sequence."""
    if self.config.prior == 'normal':
      zeros = jnp.zeros((1, self.config.dim))
      return Mixture(jnp.zeros(1), Normal(zeros, zeros))
    parts = (self.logits, self.means, self.log_vars)
    logits, means, log_vars = (
      matmul.to_array(part, jnp.float32) for part in parts
    )
    return Mixture(logits, Normal(means, log_vars))
