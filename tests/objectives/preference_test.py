"""Direct preference optimisation against its definition.

B rows, T length, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.objectives import losses, preference
from gemini_jax.parallel import sharding

MODEL = toy.model()
# Two pairs in each row, as packing makes them: of other lengths on both sides.
SIDES = (
  [1] * 5 + [2] * 4 + [0] * 3,
  [1] * 3 + [2] * 8 + [0],
)
WEIGHTS = {
  'router_balance': 0.0,
  'router_z': 0.0,
  'dpo': 1.0,
  'chosen_nll': 0.0,
}
OPTIONS = {
  'plain': {},
  'smooth': {'label_smoothing': 0.2, 'beta': 0.7},
  'length normalized': {'length_normalized': True, 'beta': 3.0},
}


def pairs(rows=toy.B, packed=True):
  """A batch of preferences; some tokens of each target have no weight."""

  def side(seed, segments):
    made = toy.batch(rows, seed=seed, segments=segments)
    counts_BT = (made.decoder.segments > 0) & (made.decoder.positions > 0)
    return made.replace(weights=counts_BT.astype(np.float32))

  chosen, rejected = SIDES if packed else ([1] * toy.T, [1] * toy.T)
  return side(1, chosen).replace(rejected=side(2, rejected))


def swapped(batch):
  return batch.rejected.replace(rejected=batch.replace(rejected=None))


def by_hand(batch, policy, reference, beta, label_smoothing, length_normalized):
  """(loss, margin, accuracy) of log-probabilities, pair by pair, in float64.

  Also the gradient of the loss by those of the policy, chosen and rejected.
  """
  sides = (batch, batch.rejected)
  policy, reference = (
    [np.asarray(x, np.float64) for x in both] for both in (policy, reference)
  )
  losses, margins, slopes = [], [], []
  grads = [np.zeros_like(x) for x in policy]
  for row in range(len(batch.targets)):
    for number in range(1, batch.decoder.segments[row].max() + 1):
      rewards, masks = [], []
      for side, new, old in zip(sides, policy, reference, strict=True):
        mask = side.weights[row] * (side.decoder.segments[row] == number)
        if length_normalized:
          mask = mask / mask.sum()
        rewards.append(beta * np.sum((new[row] - old[row]) * mask))
        masks.append(mask)
      margin = rewards[0] - rewards[1]
      sigmoid = 1 / (1 + np.exp(-margin))
      smooth = label_smoothing
      losses.append(
        -(1 - smooth) * np.log(sigmoid) - smooth * np.log(1 - sigmoid)
      )
      margins.append(margin)
      slope = beta * (smooth * sigmoid - (1 - smooth) * (1 - sigmoid))
      slopes.append((row, slope, masks))
  for row, slope, masks in slopes:
    grads[0][row] += slope * masks[0] / len(losses)
    grads[1][row] -= slope * masks[1] / len(losses)
  accuracy = np.mean(np.array(margins) > 0)
  return (np.mean(losses), np.mean(margins), accuracy), grads


def in_turn(sides):
  return jnp.stack(sides, axis=1).reshape(-1, toy.T)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_the_loss_and_its_gradient_are_the_definition(options):
  batch = pairs(rows=3)
  draw = lambda seed: -jnp.exp(toy.normal((3, toy.T), seed))
  policy, reference = (draw(0), draw(1)), (draw(2), draw(3))
  options = config_lib.DPO(**options)

  def loss(policy):
    terms = preference.terms(
      options, batch, in_turn(policy), in_turn(reference)
    )
    return terms.losses['dpo'], terms

  grads, terms = jax.jit(jax.grad(loss, has_aux=True))(policy)
  expected, wanted = by_hand(
    batch, policy, reference, **dataclasses.asdict(options)
  )
  means = losses.means(terms.sums)
  np.testing.assert_allclose(
    [means['dpo'], means['dpo_margin'], means['dpo_accuracy']],
    expected,
    rtol=1e-5,
  )
  assert 0 < expected[2] < 1
  assert terms.sums['dpo'][1] == 6
  np.testing.assert_allclose(terms.losses['dpo'], expected[0], rtol=1e-5)
  for grad, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-7)
  chosen = -np.sum(policy[0] * batch.weights) / batch.weights.sum()
  np.testing.assert_allclose(terms.losses['chosen_nll'], chosen, rtol=1e-5)


@pytest.fixture(scope='module')
def trained():
  """Parameters, others that they are relative to, and the compiled sums."""
  params, reference = (toy.model_params(MODEL, seed=s) for s in (0, 9))

  @jax.jit
  def gradient(params, reference, batch, weights):
    def objective(params):
      sums = losses.model_sums(
        MODEL, params, batch, loss_weights=weights, reference=reference
      )
      return sums.objective / sums.weight, sums

    return jax.grad(objective, has_aux=True)(params)

  return params, reference, gradient


def test_the_model_is_scored_by_its_own_log_probabilities(trained):
  """Each side read alone, and their logits, against both read in turn."""
  params, reference, gradient = trained
  batch = pairs()

  def log_probs(params):
    for side in (batch.replace(rejected=None), batch.rejected):
      logits_BTV, _ = gemini.apply(MODEL, params, side)
      yield jnp.take_along_axis(
        jax.nn.log_softmax(logits_BTV), side.targets[..., None], axis=-1
      )[..., 0]

  options = dataclasses.asdict(config_lib.DPO())
  policy, fixed = (
    jax.jit(lambda p: [*log_probs(p)])(p) for p in (params, reference)
  )
  (loss, margin, _), slopes = by_hand(batch, policy, fixed, **options)
  grads, sums = gradient(params, reference, batch, WEIGHTS)
  assert abs(loss - np.log(2)) > 0.01
  np.testing.assert_allclose(losses.means(sums.terms)['dpo'], loss, rtol=1e-4)
  np.testing.assert_allclose(sums.terms['dpo_margin'][0], 4 * margin, rtol=1e-3)
  np.testing.assert_allclose(sums.objective / sums.weight, loss, rtol=1e-4)
  # The rest is what is said of the preferred targets.
  np.testing.assert_allclose(
    sums.loss, -np.sum(policy[0] * batch.weights), rtol=1e-4
  )
  assert sums.weight == batch.weights.sum()
  wanted = jax.jit(
    jax.grad(
      lambda p: sum(
        jnp.sum(log_prob_BT * slope_BT)
        for log_prob_BT, slope_BT in zip(log_probs(p), slopes, strict=True)
      )
    )
  )(params)
  toy.assert_near(grads, wanted, rtol=1e-3)


def test_weights_add_up(trained):
  params, reference, gradient = trained
  one, other = (
    gradient(params, reference, pairs(), WEIGHTS | weights)[1]
    for weights in ({}, {'dpo': 2.0, 'chosen_nll': 0.5})
  )
  np.testing.assert_allclose(
    other.objective, 2 * one.objective + 0.5 * one.loss, rtol=1e-5
  )


def test_at_the_reference_the_loss_is_log_2(trained):
  """A step from there raises the margin; of swapped pairs it lowers it."""
  params, _, gradient = trained
  batch = pairs()
  moves = {}
  for name, given in (('given', batch), ('swapped', swapped(batch))):
    grads, sums = gradient(params, params, given, WEIGHTS)
    means = losses.means(sums.terms)
    np.testing.assert_allclose(means['dpo'], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(means['dpo_margin'], 0, atol=1e-5)
    moved = jax.tree.map(lambda x, g: x - 0.05 * g, params, grads)
    _, after = gradient(moved, params, batch, WEIGHTS)
    moves[name] = float(losses.means(after.terms)['dpo_margin'])
  assert moves['given'] > 0.01 and moves['swapped'] < -0.01


def test_nothing_flows_into_the_reference(trained):
  params, reference, _ = trained

  def objective(reference):
    return losses.model_sums(
      MODEL, params, pairs(), loss_weights=WEIGHTS, reference=reference
    ).objective

  grads = jax.jit(jax.grad(objective))(reference)
  assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_a_row_of_padding_is_no_pair(trained):
  params, reference, gradient = trained
  batch = pairs(rows=3)
  empty = jax.tree.map(lambda leaf: leaf * (np.arange(3) < 2)[:, None], batch)
  empty = jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), empty, batch)
  two = jax.tree.map(lambda leaf: leaf[:2], batch)
  _, sums = gradient(params, reference, empty, WEIGHTS)
  _, expected = gradient(params, reference, two, WEIGHTS)
  for name, total in expected.terms.items():
    np.testing.assert_allclose(sums.terms[name], total, rtol=1e-4)
  assert sums.terms['dpo'][1] == 4


def test_a_mesh_changes_nothing(trained):
  """Rows, length, the table's rows and the parameters' width are split."""
  model = toy.model(vocab_size=24)
  params, reference = (toy.model_params(model, seed=s) for s in (0, 9))
  batch = pairs(rows=4)

  @jax.jit
  def gradient(params, reference, batch):
    def objective(params):
      sums = losses.model_sums(
        model, params, batch, loss_weights=WEIGHTS, reference=reference
      )
      return sums.objective, sums.terms['dpo_margin']

    return jax.value_and_grad(objective, has_aux=True)(params)

  (value, margin), grads = gradient(params, reference, batch)
  mesh = toy.make_mesh(fsdp=2, tensor=2, sequence=2)
  boxed = jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0)))
  with sharding.use(mesh):
    where = sharding.param_shardings(mesh, boxed)
    (again, split), other = gradient(
      *(jax.device_put(tree, where) for tree in (params, reference)),
      sharding.put_batch(mesh, batch, np.arange(4), 4),
    )
  np.testing.assert_allclose(again, value, rtol=1e-4)
  np.testing.assert_allclose(split, margin, rtol=1e-4)
  toy.assert_near(other, grads, rtol=1e-3)
