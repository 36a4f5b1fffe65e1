"""Steering a latent z towards target values of attributes.

N samples, K draws, Z numbers in z, F features, A attributes.
"""

import dataclasses
import functools
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.models import latent as latent_lib
from gemini_jax.steer import attribute_classifier

# Of the flow (Song et al. 2021, VP-SDE) and of the Langevin correction.
_NUM_EULER = 50
_BETAS = (0.1, 20.0)
_NUM_LANGEVIN = 10
_LANGEVIN_STEP = 0.1
# Steps of plain ascent, and the length of each in deviations of the prior.
_NUM_ASCENT = 5
_ASCENT_STEP = 0.5
# Draws that the best is chosen from.
BEST_OF = 8


@flax.struct.dataclass
class AttributeTarget:
  """Attributes and the value that a text should have of each.

  Attributes:
    attributes: a classifier of each of the A attributes.
    target_index: index of the target among the values of each attribute.
    weights_A: strength of each attribute.
  """

  attributes: tuple[attribute_classifier.Attribute, ...]
  target_index: tuple[int, ...] = flax.struct.field(pytree_node=False)
  weights_A: Any

  def log_prob(self, x_F: jax.Array) -> jax.Array:
    """Weighted log-probability of the target values, a scalar."""
    return sum(
      (
        weight * attribute.log_probs(x_F)[index]
        for attribute, index, weight in zip(
          self.attributes, self.target_index, self.weights_A, strict=True
        )
      ),
      jnp.zeros(()),
    )


class Target(Protocol):
  """A differentiable log-probability of z having the target."""

  def log_prob(self, x_F: jax.Array) -> jax.Array:
    """Of one z, a scalar."""
    ...


@dataclasses.dataclass(frozen=True)
class Cost:
  """Passes of the classifiers and of the decoder for one sample.

  A pass of the attributes is one of all classifiers together; a pass of the
  decoder is one token.
  """

  attribute_forward: float = 0
  attribute_backward: float = 0
  decoder_forward: float = 0
  decoder_backward: float = 0


def cost(method: str, correct: bool) -> Cost:
  """The cost of steering one z."""
  gradients = {
    'ode': _NUM_EULER + correct * (1 + _NUM_LANGEVIN),
    'gradient': _NUM_ASCENT,
  }.get(method, 0)
  draws = BEST_OF if method == 'best_of' else 0
  return Cost(gradients + draws, gradients)


@functools.partial(jax.jit, static_argnames='correct')
def ode(
  target: Target,
  prior: latent_lib.Mixture,
  z_NZ: jax.Array,
  keys_N: jax.Array,
  correct: bool = True,
) -> jax.Array:
  """Z after the probability-flow ODE towards the target, [N, Z].

  dz/dt = -1/2 beta(t) grad_z log p(target | z) from t = 1 to 0: the flow of a
  variance-preserving diffusion whose prior is the same at all times, so that
  the terms of the prior cancel (LatentOps, Liu et al. 2022, equation 9). A draw
  of the prior is not moved where the classifiers are flat.

  Metropolis-adjusted Langevin steps on log p(z) + c log p(target | z) then
  bring z back to where the prior has mass; c is the integral of beta / 2, the
  total weight of the flow. With c = 1 they would undo a part of the flow.

  Args:
    target: weighted log p(target | z).
    prior: of z.
    z_NZ: where each sample starts, a draw of the prior.
    keys_N: of the Langevin steps.
    correct: whether to do the Langevin steps; not for the z of a given text.
  """
  _, scale_Z = prior.moments()
  low, high = _BETAS
  strength = (low + high) / 4

  def flow(z_Z, key):
    def euler(z_Z, i):
      t = 1 - i / _NUM_EULER
      beta = low + t * (high - low)
      push_Z = jax.grad(target.log_prob)(z_Z)
      return z_Z + 0.5 * beta / _NUM_EULER * jnp.square(scale_Z) * push_Z, None

    z_Z, _ = jax.lax.scan(euler, z_Z, jnp.arange(_NUM_EULER))
    if not correct:
      return z_Z
    return langevin(
      lambda z_Z: prior.log_prob(z_Z) + strength * target.log_prob(z_Z),
      z_Z,
      key,
      # The deviations of the narrowest component of the prior.
      jnp.exp(0.5 * jnp.min(prior.normals.log_var, axis=0)),
    )

  return jax.vmap(flow)(z_NZ, keys_N)


def langevin(
  log_density: Any, z_Z: jax.Array, key: jax.Array, scale_Z: jax.Array
) -> jax.Array:
  """Z after some steps of the Metropolis-adjusted Langevin algorithm.

  Roberts and Tweedie 1996; step sizes are multiples of `scale_Z`.
  """
  step_Z = _LANGEVIN_STEP * jnp.square(scale_Z)
  evaluate = jax.value_and_grad(log_density)

  def log_move(from_Z, push_Z, to_Z):
    """Log-density, but for a constant, of proposing `to_Z`."""
    return -jnp.sum(
      jnp.square(to_Z - from_Z - 0.5 * step_Z * push_Z) / (2 * step_Z)
    )

  def move(carry, key):
    z_Z, value, push_Z = carry
    noise_key, accept_key = jax.random.split(key)
    noise_Z = jax.random.normal(noise_key, z_Z.shape)
    new_Z = z_Z + 0.5 * step_Z * push_Z + jnp.sqrt(step_Z) * noise_Z
    new_value, new_push_Z = evaluate(new_Z)
    log_ratio = new_value - value
    log_ratio += log_move(new_Z, new_push_Z, z_Z) - log_move(z_Z, push_Z, new_Z)
    accepted = jnp.log(jax.random.uniform(accept_key)) < log_ratio
    return jax.tree.map(
      lambda new, old: jnp.where(accepted, new, old),
      (new_Z, new_value, new_push_Z),
      carry,
    ), None

  keys = jax.random.split(key, _NUM_LANGEVIN)
  return jax.lax.scan(move, (z_Z, *evaluate(z_Z)), keys)[0][0]


@jax.jit
def gradient(
  target: Target, prior: latent_lib.Mixture, z_NZ: jax.Array, weight: Any
) -> jax.Array:
  """Z after steps of a fixed length up the gradient of log p(target | z).

  Float32[N, Z]. Nothing keeps z near the prior; `weight` multiplies the length.
  """
  _, scale_Z = prior.moments()

  def ascend(z_Z, _):
    push_Z = scale_Z * jax.grad(target.log_prob)(z_Z)
    length = jnp.maximum(jnp.linalg.norm(push_Z), 1e-9)
    return z_Z + weight * _ASCENT_STEP * scale_Z * push_Z / length, None

  return jax.vmap(lambda z_Z: jax.lax.scan(ascend, z_Z, length=_NUM_ASCENT)[0])(
    z_NZ
  )


@jax.jit
def best_of(target: Target, z_NKZ: jax.Array) -> jax.Array:
  """The likeliest of the K draws of each sample to have the target, [N, Z]."""
  scores_NK = jax.vmap(jax.vmap(target.log_prob))(z_NKZ)
  best_N = jnp.argmax(scores_NK, axis=1)
  return z_NKZ[jnp.arange(z_NKZ.shape[0]), best_N]
