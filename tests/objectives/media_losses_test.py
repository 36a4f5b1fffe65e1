"""Losses of autoencoders against their formulas.

N tokens, Z numbers in the z of one.
"""

import jax
import jax.numpy as jnp
import numpy as np

import toy
from gemini_jax.models import latent
from gemini_jax.objectives import media_losses

Z = 3


def posterior_of(seed, *shape):
  return latent.Normal(toy.normal(shape, seed), toy.normal(shape, seed + 1))


def test_losses_are_their_formulas():
  """In numpy; one picture of 8x4 of a canvas of 8x8, and none."""
  x, decoded = toy.normal((2, 8, 8, 2), 1), toy.normal((2, 8, 8, 2), 2)
  posterior = posterior_of(5, 2, 4, Z)
  sizes = jnp.array([[8, 4], [0, 0]])
  measure = jax.jit(media_losses.autoencoder_losses, static_argnums=3)
  terms = measure(x, decoded, posterior, (4, 4), sizes)
  true, made = (np.asarray(part, np.float64)[0, :, :4] for part in (x, decoded))
  mean, log_var = (
    np.asarray(part, np.float64)[0, [0, 2]]
    for part in (posterior.mean, posterior.log_var)
  )
  rates = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).mean(axis=0)
  gap = made - true
  loud, outputs = np.exp(true), np.exp(made)
  want = {
    'l1': np.abs(gap).mean(),
    'kl': rates.sum(),
    'edge': (
      np.abs(np.diff(gap, axis=0)).mean() + np.abs(np.diff(gap, axis=1)).mean()
    )
    / 2,
    'spectral': np.linalg.norm(outputs - loud) / np.linalg.norm(loud),
  }
  assert terms.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)


def test_a_perfect_or_wild_decoder_has_finite_gradients():
  """A root at 0, an exponential of much, a variance near 0."""
  x = toy.normal((1, 4, 4, 1))
  posterior = latent.Normal(jnp.zeros((1, 1, Z)), jnp.full((1, 1, Z), -10.0))

  def total(decoded):
    terms = media_losses.autoencoder_losses(x, decoded, posterior, (4, 4))
    return sum(terms.values())

  for decoded in (x, 1e4 * x):
    value, grads = jax.jit(jax.value_and_grad(total))(decoded)
    assert np.isfinite(value) and np.isfinite(grads).all()
