"""The weighted sum of all losses, and where its randomness comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.objectives import losses, terms

FIELDS = (('num_experts', 4), ('expert_dim', 8), ('dropout', 0.5))
NOTHING = dict.fromkeys(vars(config_lib.LossWeights()), 0.0)


@pytest.fixture(scope='module')
def routed():
  """A model with routers, its parameters and a compiled `model_sums`."""
  model = toy.model(**dict(FIELDS))
  params = toy.model_params(model)

  @jax.jit
  def sums(params, weights):
    return losses.model_sums(model, params, toy.batch(), loss_weights=weights)

  return model, params, sums


def test_each_loss_is_weighted_by_its_name(routed):
  """z_loss apart, whose weight is part of the compiled kernel."""
  model, params, sums = routed
  nothing = {name: 0.0 for name in NOTHING if name != 'z_loss'}
  plain = sums(params, nothing)
  forward = lambda: gemini.apply(
    model, params, toy.batch(), True, method='forward'
  )
  aux = jax.jit(lambda: forward().aux)()
  assert set(aux) == {'router_balance', 'router_z'}
  for name, value in aux.items():
    added = sums(params, nothing | {name: 2.0}).objective - plain.objective
    assert abs(value) > 1e-3
    np.testing.assert_allclose(
      added, 2.0 * value * plain.weight, rtol=1e-3, err_msg=name
    )
  assert plain.objective == plain.loss


def test_a_loss_without_a_weight_is_an_error(routed):
  _, params, sums = routed
  with pytest.raises(KeyError, match='router'):
    sums(params, {'kl': 1.0})


def test_an_objective_is_a_function_and_an_entry(routed, monkeypatch):
  """All that a new one needs; its loss is weighted, its mean reported."""
  model, params, _ = routed

  def norm(config, output, batch, num_tokens, train):
    del config, train
    total = jnp.sum(jnp.square(output.x_BTD) * batch.weights[..., None])
    return terms.Terms(
      losses={'norm': total / num_tokens},
      sums={'norm': jnp.stack([total, num_tokens])},
    )

  monkeypatch.setattr(losses, '_OBJECTIVES', (*losses._OBJECTIVES, norm))
  weights = NOTHING | {'norm': 0.25}
  measure = lambda: losses.model_sums(
    model, params, toy.batch(), loss_weights=weights
  )
  sums = jax.jit(measure)()
  total = sums.terms['norm'][0]
  np.testing.assert_allclose(
    sums.objective, sums.loss + 0.25 * total, rtol=1e-5
  )
  mean = losses.means(sums.terms)['norm']
  np.testing.assert_allclose(mean, total / sums.weight, rtol=1e-6)


def test_without_weights_the_objective_is_the_cross_entropy(routed):
  model, params, _ = routed
  sums = losses.model_sums(model, params, toy.batch())
  assert sums.objective == sums.loss
  again, scores = losses.model_scores(model, params, toy.batch())
  assert again.loss == sums.loss and again.correct == sums.correct
  np.testing.assert_allclose(
    -jnp.sum(scores.log_prob_BT * toy.batch().weights), sums.loss, rtol=1e-5
  )


def test_dropout_and_smoothing_belong_to_training(routed):
  model, params, _ = routed
  config = config_lib.Train(label_smoothing=0.1)

  @jax.jit
  def train(key):
    return losses.model_sums(model, params, toy.batch(), key=key, config=config)

  plain = losses.model_sums(model, params, toy.batch())
  one, other = (train(jax.random.key(seed)) for seed in (3, 4))
  assert len({float(sums.loss) for sums in (plain, one, other)}) == 3
  assert one.objective != one.loss
  assert train(jax.random.key(3)).loss == one.loss


def test_evaluation_draws_the_same_for_the_same_batch():
  model = toy.model(latent=config_lib.Latent(dim=3))
  params = toy.model_params(model)

  @jax.jit
  def loss(batch):
    return losses.model_sums(model, params, batch).loss

  batch = toy.batch(2)
  one, again = loss(batch), loss(toy.batch(2))
  assert one == again
  # Other targets, another draw: what differs is not the targets alone.
  rngs = {'latent': jax.random.fold_in(jax.random.key(0), 1)}
  forward = lambda rngs: gemini.apply(
    model, params, batch, True, rngs=rngs, method='forward'
  )
  mean_BZ, drawn_BZ = (
    jax.jit(lambda rngs: forward(rngs).latent.z_BZ)(own) for own in ({}, rngs)
  )
  assert not np.allclose(mean_BZ, drawn_BZ)
