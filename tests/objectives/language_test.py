"""Likelihoods of targets against the logits of the whole batch.

B rows, T length, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.objectives import language, losses
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import sharding


@jax.jit
def reference(logits_BTV, targets_BT):
  """Log p(target) of each token from the logits, and whether it is best."""
  log_prob_BT = jnp.take_along_axis(
    jax.nn.log_softmax(logits_BTV), targets_BT[..., None], axis=-1
  )[..., 0]
  return log_prob_BT, jnp.argmax(logits_BTV, axis=-1) == targets_BT


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'tie_embeddings': False, 'logit_softcap': 5.0},
    {'dtype': 'bfloat16', 'tie_embeddings': False},
  ],
  ids=['tied', 'untied_capped', 'bfloat16'],
)
def test_scores_are_those_of_the_logits(fields):
  model = toy.model(**fields)
  params = toy.model_params(model, scale=0.5)
  batch = toy.batch(rows=3)
  logits_BTV, _ = jax.jit(lambda b: gemini.apply(model, params, b))(batch)
  best = np.argmax(logits_BTV, axis=-1)
  targets = np.where(np.arange(toy.T) % 2, best, batch.targets)
  batch = batch.replace(targets=targets.astype(np.int32))
  log_prob_BT, is_best_BT = reference(logits_BTV, batch.targets)
  _, scores = jax.jit(lambda b: losses.model_scores(model, params, b))(batch)
  assert scores.log_prob_BT.dtype == jnp.float32
  np.testing.assert_allclose(
    scores.log_prob_BT, log_prob_BT, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(scores.is_best_BT, is_best_BT)
  assert 0.4 < np.mean(is_best_BT) < 1
  row_B = jax.jit(lambda b: language.log_likelihood(model, params, b))(batch)
  expected_B = np.sum(log_prob_BT * batch.weights, axis=1)
  np.testing.assert_allclose(row_B, expected_B, rtol=1e-5)


def test_a_mesh_changes_no_score():
  """Rows, length, the table's rows and its columns are split."""
  model = toy.model(vocab_size=24, tie_embeddings=False)
  params = toy.model_params(model)
  batch = toy.batch(rows=4)
  scored = jax.jit(lambda p, b: losses.model_scores(model, p, b))
  sums, scores = scored(params, batch)
  boxed = jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0)))
  mesh = mesh_lib.make_mesh(
    config_lib.Parallel(fsdp=2, tensor=2, sequence=2), jax.devices()[:8]
  )
  with sharding.use(mesh):
    where = sharding.param_shardings(mesh, boxed)
    again, split = scored(jax.device_put(params, where), batch)
  np.testing.assert_allclose(again.loss, sums.loss, rtol=1e-5)
  np.testing.assert_allclose(
    split.log_prob_BT, scores.log_prob_BT, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_array_equal(split.is_best_BT, scores.is_best_BT)
