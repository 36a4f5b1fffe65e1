"""What is pruned is zero wherever parameters are mirrored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import toy
from gemini_jax.adapt import masks
from gemini_jax.models import parameter_groups

CHOSEN = '@matrix$'
PARAMS = toy.network()
ONES = jax.tree.map(
  lambda is_on, leaf: (
    jnp.ones(leaf.shape, bool) if is_on else optax.MaskedNode()
  ),
  parameter_groups.matching(CHOSEN, PARAMS),
  PARAMS,
)
PRUNE = jax.jit(masks.prune_to)


def of_masks(tree):
  """The numbers of all matrices that have masks."""
  pick = jax.tree.map(
    lambda is_on, leaf: leaf if is_on else None,
    parameter_groups.matching(CHOSEN, PARAMS),
    tree,
  )
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(pick)])


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_the_largest_of_all_matrices_are_kept():
  found, size = ONES, flat(ONES).size
  relative = jax.tree.map(
    lambda leaf: leaf / np.sqrt(np.mean(np.square(leaf))), PARAMS
  )
  for share in (0.3, 0.5, 0.9):
    before = flat(found)
    found = PRUNE(found, PARAMS, share)
    kept = flat(found)
    assert kept.sum() == round((1 - share) * size)
    assert float(masks.density(found)) == pytest.approx(1 - share, abs=0.01)
    magnitude = np.abs(of_masks(relative))
    assert magnitude[kept].min() >= magnitude[~kept].max()
    assert not (kept & ~before).any()
  # Weights that have changed meanwhile do not return, nor at a lower share.
  other = toy.network(seed=1)
  again = flat(PRUNE(found, other, 0.9))
  np.testing.assert_array_equal(again, kept)
  np.testing.assert_array_equal(flat(PRUNE(found, other, 0.2)), kept)
  assert PRUNE._cache_size() == 1


def test_matrices_of_small_numbers_are_not_emptied():
  scale = iter(10.0 ** -np.arange(100))
  params = jax.tree.map(lambda leaf: leaf * next(scale), PARAMS)
  found, expected = PRUNE(ONES, params, 0.8), PRUNE(ONES, PARAMS, 0.8)
  np.testing.assert_array_equal(flat(found), flat(expected))
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  assert flat(PRUNE(ONES, zeros, 0.8)).mean() == pytest.approx(0.2, abs=0.01)


def test_zeros_in_parameters_and_moments():
  found = PRUNE(ONES, PARAMS, 0.5)
  pruned = ~flat(found)
  applied = masks.apply(found, PARAMS)
  assert not of_masks(applied)[pruned].any()
  np.testing.assert_array_equal(
    of_masks(applied)[~pruned], of_masks(PARAMS)[~pruned]
  )
  np.testing.assert_array_equal(
    applied['token']['embedding'], PARAMS['token']['embedding']
  )
  rule = optax.chain(optax.clip(1.0), optax.scale_by_adam())
  _, state = rule.update(PARAMS, rule.init(PARAMS))
  cleared = masks.apply_to_state(found, PARAMS, state)
  for before, after in zip(state[1][1:], cleared[1][1:], strict=True):
    jax.tree.map(
      np.testing.assert_array_equal, masks.apply(found, before), after
    )
    assert of_masks(before)[pruned].all()
  assert int(cleared[1].count) == 1


def test_density_counts():
  assert float(masks.density(ONES)) == 1 and float(masks.sparsity(ONES)) == 0
  none = jax.tree.map(jnp.zeros_like, ONES)
  assert float(masks.density(none)) == 0
