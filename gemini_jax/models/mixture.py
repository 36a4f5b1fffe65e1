"""A mixture of normals at each position of a sequence, and draws from it.

GIVT (Tschannen et al. 2023): the Transformer writes vectors z without a
vocabulary. Its loss is `-log_prob / Z`, nats a number, beside the
cross-entropy.

B batch, T length, D width, Z numbers in z, C components, N candidates.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax.layers import linear
from gemini_jax.models import latent

# Bounds of the log of a standard deviation. Without them a constant dim of z
# would make the density and its gradient infinite.
_LOG_STD = (-4.0, 2.0)


class MixtureHead(nn.Module):
  """Maps a vector to a mixture of C normals of z; all in float32.

  Attributes:
    num_components: C.
    dim: Z.
    param_dtype: of the parameters.
    init_scale: of the initial kernel; None: 1 / sqrt(D).
  """

  num_components: int
  dim: int
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> latent.Mixture:
    """The distribution of z at each position, of [B, T, C, Z]."""
    C, Z = self.num_components, self.dim
    outputs = linear.Einsum(
      (x_BTD.shape[-1], C, 1 + 2 * Z),
      ('embed', None, None),
      use_bias=True,
      param_dtype=self.param_dtype,
      init_scale=self.init_scale,
      name='mixture',
    )('BTD,DCP->BTCP', x_BTD)
    log_std = soft_clamp(outputs[..., 1 + Z :], *_LOG_STD)
    normals = latent.Normal(outputs[..., 1 : 1 + Z], 2 * log_std)
    return latent.Mixture(outputs[..., 0], normals)


def soft_clamp(x: jax.Array, low: float, high: float) -> jax.Array:
  """Squashes `x` between two numbers by tanh; its slope in the middle is 1."""
  middle, half = (low + high) / 2, (high - low) / 2
  return middle + half * jnp.tanh((x - middle) / half)


def sample(
  mixture: latent.Mixture, key: jax.Array, temperature: Any = 1.0
) -> jax.Array:
  """A draw of each position, float32[..., Z].

  Args:
    mixture: of any leading dims.
    key: of the draw.
    temperature: deviations are multiplied by it; components keep their
      weights. 0: the mean of the likeliest component.
  """
  return guided(mixture, mixture, key, temperature, weight=0.0, candidates=1)


def guided(
  mixture: latent.Mixture,
  plain: latent.Mixture,
  key: jax.Array,
  temperature: Any = 1.0,
  *,
  weight: Any,
  candidates: int = 32,
) -> jax.Array:
  """A draw of each position about p^(1 + w) / q^w, float32[..., Z].

  Classifier-free guidance of densities (DB-CFG of GIVT); the target has no
  normalised form. One of N draws of p is chosen with probability proportional
  to (p / q)^w: sampling importance resampling (Rubin 1987), exact as N grows.
  The result is always likely under p, even where q is narrower and the target
  has no integral. The ratio is that of the densities at temperature 1.

  Args:
    mixture: p, given the condition.
    plain: q, without it.
    key: of the draw.
    temperature: of the candidates' deviations. At 0 the candidates are the
      components' means, and the one with the largest target is taken.
    weight: w; 0: a draw of p.
    candidates: N.
  """
  which_key, noise_key, choice_key = jax.random.split(key, 3)
  # Candidates come first, so that they broadcast against the mixtures.
  which = jax.random.categorical(
    which_key, mixture.logits, shape=(candidates, *mixture.logits.shape[:-1])
  )
  drawn = _of_component(mixture.normals, which).sample(noise_key, temperature)
  means = jnp.moveaxis(mixture.normals.mean, -2, 0)

  def log_ratio(z):
    return weight * (mixture.log_prob(z) - plain.log_prob(z))

  choice = jax.random.categorical(choice_key, log_ratio(drawn), axis=0)
  best = jnp.argmax(
    jnp.moveaxis(mixture.logits, -1, 0) + log_ratio(means), axis=0
  )
  return jnp.where(
    jnp.asarray(temperature) > 0, _take(drawn, choice), _take(means, best)
  )


def _of_component(normals: latent.Normal, which: jax.Array) -> latent.Normal:
  """The normals [N, ..., Z] of the components `which`, [N, ...]."""

  def pick(leaf):
    leaf = jnp.broadcast_to(leaf, (which.shape[0], *leaf.shape))
    index = which[..., None, None]
    return jnp.take_along_axis(leaf, index, axis=-2)[..., 0, :]

  return jax.tree.map(pick, normals)


def _take(z: jax.Array, index: jax.Array) -> jax.Array:
  """z[index[...], ..., :] of [N, ..., Z]."""
  return jnp.take_along_axis(z, index[None, ..., None], axis=0)[0]
