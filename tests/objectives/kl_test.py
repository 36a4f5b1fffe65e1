"""The KL term: free bits, the least KL, annealing, and the evidence bound.

B rows, Z numbers in z.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.objectives import kl, language, losses

DIM = 5
KL = jnp.array([[0.1, 2.0], [0.3, 1.0], [9.0, 9.0]])
# The last row does not count.
NUM = jnp.array([1.0, 1.0, 0.0])


def loss_sums(kl_BZ, multiplier=0.7, num_B=NUM, **fields):
  kl_BZ = jnp.asarray(kl_BZ)
  annealing = config_lib.KLAnnealing(**({'free_bits': 0.0} | fields))
  return kl.loss_sums(kl_BZ, multiplier, num_B, kl_BZ.shape[1], annealing)


def test_free_bits_are_those_of_the_mean_row():
  kl_sum, parts = loss_sums(KL, free_bits=0.5)
  assert float(kl_sum) == pytest.approx(3.4)
  # The first dim has 0.4 < 2 * 0.5 in both rows, the second 3.
  assert float(parts['kl']) == pytest.approx(1.0 + 3.0)
  assert parts['min_kl'] == 0
  assert float(loss_sums(KL)[1]['kl']) == pytest.approx(3.4)


def test_free_nats_have_no_gradient():
  grad = jax.grad(lambda kl_BZ: loss_sums(kl_BZ, free_bits=0.5)[1]['kl'])(KL)
  np.testing.assert_array_equal(grad, [[0, 1], [0, 1], [0, 0]])


@pytest.mark.parametrize('nats', [0.4, 2.5])
def test_the_multiplier_rises_while_the_kl_is_too_small(nats):
  """Descent pushes the model to a KL of 1, weighted by the multiplier."""

  def loss(nats, multiplier):
    return loss_sums(
      [[nats]], multiplier, jnp.ones(1), min_kl=1.0, schedule='constant'
    )[1]['min_kl']

  by_kl, by_multiplier = jax.grad(loss, (0, 1))(nats, 0.7)
  assert by_kl == pytest.approx(-0.7)
  assert by_multiplier == pytest.approx(nats - 1.0)


def test_the_loss_is_the_evidence_bound():
  """Cross-entropy given the draw of z, plus the KL term."""
  model = toy.model(latent=config_lib.Latent(dim=DIM, memory=2))
  params = toy.model_params(model)
  batch = toy.batch(rows=3)
  weights = np.where([[1], [1], [0]], batch.weights, 0).astype(np.float32)
  batch = batch.replace(weights=weights)
  key = jax.random.key(4)
  only_kl = dict.fromkeys(vars(config_lib.LossWeights()), 0.0) | {'kl': 0.5}

  @jax.jit
  def measure(params):
    output = gemini.apply(
      model,
      params,
      batch,
      True,
      rngs={'latent': jax.random.fold_in(key, 1)},
      method='forward',
    )
    row_B = language.log_likelihood(model, params, batch, output.latent.z_BZ)
    sums = losses.model_sums(
      model, params, batch, key=key, loss_weights=only_kl
    )
    return sums, row_B, output.latent.posterior.divergence()

  sums, row_B, kl_BZ = measure(params)
  nats = float(kl_BZ[:2].sum())
  error = -float(row_B.sum())
  assert nats > 0.1
  assert float(sums.loss) == pytest.approx(error + nats, rel=1e-5)
  assert float(sums.objective) == pytest.approx(error + 0.5 * nats, rel=1e-5)
  np.testing.assert_allclose(sums.terms['kl'], [nats, 2], rtol=1e-5)


def test_word_dropout_hides_input_tokens_but_the_first():
  model = toy.model(latent=config_lib.Latent(dim=DIM), tie_embeddings=False)
  params = toy.model_params(model)
  batch = toy.batch(rows=1)
  config = config_lib.Train(
    kl_annealing=config_lib.KLAnnealing(word_dropout=0.999)
  )

  def objective(table):
    return losses.model_sums(
      model,
      params | {'token': {'embedding': table}},
      dataclasses.replace(batch, encoder=toy.sequence(rows=1, seed=9)),
      key=jax.random.key(0),
      config=config,
    ).objective

  grad_VD = jax.jit(jax.grad(objective))(params['token']['embedding'])
  read = set(np.flatnonzero(np.abs(grad_VD).max(axis=1)))
  encoded = set(toy.sequence(rows=1, seed=9).tokens.ravel().tolist())
  assert read == encoded | {int(batch.decoder.tokens[0, 0])}


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'schedule': 'constant'}, [1, 1, 1, 1, 1]),
    ({'schedule': 'monotonic', 'ramp_fraction': 0.5}, [0, 0.5, 1, 1, 1]),
    ({'cycles': 2, 'ramp_fraction': 0.5}, [0, 1, 0, 1, 0]),
    (
      {'cycles': 2, 'zero_fraction': 0.5, 'ramp_fraction': 0.5},
      [0, 0, 0, 0, 0],
    ),
    (
      {'cycles': 1, 'zero_fraction': 0.25, 'ramp_fraction': 0.5},
      [0, 0, 0.5, 1, 0],
    ),
    ({'schedule': 'constant', 'pretrain_fraction': 0.5}, [0, 0, 1, 1, 1]),
    ({'schedule': 'monotonic', 'pretrain_fraction': 0.5}, [0, 0, 0, 1, 1]),
  ],
)
def test_the_schedule_of_the_kl_term(fields, expected):
  """At 0, 25, 50, 75 and 100 of 100 steps."""
  annealing = config_lib.KLAnnealing(**fields)
  shares = [kl.schedule(annealing, 100, step) for step in range(0, 101, 25)]
  np.testing.assert_allclose(shares, expected, atol=1e-6)
