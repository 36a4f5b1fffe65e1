"""Pairs are drawn together, what says the same is not driven apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.objectives import contrastive

B, D = 6, 5
SCALE = np.float32(1 / 0.07)
info_nce = jax.jit(contrastive.info_nce)


def vectors(seed, rows=B):
  return toy.normal((rows, D), seed)


def plain_loss(one_BD, other_BD, factor, same_BB, weights_B):
  """Pair by pair, in float64."""
  one_BD, other_BD = (
    np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    for x in (one_BD, other_BD)
  )
  losses = []
  for x_BD, y_BD in ((one_BD, other_BD), (other_BD, one_BD)):
    for i in np.flatnonzero(weights_B):
      terms = [
        np.exp(factor * x_BD[i] @ y_BD[j])
        for j in np.flatnonzero(weights_B)
        if i == j or not same_BB[i, j]
      ]
      own = np.exp(factor * x_BD[i] @ y_BD[i])
      losses.append(-np.log(own / np.sum(terms)))
  return np.mean(losses)


def test_loss_is_the_definition():
  one_BD, other_BD = vectors(0), vectors(1)
  same_BB = np.eye(B, dtype=bool)
  same_BB[1, 4] = same_BB[4, 1] = True
  weights_B = np.array([1, 1, 0, 1, 1, 1], np.float32)
  nothing_BB, all_B = np.zeros((B, B), bool), np.ones(B)
  cases = (
    ({}, nothing_BB, all_B),
    ({'same_BB': same_BB}, same_BB, all_B),
    ({'weights_B': weights_B}, nothing_BB, weights_B),
    ({'same_BB': same_BB, 'weights_B': weights_B}, same_BB, weights_B),
  )
  found = [
    float(info_nce(one_BD, other_BD, SCALE, **options).loss)
    for options, *_ in cases
  ]
  expected = [
    plain_loss(one_BD, other_BD, 1 / 0.07, *rest) for _, *rest in cases
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert len({round(x, 4) for x in found}) == len(cases)


def test_aligned_is_less_than_shuffled():
  one_BD = vectors(0)
  aligned = info_nce(one_BD, 3 * one_BD, SCALE)
  shuffled = info_nce(one_BD, one_BD[::-1], SCALE)
  assert aligned.loss < 0.1 < 2 < shuffled.loss
  assert aligned.accuracy == 1 and shuffled.accuracy == 0


def test_what_says_the_same_is_no_negative():
  """Two pairs with one caption: its vector is the same, and no loss is left."""
  one_BD = jnp.eye(B, D + 1)
  other_BD = one_BD.at[1].set(one_BD[4])
  one_BD = one_BD.at[1].set(one_BD[4])
  captions_B = np.array([0, 9, 2, 3, 9, 5])
  same_BB = captions_B[:, None] == captions_B[None]
  scale = jnp.float32(100.0)
  marked = info_nce(one_BD, other_BD, scale, same_BB=same_BB)
  unmarked = info_nce(one_BD, other_BD, scale)
  np.testing.assert_allclose(marked.loss, 0, atol=1e-5)
  np.testing.assert_allclose(unmarked.loss, 2 / B * np.log(2), rtol=1e-4)
  assert marked.accuracy == 1


def test_nothing_drives_those_apart_that_say_the_same():
  """Two such pairs have no loss and no gradient, whatever their vectors."""
  loss = lambda x_BD, same_BB: (
    info_nce(x_BD, vectors(1, 2), SCALE, same_BB=same_BB).loss
  )
  marked, unmarked = (
    jax.jit(jax.value_and_grad(loss))(vectors(0, 2), same_BB)
    for same_BB in (jnp.ones((2, 2), bool), None)
  )
  assert marked[0] == 0 < unmarked[0]
  sizes = [np.abs(gradient).max() for _, gradient in (marked, unmarked)]
  assert sizes[0] < 1e-6 < 1e-3 < sizes[1]


def test_pairs_of_weight_0_change_nothing():
  one_BD, other_BD = vectors(0), vectors(1)
  weights_B = np.array([1, 0, 1, 1, 0, 1], np.float32)
  kept = np.flatnonzero(weights_B)
  found, gradient = jax.jit(
    jax.value_and_grad(
      lambda x_BD: info_nce(x_BD, other_BD, SCALE, weights_B=weights_B).loss
    )
  )(one_BD)
  expected = info_nce(one_BD[kept], other_BD[kept], SCALE).loss
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  norms_B = np.linalg.norm(gradient, axis=1)
  np.testing.assert_array_equal(norms_B > 0, weights_B > 0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_are_finite_and_lead_to_alignment(dtype):
  """Also of a vector of zeros, a batch of one and nothing that counts."""
  loss = lambda x_BD, y_BD, scale, weights_B: (
    info_nce(x_BD, y_BD, scale, weights_B=weights_B).loss
  )
  differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  for one_BD, other_BD, weights_B in (
    (vectors(0).at[2].set(0.0), vectors(1), np.ones(B)),
    (vectors(0, 1), vectors(1, 1), np.ones(1)),
    (vectors(0), vectors(1), np.zeros(B)),
  ):
    value, gradients = differentiate(
      one_BD.astype(dtype), other_BD.astype(dtype), SCALE, weights_B
    )
    assert value.dtype == jnp.float32
    for leaf in jax.tree.leaves((value, gradients)):
      assert np.isfinite(np.asarray(leaf, np.float32)).all()
  state = (vectors(0), vectors(1), SCALE)
  values = []
  for _ in range(60):
    value, gradients = differentiate(*state, np.ones(B))
    values.append(value)
    state = jax.tree.map(lambda x, g: x - 0.3 * g, state, gradients)
  assert values[-1] < 0.1 * values[0]
