"""An output of classes and its loss.

B rows, T length, C classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.objectives import losses

C = 5


def make(**fields):
  """A model, parameters and a batch of classes."""
  model = toy.model(num_classes=C, **fields)
  encoder = toy.sequence(length=toy.S, seed=7) if model.config.cross else None
  batch = toy.batch(encoder=encoder)
  rng = np.random.default_rng(3)
  weights = (rng.random(batch.targets.shape) < 0.4).astype(np.float32)
  targets = rng.integers(0, C, batch.targets.shape).astype(np.int32)
  batch = batch.replace(targets=targets, weights=weights * batch.weights)
  return model, toy.model_params(model), batch


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'tie_embeddings': False, 'logit_softcap': 2.0},
    {'architecture': 'encoder_decoder'},
  ],
)
def test_the_loss_is_that_of_the_logits(fields):
  model, params, batch = make(**fields)
  assert 'head' not in params
  assert params['classes']['kernel'].shape == (model.config.width, C)
  sums, scores = losses.model_scores(model, params, batch)
  logits_BTC, _ = gemini.apply(model, params, batch)
  assert logits_BTC.shape == (*batch.targets.shape, C)
  log_BTC = jax.nn.log_softmax(logits_BTC)
  expected_BT = jnp.take_along_axis(
    log_BTC, jnp.asarray(batch.targets)[..., None], axis=-1
  )[..., 0]
  used_BT = batch.weights > 0
  np.testing.assert_allclose(
    scores.log_prob_BT[used_BT], expected_BT[used_BT], atol=1e-5
  )
  total = -np.sum(expected_BT * batch.weights)
  np.testing.assert_allclose(sums.loss, total, rtol=1e-5)
  right = (logits_BTC.argmax(-1) == batch.targets) & used_BT
  assert int(sums.correct) == int(right.sum())
  assert 0 < right.sum() < used_BT.sum()


def test_smoothing_is_over_classes():
  """The smoothed loss is a mean over the classes, none of them padding."""
  model, params, batch = make()
  train = config_lib.Train(label_smoothing=0.3)
  sums = losses.model_sums(
    model, params, batch, key=jax.random.key(0), config=train
  )
  logits_BTC, _ = gemini.apply(model, params, batch)
  log_BTC = np.asarray(jax.nn.log_softmax(logits_BTC))
  true_BT = np.take_along_axis(log_BTC, batch.targets[..., None], -1)[..., 0]
  smooth_BT = 0.7 * true_BT + 0.3 * log_BTC.mean(-1)
  expected = -np.sum(smooth_BT * batch.weights)
  np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)
