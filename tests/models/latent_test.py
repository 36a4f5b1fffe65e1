"""The variational head against its definitions.

B rows, T length, Z numbers in z, N draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import latent

DIM = 5


def normal(seed, *shape):
  return latent.Normal(
    toy.normal((*shape, DIM), seed), toy.normal((*shape, DIM), seed + 1)
  )


def mixture(seed, count=3):
  return latent.Mixture(toy.normal((count,), seed), normal(seed + 7, count))


def draws(of, seed):
  keys = jax.random.split(jax.random.key(seed), 200_000)
  return jax.vmap(of.sample)(keys)


def test_divergence_is_the_mean_log_ratio():
  one = normal(0)
  plain = latent.Normal(jnp.zeros(DIM), jnp.zeros(DIM))

  @jax.jit
  def mean_log_ratio():
    z_NZ = draws(one, 0)
    density = jax.vmap(lambda of, z_Z: of.log_prob(z_Z), (None, 0))
    return jnp.mean(density(one, z_NZ) - density(plain, z_NZ), axis=0)

  ratio_Z = mean_log_ratio()
  np.testing.assert_allclose(one.divergence(), ratio_Z, rtol=0.03, atol=0.02)
  np.testing.assert_array_equal(plain.divergence(), 0)


def test_a_mixture_is_a_density_that_its_draws_follow():
  prior = mixture(3)
  sample = jax.jit(lambda key: prior.sample(key, 100_000))
  shares = np.exp(prior.logits) / np.exp(prior.logits).sum()
  mean_Z = shares @ np.asarray(prior.normals.mean)
  z_NZ = np.asarray(sample(jax.random.key(1)))
  np.testing.assert_allclose(z_NZ.mean(axis=0), mean_Z, atol=0.05)
  # Importance weights against a wide normal sum to one.
  wide = latent.Normal(jnp.zeros(DIM), jnp.full(DIM, 2.5))

  @jax.jit
  def weights():
    z_NZ = draws(wide, 2)
    wide_N = jax.vmap(wide.log_prob)(z_NZ).sum(axis=-1)
    return jnp.exp(prior.log_prob(z_NZ) - wide_N)

  assert abs(np.mean(weights()) - 1) < 0.15


def test_without_temperature_draws_are_means():
  one, prior = normal(4, 2), mixture(9)
  np.testing.assert_array_equal(one.sample(jax.random.key(0), 0.0), one.mean)
  drawn_NZ = prior.sample(jax.random.key(0), 50, 0.0)
  gaps = np.abs(np.asarray(drawn_NZ)[:, None] - np.asarray(prior.normals.mean))
  gaps = gaps.sum(axis=-1).min(axis=1)
  np.testing.assert_allclose(gaps, 0, atol=1e-6)


def model(**fields):
  options = {'dim': DIM, 'memory': 2} | fields
  return toy.model(latent=config_lib.Latent(**options))


def test_padding_does_not_change_the_posterior():
  made = model()
  params = toy.model_params(made)
  sequence = toy.sequence(rows=2)
  sequence = sequence.replace(
    segments=(sequence.positions < np.array([[7], [12]])).astype(np.int32)
  )
  other = np.where(sequence.segments > 0, sequence.tokens, 3)
  apply = jax.jit(
    lambda sequence: made.apply(
      {'params': params}, sequence, method='posterior'
    )
  )
  one, two = apply(sequence), apply(sequence.replace(tokens=other))
  np.testing.assert_array_equal(one.mean, two.mean)
  changed = sequence.tokens.copy()
  changed[:, 2] = (changed[:, 2] + 1) % toy.VOCAB_SIZE
  three = apply(sequence.replace(tokens=changed))
  assert np.abs(three.mean - one.mean).max() > 1e-4


@pytest.mark.parametrize(
  'fields',
  [{}, {'memory': 0}, {'embedding': False}],
  ids=str,
)
def test_z_reaches_every_position_of_its_row_alone(fields):
  made = model(**fields)
  params = toy.model_params(made)
  batch = toy.batch(rows=2)

  def scores(latent_BZ):
    logits_BTV = made.apply(
      {'params': params}, batch.decoder, latent_BZ=latent_BZ, method='decode'
    )[0]
    return jnp.einsum('BTV,V->BT', logits_BTV, toy.normal((toy.VOCAB_SIZE,), 7))

  jacobian = jax.jit(jax.jacrev(scores))(toy.normal((2, DIM)))
  reach_BTB = np.abs(jacobian).max(axis=-1) > 0
  np.testing.assert_array_equal(
    reach_BTB, np.broadcast_to(np.eye(2, dtype=bool)[:, None], reach_BTB.shape)
  )


def test_a_latent_beside_an_encoder():
  """An encoder-decoder has its z from what it reads."""
  made = toy.model(
    architecture='encoder_decoder', latent=config_lib.Latent(dim=DIM)
  )
  params = toy.model_params(made)
  batch = toy.batch(encoder=toy.sequence(length=toy.S, seed=5))
  apply = jax.jit(lambda batch: made.apply({'params': params}, batch)[0])
  logits = apply(batch)
  other = toy.sequence(length=toy.S, seed=6)
  assert np.abs(apply(batch.replace(encoder=other)) - logits).max() > 1e-3
