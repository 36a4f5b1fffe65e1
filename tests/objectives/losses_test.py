"""What is minimised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy
from gemini_jax.objectives import losses

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


def test_dropout_is_on_exactly_in_training():
  batch, model = toy.batch(2, 3), Model({})
  key, options = jax.random.key(3), config_lib.Train(label_smoothing=0.1)
  losses.model_sums(model, 'params', batch)
  losses.model_sums(model, 'params', batch, key=key, config=options)
  (_, evaluation), (variables, training) = model.calls
  assert variables == {'params': 'params'}
  assert evaluation['deterministic'] and 'dropout' not in evaluation['rngs']
  assert evaluation['label_smoothing'] == 0.0
  assert not training['deterministic']
  assert training['rngs']['dropout'] == key != training['rngs']['latent']
  assert training['label_smoothing'] == 0.1


def test_evaluation_draws_the_same_for_the_same_batch():
  model = Model({})
  for seed in (0, 1, 0):
    losses.model_sums(model, 'params', toy.batch(2, 3, seed=seed))
  one, other, again = (call[1]['rngs']['latent'] for call in model.calls)
  assert one == again != other


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
def test_the_course_of_the_kl_term(fields, expected):
  """At 0, 25, 50, 75 and 100 of 100 steps."""
  kl_annealing = config_lib.KLAnnealing(**fields)
  found = [
    losses.kl_schedule(kl_annealing, 100, step) for step in range(0, 101, 25)
  ]
  np.testing.assert_allclose(found, expected, atol=1e-6)
