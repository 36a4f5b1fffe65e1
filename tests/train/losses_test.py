"""What is minimised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.kernels import cross_entropy
from gemini_jax.train import losses

SUMS = cross_entropy.Sums(*map(jnp.float32, (6.0, 7.0, 2.0, 4.0)))


class Model:
  """Answers with fixed sums and with terms beside them."""

  def __init__(self, aux):
    self.sums, self.aux, self.calls = SUMS, aux, []

  def apply(self, variables, batch, **options):
    self.calls.append((variables, options))
    return self.sums, self.aux


def test_auxiliary_terms_are_weighted_by_name():
  batch = toy.batch(2, 3)
  model = Model({'balance': jnp.float32(3.0), 'kl': jnp.float32(-0.5)})
  weights = {'z_loss': 0.1, 'balance': 0.25, 'kl': 2.0, 'unused': 7.0}
  sums = losses.model_sums(model, 'params', batch, loss_weights=weights)
  np.testing.assert_allclose(
    sums.objective, 7.0 + (0.75 - 1.0) * 4.0, rtol=1e-6
  )
  assert sums.loss == 6.0
  assert model.calls[0][1]['z_loss'] == 0.1
  with pytest.raises(KeyError, match='kl'):
    losses.model_sums(model, 'params', batch, loss_weights={'balance': 1.0})


def test_without_weights_the_objective_is_the_cross_entropy():
  sums = losses.model_sums(
    Model({'balance': jnp.float32(3.0)}), 'params', toy.batch(2, 3)
  )
  assert sums.objective == 7.0


def test_dropout_is_on_exactly_with_a_key():
  batch, model = toy.batch(2, 3), Model({})
  losses.model_sums(model, 'params', batch)
  losses.model_sums(model, 'params', batch, dropout_key=jax.random.key(3))
  (_, evaluation), (variables, training) = model.calls
  assert variables == {'params': 'params'}
  assert evaluation['deterministic'] and not evaluation['rngs']
  assert not training['deterministic']
  assert training['rngs'] == {'dropout': jax.random.key(3)}
