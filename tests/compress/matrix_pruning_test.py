"""Pruning and rounding of one matrix, by what its inputs are like."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.compress import matrix_pruning
from gemini_jax.weights import grids

F, D = 24, 144


@functools.cache
def matrix():
  """Weights, and the Hessian of inputs that depend on each other."""
  w_FD = toy.normal((F, D), 0)
  mix_DD = toy.normal((D, D), 1, D**-0.5)
  sizes_D = jnp.exp(toy.normal((1, D), 2))
  x_RD = (toy.normal((400, D), 3) @ mix_DD + 0.3 * toy.normal((400, D), 4)) * (
    sizes_D
  )
  return w_FD, x_RD.T @ x_RD


def error(new_FD):
  """Of the outputs, relative to them."""
  w_FD, hessian = matrix()
  size = lambda w: float(jnp.sum((w @ hessian) * w))
  return size(new_FD - w_FD) / size(w_FD)


def run(method, hessian=None, **fields):
  w_FD, known = matrix()
  hessian = known if hessian is None else hessian
  if method == 'wanda':
    hessian = jnp.diag(hessian) if hessian.ndim == 2 else hessian
  settings = matrix_pruning.Settings(method, **fields)
  return matrix_pruning.compress(w_FD, hessian, settings)


@pytest.mark.parametrize(
  'fields', [{'alpha': 0.5}, {'n_m': (2, 4)}, {'alpha': 0.7}]
)
def test_what_knows_more_loses_less(fields):
  """Magnitude loses most, then Wanda, SparseGPT least; noise is no help."""
  noise_D = jnp.square(toy.normal((D,), 9)) + 0.01
  methods = ('sparsegpt', 'wanda', 'magnitude')
  found = [error(run(method, **fields)[0]) for method in methods]
  assert found[0] < 0.9 * found[1] and found[1] < 0.9 * found[2]
  assert error(run('wanda', noise_D, **fields)[0]) > 1.2 * found[1]


@pytest.mark.parametrize('method', ['magnitude', 'wanda', 'sparsegpt'])
def test_as_many_are_pruned_as_asked(method):
  half, _ = run(method, alpha=0.5)
  pruned_FD = np.asarray(half) == 0
  assert pruned_FD.sum() == F * D // 2
  if method == 'wanda':
    assert (pruned_FD.sum(1) == D // 2).all()
  two_of_four, _ = run(method, n_m=(2, 4))
  groups = (np.asarray(two_of_four) == 0).reshape(F, -1, 4)
  assert (groups.sum(-1) == 2).all()


@pytest.mark.parametrize('method', ['magnitude', 'wanda', 'sparsegpt'])
def test_of_equal_ones_no_more_are_pruned(method):
  """Dead inputs, and weights of one size."""
  w_FD, hessian = matrix()
  dead_D = jnp.arange(D) % 8 > 0
  for own, known, share in (
    (w_FD, jnp.where(dead_D[:, None] | dead_D[None], 0, hessian), 0.5),
    (w_FD, jnp.zeros_like(hessian), 0.5),
    (jnp.sign(w_FD), jnp.eye(D), 0.25),
  ):
    known = jnp.diag(known) if method == 'wanda' else known
    settings = matrix_pruning.Settings(method, alpha=share)
    found, _ = matrix_pruning.compress(own, known, settings)
    assert np.mean(np.asarray(found) == 0) == share
  # Of unknown inputs by size.
  if method == 'wanda':
    settings = matrix_pruning.Settings(method, alpha=0.5)
    found, _ = matrix_pruning.compress(w_FD, jnp.zeros(D), settings)
    expected, _ = matrix_pruning.compress(w_FD, jnp.ones(D), settings)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('method', ['magnitude', 'wanda'])
def test_each_block_of_outputs_keeps_the_largest_blocks(method):
  w_FD, hessian = (np.asarray(part) for part in matrix())
  scores_FD = np.square(w_FD)
  if method == 'wanda':
    scores_FD = scores_FD * np.diag(hessian)
  b, expected = 8, np.zeros_like(w_FD)
  for f in range(0, F, b):
    sums = [scores_FD[f : f + b, d : d + b].sum() for d in range(0, D, b)]
    for d in b * np.argsort(sums)[-round(0.3 * D / b) :]:
      expected[f : f + b, d : d + b] = w_FD[f : f + b, d : d + b]
  found, _ = run(method, alpha=0.7, block=b)
  np.testing.assert_array_equal(found, expected)
  # What has fewer blocks keeps them.
  again, _ = matrix_pruning.compress(
    found,
    jnp.diag(hessian),
    matrix_pruning.Settings(method, alpha=0.7, block=b),
  )
  np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(
  ('grid', 'factor'),
  [
    (grids.Grid('int4', 32), 0.8),
    (grids.Grid('int4', 128), 0.8),
    (grids.Grid('int8'), 0.8),
    (grids.Grid('float8'), 0.9),
  ],
)
def test_compensated_rounding_loses_less(grid, factor):
  nearest, _ = run('round', grid=grid)
  better, scale = run('gptq', grid=grid)
  assert 0 < error(better) < factor * error(nearest)
  # They are what codes and scales stand for.
  np.testing.assert_array_equal(grid.rounded(better, scale), better)
  leaf = grid.leaf(better, scale, (D,), (F,), False)
  np.testing.assert_array_equal(leaf.to_array(jnp.float32).T, better)


def test_pruning_and_rounding_in_one_pass():
  grid = grids.Grid('int4', 48)
  joint, _ = run('sparsegpt', alpha=0.5, grid=grid)
  pruned, _ = run('sparsegpt', alpha=0.5)
  apart = grid.rounded(pruned, grid.scale(pruned))
  assert error(joint) < error(apart)
  assert (np.asarray(joint) == 0).sum() >= F * D // 2


def test_what_is_pruned_stays_so():
  settings = matrix_pruning.Settings('gptq', grid=grids.Grid('int4', 128))
  pruned, _ = run('magnitude', alpha=0.5)
  found, _ = matrix_pruning.compress(pruned, matrix()[1], settings)
  assert (np.asarray(found)[np.asarray(pruned) == 0] == 0).all()


def test_the_pass_is_that_of_the_papers():
  """Input after input, with the inverse of the Hessian of those after it."""
  w_FD, hessian = (np.asarray(part, np.float64) for part in matrix())
  settings = matrix_pruning.Settings('sparsegpt', alpha=0.5)
  found, _ = matrix_pruning.compress(*matrix(), settings)
  kept_FD = np.asarray(found) != 0
  hessian = hessian + 0.01 * np.diag(hessian).mean() * np.eye(D)
  for j in range(D):
    inverse = np.linalg.inv(hessian[j:, j:])
    lost_F = np.where(kept_FD[:, j], 0, w_FD[:, j])
    w_FD[:, j:] -= lost_F[:, None] * inverse[0][None] / inverse[0, 0]
  np.testing.assert_allclose(found, w_FD, atol=2e-3)
