"""Ranks go where they are of use, by the gradient of the task alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import planted_rank
import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import adalora
from gemini_jax.train import state as state_lib
from gemini_jax.weights import lora

TUNE = config_lib.Tune(
  method='adalora',
  rank=1,
  adalora=config_lib.AdaLoRA(
    initial_rank=3, warmup_steps=2, final_steps=4, every=2
  ),
)
ITEM = adalora.AdaLoRA(TUNE, num_steps=12)


def draw(seed=0):
  """Two matrices of a stack, and one of two input dims."""
  update = lambda *shape, stack, split: lora.LowRank(
    toy.normal(shape, (seed, 0)),
    toy.normal((*shape[:split], 3), (seed, 1, split)),
    toy.normal((*shape[:stack], 3, *shape[split:]), (seed, 2, split)),
    toy.normal((*shape[:stack], 3), (seed, 3, split)),
  )
  return {
    'layers': {'kernel': update(2, 4, 5, stack=1, split=2)},
    'output': {'kernel': update(2, 3, 5, stack=0, split=2)},
    'norm': {'scale': toy.normal((4,), seed)},
  }


def state_at(step, params, extra=None):
  extra = extra or ITEM.init(params)
  return state_lib.TrainState(jnp.int32(step), params, (), {'adalora': extra})


@functools.cache
def update():
  return jax.jit(ITEM.after_update)


def grads_of(params, seed):
  """As of a step: nothing for what is frozen."""
  own = adalora.parameter_groups.own(TUNE, params)
  return toy.random_tree(own, seed)


def gains(tree):
  return [
    np.asarray(tree[name]['kernel'].gains) for name in ('layers', 'output')
  ]


def test_importance_and_uncertainty_follow_their_formulas():
  params = draw()
  state, first, second = (
    state_at(0, params),
    *(grads_of(params, seed) for seed in (1, 2)),
  )
  for step, grads in ((1, first), (2, second)):
    state = update()(state.replace(step=jnp.int32(step)), grads)
  own = state.extra['adalora']
  for part in ('a', 'b', 'gains'):
    pick = lambda tree, part=part: np.asarray(
      getattr(tree['output']['kernel'], part), np.float64
    )
    importance = uncertainty = 0.0
    for grads in (first, second):
      now = np.abs(pick(params) * pick(grads))
      importance = 0.85 * importance + 0.15 * now
      uncertainty = 0.85 * uncertainty + 0.15 * np.abs(now - importance)
    np.testing.assert_allclose(pick(own['importance']), importance, rtol=1e-5)
    np.testing.assert_allclose(pick(own['uncertainty']), uncertainty, rtol=1e-5)


def test_a_score_is_of_a_value_and_its_vectors():
  leaf = draw()['layers']['kernel']
  expected = (
    np.asarray(leaf.gains)
    + np.asarray(leaf.a).mean(1)
    + np.asarray(leaf.b).mean(2)
  )
  np.testing.assert_allclose(adalora._scores(leaf), expected, rtol=1e-5)
  leaf = draw()['output']['kernel']
  expected = np.asarray(leaf.gains) + np.asarray(leaf.a).mean((0, 1))
  expected += np.asarray(leaf.b).mean(1)
  np.testing.assert_allclose(adalora._scores(leaf), expected, rtol=1e-5)


@pytest.mark.parametrize('step', range(1, 13))
def test_values_are_cut_by_the_course_of_the_budget(step):
  """9 of 3 matrices, 3 at last; at steps 4, 6 and 8, and held after 8."""
  params = draw()
  extra = ITEM.init(params)
  held = jax.tree.map(
    lambda kept: jnp.arange(kept.size).reshape(kept.shape) % 3 == 1,
    extra['kept'],
  )
  extra['kept'] = held
  state = update()(state_at(step, params, extra), grads_of(params, 3))
  before, after = gains(params), gains(state.params)
  count = sum(np.count_nonzero(part) for part in after)
  rest = 1 - min(max((step - 2) / 6, 0), 1)
  budget = round(3 + 6 * rest**3)
  kept = [
    np.asarray(k) for k in jax.tree.leaves(state.extra['adalora']['kept'])
  ]
  if step in (4, 6, 8):
    assert count == budget
    for old, new, mask in zip(before, after, kept, strict=True):
      np.testing.assert_array_equal(new, np.where(mask, old, 0))
  else:
    # In between all may grow; in the end the pattern stays.
    held = jax.tree.leaves(held)
    jax.tree.map(np.testing.assert_array_equal, kept, held)
    for old, new, mask in zip(before, after, held, strict=True):
      np.testing.assert_array_equal(
        new, np.where(mask, old, 0) if step > 8 else old
      )


def test_the_best_of_all_matrices_are_kept():
  scores = {'x': jnp.asarray([[3.0, -1.0], [2.0, 2.0]]), 'y': jnp.arange(3.0)}
  masks = adalora.best(scores, 4)
  assert masks['x'].tolist() == [[True, False], [True, True]]
  assert masks['y'].tolist() == [False, False, True]
  # No more, whatever is equal.
  ties = adalora.best(jax.tree.map(jnp.zeros_like, scores), 4)
  assert sum(int(mask.sum()) for mask in jax.tree.leaves(ties)) == 4


def test_factors_are_pulled_towards_orthogonal_ones():
  """By a gradient that importance does not see."""
  params = draw()
  state = state_at(1, params)
  grads = grads_of(params, 4)
  own = adalora.parameter_groups.own(TUNE, params)
  norms = []
  for leaf in (params['layers']['kernel'], params['output']['kernel']):
    lead = leaf.gains.ndim - 1
    a = np.asarray(leaf.a, np.float64).reshape(*leaf.a.shape[:lead], -1, 3)
    b = np.asarray(leaf.b, np.float64).reshape(*leaf.b.shape[:lead], 3, -1)
    for gram in (a.swapaxes(-1, -2) @ a, b @ b.swapaxes(-1, -2)):
      norms.append(np.linalg.norm(gram - np.eye(3), axis=(-2, -1)).ravel())
  expected = np.mean(np.concatenate(norms))
  assert float(adalora.distance(own)) == pytest.approx(expected, rel=1e-5)
  pulled = ITEM.gradients(state, grads)
  steps = jax.tree.map(
    lambda p, new, old: p - 0.3 * (new - old), own, pulled, grads
  )
  assert adalora.distance(steps) < expected
  for name in ('layers', 'output'):
    found, plain = (tree[name]['kernel'].gains for tree in (pulled, grads))
    np.testing.assert_array_equal(found, plain)
  off = dataclasses.replace(
    ITEM,
    tune=dataclasses.replace(
      TUNE, adalora=dataclasses.replace(TUNE.adalora, orthogonality=0.0)
    ),
  )
  jax.tree.map(
    np.testing.assert_array_equal, off.gradients(state, grads), grads
  )


def of_use(ranks):
  return sum(ranks[layer] for layer in planted_rank.PLANTED)


def test_ranks_go_where_they_were_planted():
  _, ranks = planted_rank.tuned('adalora', 2, num_steps=300, initial_rank=8)
  assert sum(ranks) == 12 and of_use(ranks) >= 10


def test_it_finds_planted_ranks(monkeypatch):
  """At the same number of ranks, a twentieth of uniform LoRA's error."""
  error, ranks = planted_rank.tuned('adalora', 2, initial_rank=8)
  assert sum(ranks) == 12 and of_use(ranks) >= 10
  uniform, _ = planted_rank.tuned('lora', 2)
  assert 0.05 < uniform < 0.5
  assert error < uniform / 20
  # The control: ranks by lot.
  noise = lambda scores: jax.tree.map(
    lambda leaf: jax.random.uniform(jax.random.key(3), leaf.shape), scores
  )
  best = adalora.best
  monkeypatch.setattr(
    adalora, 'best', lambda scores, count: best(noise(scores), count)
  )
  error, ranks = planted_rank.tuned('adalora', 2, initial_rank=8)
  assert sum(ranks) == 12 and of_use(ranks) < 10
  assert error > uniform / 20
