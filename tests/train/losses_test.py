"""Sums of the loss against numpy in float64.

B batch, T length, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.train import losses

SHAPE = (3, 5, 11)


def arguments(seed=0, scale=2.0):
  rng = np.random.default_rng(seed)
  logits_BTV = rng.normal(0, scale, SHAPE).astype(np.float32)
  targets_BT = rng.integers(0, SHAPE[-1], SHAPE[:2]).astype(np.int32)
  # Half of them are right.
  rows = np.indices(SHAPE[:2])
  best_BT = logits_BTV.argmax(-1)
  targets_BT = np.where(rows.sum(0) % 2 == 0, best_BT, targets_BT)
  weights_BT = rng.uniform(0, 2, SHAPE[:2]).astype(np.float32)
  weights_BT[rng.uniform(size=SHAPE[:2]) < 0.3] = 0
  return logits_BTV, targets_BT.astype(np.int32), weights_BT


def reference(
  logits_BTV, targets_BT, weights_BT, label_smoothing=0.0, z_loss=0.0
):
  """(loss, objective, correct, weight), one token at a time."""
  totals = np.zeros(4)
  num_tokens = SHAPE[-1]
  for place in np.ndindex(targets_BT.shape):
    logits_V = logits_BTV[place].astype(np.float64)
    top = logits_V.max()
    log_partition = top + np.log(np.exp(logits_V - top).sum())
    logprobs_V = logits_V - log_partition
    wanted_V = np.full(num_tokens, label_smoothing / num_tokens)
    wanted_V[targets_BT[place]] += 1 - label_smoothing
    values = (
      -logprobs_V[targets_BT[place]],
      -(wanted_V * logprobs_V).sum() + z_loss * log_partition**2,
      logits_V[targets_BT[place]] == top,
      1,
    )
    totals += np.float64(weights_BT[place]) * np.array(values, np.float64)
  return totals


def as_tuple(sums):
  return [sums.loss, sums.objective, sums.correct, sums.weight]


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'label_smoothing': 0.1},
    {'z_loss': 0.01},
    {'label_smoothing': 0.3, 'z_loss': 0.5},
  ],
)
def test_sums_equal_the_reference(options):
  values = arguments()
  sums = losses.token_sums(*values, **options)
  expected = reference(*values, **options)
  np.testing.assert_allclose(as_tuple(sums), expected, rtol=1e-5)
  assert 0 < expected[2] < expected[3], 'some right and some wrong'
  if not options:
    assert float(sums.objective) == float(sums.loss)
  else:
    assert abs(float(sums.objective) - float(sums.loss)) > 0.1


def test_tokens_of_weight_0_do_not_matter():
  logits_BTV, targets_BT, weights_BT = arguments()
  assert (weights_BT == 0).any()
  options = {'label_smoothing': 0.1, 'z_loss': 0.1}
  expected = losses.token_sums(logits_BTV, targets_BT, weights_BT, **options)
  logits_BTV[weights_BT == 0] = 1e4 * np.arange(SHAPE[-1])
  targets_BT[weights_BT == 0] = 0
  sums = losses.token_sums(logits_BTV, targets_BT, weights_BT, **options)
  np.testing.assert_array_equal(as_tuple(sums), as_tuple(expected))


def test_the_gradient_equals_finite_differences():
  logits_BTV, targets_BT, weights_BT = arguments()
  options = {'label_smoothing': 0.2, 'z_loss': 0.05}
  gradient_BTV = jax.grad(
    lambda x: losses.token_sums(x, targets_BT, weights_BT, **options).objective
  )(logits_BTV)
  delta = 1e-6
  for place in ((0, 0, 0), (1, 3, 4), (2, 4, 10), (0, 2, 7)):
    shifted = []
    for sign in (1, -1):
      moved_BTV = logits_BTV.astype(np.float64)
      moved_BTV[place] += sign * delta
      shifted.append(reference(moved_BTV, targets_BT, weights_BT, **options)[1])
    slope = (shifted[0] - shifted[1]) / (2 * delta)
    assert gradient_BTV[place] == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize('shift', [1e4, -1e4])
def test_a_large_constant_cancels(shift):
  """Up to the rounding of the logits themselves, and never to inf or NaN."""
  logits_BTV, targets_BT, weights_BT = arguments()
  shifted_BTV = logits_BTV + np.float32(shift)
  sums = losses.token_sums(shifted_BTV, targets_BT, weights_BT)
  expected = reference(shifted_BTV, targets_BT, weights_BT)
  np.testing.assert_allclose(sums.loss, expected[0], rtol=2e-3)
  shifted_BTV *= np.float32(1e30)
  gradient_BTV = jax.grad(
    lambda x: losses.token_sums(x, targets_BT, weights_BT).objective
  )(shifted_BTV)
  assert np.isfinite(gradient_BTV).all()


class Model:
  """Answers with fixed logits and with terms beside them."""

  def __init__(self, aux):
    self.logits_BTV, *_ = arguments()
    self.aux, self.calls = aux, []

  def apply(self, variables, batch, **options):
    self.calls.append((variables, options))
    return jnp.asarray(self.logits_BTV), self.aux


def model_batch():
  _, targets_BT, weights_BT = arguments()
  batch = toy.batch(*SHAPE[:2])
  return batch.replace(targets=targets_BT, weights=weights_BT)


def test_auxiliary_terms_are_weighted_by_name():
  batch = model_batch()
  model = Model({'balance': jnp.float32(3.0), 'kl': jnp.float32(-0.5)})
  weights = {'z_loss': 0.1, 'balance': 0.25, 'kl': 2.0, 'unused': 7.0}
  sums = losses.model_sums(model, 'params', batch, loss_weights=weights)
  expected = reference(*arguments(), z_loss=0.1)
  np.testing.assert_allclose(
    sums.objective, expected[1] + (0.75 - 1.0) * expected[3], rtol=1e-5
  )
  np.testing.assert_allclose(sums.loss, expected[0], rtol=1e-5)
  with pytest.raises(KeyError, match='kl'):
    losses.model_sums(model, 'params', batch, loss_weights={'balance': 1.0})


def test_without_weights_the_objective_is_the_cross_entropy():
  sums = losses.model_sums(
    Model({'balance': jnp.float32(3.0)}), 'params', model_batch()
  )
  np.testing.assert_allclose(
    sums.objective, reference(*arguments())[1], rtol=1e-5
  )


def test_dropout_is_on_exactly_with_a_key():
  batch, model = model_batch(), Model({})
  losses.model_sums(model, 'params', batch)
  losses.model_sums(model, 'params', batch, dropout_key=jax.random.key(3))
  (_, evaluation), (variables, training) = model.calls
  assert variables == {'params': 'params'}
  assert evaluation == {'deterministic': True, 'rngs': {}}
  assert not training['deterministic']
  assert training['rngs'] == {'dropout': jax.random.key(3)}
