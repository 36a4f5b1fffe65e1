"""The variational head against its definitions.

B rows, T length, Z numbers in z, N draws.
"""

import dataclasses

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


def test_divergence_is_the_mean_log_ratio():
  one = normal(0)
  plain = latent.Normal(jnp.zeros(DIM), jnp.zeros(DIM))
  z_NZ = jax.vmap(one.sample)(jax.random.split(jax.random.key(0), 200_000))
  density = jax.vmap(lambda of, z_Z: of.log_prob(z_Z), (None, 0))
  ratio_Z = jnp.mean(density(one, z_NZ) - density(plain, z_NZ), axis=0)
  np.testing.assert_allclose(one.divergence(), ratio_Z, rtol=0.03, atol=0.02)
  np.testing.assert_array_equal(plain.divergence(), 0)


def test_a_mixture_is_a_density_that_its_draws_follow():
  prior = mixture(3)
  z_NZ = prior.sample(jax.random.key(1), 100_000)
  shares = jax.nn.softmax(prior.logits)
  mean_Z = shares @ prior.normals.mean
  np.testing.assert_allclose(z_NZ.mean(axis=0), mean_Z, atol=0.05)
  # Importance weights against a wide normal sum to one.
  wide = latent.Normal(jnp.zeros(DIM), jnp.full(DIM, 2.5))
  z_NZ = jax.vmap(wide.sample)(jax.random.split(jax.random.key(2), 200_000))
  wide_N = jax.vmap(wide.log_prob)(z_NZ).sum(axis=-1)
  weights_N = jnp.exp(prior.log_prob(z_NZ) - wide_N)
  assert abs(weights_N.mean() - 1) < 0.15


def test_without_temperature_draws_are_means():
  one, prior = normal(4, 2), mixture(9)
  np.testing.assert_array_equal(one.sample(jax.random.key(0), 0.0), one.mean)
  drawn_NZ = prior.sample(jax.random.key(0), 50, 0.0)
  gaps = np.abs(np.asarray(drawn_NZ)[:, None] - np.asarray(prior.normals.mean))
  gaps = gaps.sum(axis=-1).min(axis=1)
  np.testing.assert_allclose(gaps, 0, atol=1e-6)


def kl_terms(kl_BZ, multiplier=0.7):
  return latent.KLTerms(
    jnp.asarray(kl_BZ, jnp.float32), jnp.asarray(multiplier)
  )


RATES = [[0.1, 2.0], [0.3, 1.0], [9.0, 9.0]]
REAL = np.array([1.0, 1.0, 0.0], np.float32)


def test_free_bits_are_free_by_the_batch():
  """Rows that do not count have no say."""
  terms = kl_terms(RATES).loss_terms(
    REAL, 2, config_lib.KLAnnealing(free_bits=0.5)
  )
  rate, losses = terms
  assert float(rate) == pytest.approx(3.4)
  # The first dim says 0.4 < 2 * 0.5 in both rows, the second 3.
  assert float(losses['kl']) == pytest.approx(1.0 + 3.0)
  assert losses['min_kl'] == 0
  plain = kl_terms(RATES).loss_terms(
    REAL, 2, config_lib.KLAnnealing(free_bits=0.0)
  )[1]
  assert float(plain['kl']) == pytest.approx(3.4)


def test_what_is_free_has_no_gradient():
  def kl(kl_BZ, free_bits):
    kl_annealing = config_lib.KLAnnealing(free_bits=free_bits)
    return kl_terms(kl_BZ).loss_terms(REAL, 2, kl_annealing)[1]['kl']

  grad = jax.grad(kl)(jnp.asarray(RATES), 0.5)
  np.testing.assert_array_equal(grad, [[0, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize('rate', [0.4, 2.5])
def test_the_multiplier_rises_while_z_says_too_little(rate):
  """Descent: the model is pushed to a rate of 1, the multiplier weighs it."""

  def loss(rate, multiplier):
    kl_annealing = config_lib.KLAnnealing(
      min_kl=1.0, schedule='constant', free_bits=0.0
    )
    terms = kl_terms([[rate]], multiplier).loss_terms(
      np.ones(1), 1, kl_annealing
    )
    return terms[1]['min_kl']

  by_rate, by_multiplier = jax.grad(loss, (0, 1))(rate, 0.7)
  assert by_rate == pytest.approx(-0.7)
  assert by_multiplier == pytest.approx(rate - 1.0)


def model(**fields):
  options = {'dim': DIM, 'memory': 2} | fields
  return toy.model(latent=config_lib.Latent(**options))


def test_padding_has_no_say_in_the_posterior():
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
  [{}, {'memory': 0}, {'embedding': False}, {'prior': 'mixture'}],
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


def test_the_loss_is_the_bound():
  """Cross-entropy given z, and the rate; without noise where z is its mean."""
  made = model()
  params = toy.model_params(made)
  batch = toy.batch(rows=3)
  weights = np.where([[1], [1], [0]], batch.weights, 0).astype(np.float32)
  batch = batch.replace(weights=weights)

  @jax.jit
  def measured(params):
    apply = lambda *args, **kw: made.apply({'params': params}, *args, **kw)
    source = apply(batch, method='encoder_inputs')
    posterior = apply(source, method='posterior')
    row_B = apply(batch, posterior.mean, method='log_likelihood')
    sums, aux = apply(batch, method='sums')
    return sums, aux, row_B, posterior.divergence()

  sums, aux, row_B, kl_BZ = measured(params)
  rate = float(kl_BZ[:2].sum())
  assert float(sums.loss) == pytest.approx(rate - float(row_B.sum()), rel=1e-5)
  assert float(sums.objective) == pytest.approx(-float(row_B.sum()), rel=1e-5)
  assert float(sums.terms['kl']) == pytest.approx(rate, rel=1e-5)
  assert float(sums.terms['sequences']) == 2
  total = float(aux['kl'] * sums.weight)
  assert total == pytest.approx(rate, rel=1e-5)


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


def test_word_dropout_hides_input_tokens_but_the_first():
  made = model()
  params = toy.model_params(made)
  batch = toy.batch(rows=1)

  def table_gradient(key):
    def loss(table):
      sums, _ = made.apply(
        {'params': params | {'token': {'embedding': table}}},
        batch.replace(encoder=toy.sequence(rows=1, seed=9)),
        deterministic=False,
        kl_annealing=config_lib.KLAnnealing(word_dropout=0.999),
        rngs={'dropout': key, 'latent': key},
        method='sums',
      )
      return sums.objective

    return jax.grad(loss)(params['token']['embedding'])

  made = dataclasses.replace(
    made, config=dataclasses.replace(made.config, tie_embeddings=False)
  )
  params = toy.model_params(made)
  grad_VD = jax.jit(table_gradient)(jax.random.key(0))
  seen = set(np.flatnonzero(np.abs(grad_VD).max(axis=1)))
  encoded = set(toy.sequence(rows=1, seed=9).tokens.ravel().tolist())
  assert seen == encoded | {int(batch.decoder.tokens[0, 0])}
