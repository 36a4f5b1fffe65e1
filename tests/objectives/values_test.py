"""Labels and numbers: their losses and gradients are those by definition.

B rows, T length, K labels or numbers, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.objectives import losses, values
from gemini_jax.parallel import sharding

K, ROWS = 3, 4
ROWS_B = np.arange(ROWS)


def make(output):
  """A batch with one example a row, of different weights, and the places."""
  batch = toy.batch(rows=ROWS)
  rng = np.random.default_rng(3)
  places_B = rng.integers(0, toy.T, ROWS)
  weights = np.zeros(batch.weights.shape, np.float32)
  weights[ROWS_B, places_B] = rng.uniform(0.5, 2, ROWS)
  # A row of padding.
  weights[1] = 0
  truth = rng.normal(size=(ROWS, 1, K)).astype(np.float32)
  if output == 'labels':
    truth = (truth > 0).astype(np.float32)
  batch = batch.replace(
    weights=weights, targets=0 * batch.targets, values=truth
  )
  return batch, places_B


def direct(output, outputs_BK, batch, places_B, smoothing=0.0):
  """The loss by its definition, and how many labels are right."""
  truth_BK = batch.values[:, 0]
  if output == 'labels':
    truth_BK = (1 - smoothing) * truth_BK + smoothing / 2
    p_BK = 1 / (1 + jnp.exp(-outputs_BK))
    loss_BK = -(truth_BK * jnp.log(p_BK) + (1 - truth_BK) * jnp.log(1 - p_BK))
    right_BK = (p_BK >= 0.5) == (truth_BK > 0.5)
  else:
    loss_BK = (outputs_BK - truth_BK) ** 2
    right_BK = jnp.zeros(truth_BK.shape)
  weights_B = batch.weights[ROWS_B, places_B]
  return tuple(
    jnp.sum(part_BK.mean(axis=1) * weights_B) for part_BK in (loss_BK, right_BK)
  )


@pytest.mark.parametrize('output', ['labels', 'numbers'])
def test_the_loss_and_its_gradient_are_those_by_definition(output):
  batch, places_B = make(output)
  config = toy.model(num_classes=K, output=output).config
  x_BTD = toy.normal((ROWS, toy.T, 16))
  table_KD = toy.normal((K, 16), seed=1, scale=0.3)
  of_table = lambda x_BTD, table_KD: x_BTD[ROWS_B, places_B] @ table_KD.T
  smoothing = 0.3 if output == 'labels' else 0.0

  sums, scores = values.scores(
    config, x_BTD, table_KD, batch, label_smoothing=smoothing
  )
  outputs_BK = of_table(x_BTD, table_KD)
  loss, right = direct(output, outputs_BK, batch, places_B)
  smooth, _ = direct(output, outputs_BK, batch, places_B, smoothing)
  for found, expected in (
    (sums.loss, loss),
    (sums.objective, smooth),
    (sums.correct, right),
    (sums.weight, batch.weights.sum()),
    (-jnp.sum(scores.log_prob_BT * batch.weights), loss),
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  if output == 'labels':
    assert abs(smooth - loss) > 0.01
    assert 0 < right < sums.weight

  def objective(x_BTD, table_KD):
    return values.scores(
      config, x_BTD, table_KD, batch, label_smoothing=smoothing
    )[0].objective

  def definition(x_BTD, table_KD):
    outputs_BK = of_table(x_BTD, table_KD)
    return direct(output, outputs_BK, batch, places_B, smoothing)[0]

  toy.assert_near(
    jax.grad(objective, (0, 1))(x_BTD, table_KD),
    jax.grad(definition, (0, 1))(x_BTD, table_KD),
  )


def test_a_mesh_does_not_change_the_loss():
  """Nor does a split length: the numbers of a row have none."""
  batch, _ = make('numbers')
  config = toy.model(num_classes=K, output='numbers').config
  x_BTD = toy.normal((ROWS, toy.T, 16))
  table_KD = toy.normal((K, 16), seed=1)
  expected, _ = values.scores(config, x_BTD, table_KD, batch)
  mesh = toy.make_mesh(data=2, fsdp=2, sequence=2)
  with sharding.use(mesh):
    placed = sharding.put_batch(mesh, batch, ROWS_B, ROWS)
    place = sharding.batch_sharding(mesh)
    found, _ = jax.jit(functools.partial(values.scores, config))(
      jax.device_put(x_BTD, place), table_KD, placed
    )
  assert len(placed.values.sharding.device_set) == 8
  np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize('output', ['labels', 'numbers'])
def test_the_outputs_are_the_models(output):
  """Without a soft-cap, which would bound numbers."""
  batch, places_B = make(output)
  model = toy.model(num_classes=K, output=output, logit_softcap=0.1)
  params = toy.model_params(model)
  sums, _ = losses.model_scores(model, params, batch)
  logits_BTK, _ = gemini.apply(model, params, batch)
  outputs_BK = logits_BTK[ROWS_B, places_B]
  expected, _ = direct(output, outputs_BK, batch, places_B)
  np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)
  sums = losses.model_sums(
    *(model, params, batch), key=jax.random.key(0), config=config_lib.Train()
  )
  np.testing.assert_allclose(sums.objective, expected, rtol=1e-5)
