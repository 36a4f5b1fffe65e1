"""What is pruned as one, and how much of each matrix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import units

# Of a stack with two input dims, a table, and a convolution.
OUTPUT = units.Units('decoder/layers/output/kernel', (3, 2, 4, 8))
TABLE = units.Units('token/embedding', (12, 8))
CONVOLUTION = units.Units('image/frames/kernel', (2, 3, 4, 16))


def replace(item, **fields):
  return dataclasses.replace(item, **fields)


@pytest.mark.parametrize(
  ('item', 'shape', 'dims', 'num_stacked'),
  [
    (OUTPUT, (3, 2, 4, 8), (1, 2, 3), 1),
    (replace(OUTPUT, group=4), (3, 2, 1, 4, 8), (3,), 1),
    (replace(OUTPUT, block=4), (3, 2, 2), (1,), 1),
    (TABLE, (12, 8), (0, 1), 0),
    (replace(TABLE, group=2), (12, 4, 2), (2,), 0),
    (replace(TABLE, block=4), (2, 3), (0,), 0),
  ],
)
def test_units_are_parts_of_a_matrix(item, shape, dims, num_stacked):
  assert item.shape == shape and item.dims == dims
  assert item.matrix_unit_dims == tuple(range(num_stacked, len(shape)))
  mask = np.random.default_rng(1).random(shape) < 0.5
  weights = item.expand(jnp.asarray(mask))
  assert weights.shape == item.matrix_shape
  np.testing.assert_array_equal(item.contract(weights), mask)
  # Each weight has the score of its unit alone.
  array = toy.normal(item.matrix_shape, 2)
  inside = item.magnitude(jnp.where(weights, array, 0))
  np.testing.assert_allclose(
    inside, np.where(mask, item.magnitude(array), 0), rtol=1e-6
  )


def test_blocks_are_where_they_belong():
  array = np.zeros((12, 8), np.float32)
  array[4:8, :4] = 2
  array[5] *= -1
  table = replace(TABLE, block=4).magnitude(jnp.asarray(array))
  # [blocks of inputs, blocks of outputs]: of a table rows are outputs.
  assert table.tolist() == [[0, 64, 0], [0, 0, 0]]


def test_groups_lie_along_the_inputs():
  item = units.Units('x/kernel', (8, 3), group=4)
  array = np.arange(24.0, dtype=np.float32).reshape(8, 3)
  np.testing.assert_array_equal(
    item.scores(jnp.asarray(array))[1, :, 2], array[4:, 2]
  )


@pytest.mark.parametrize('sparsity', [0.0, 0.5, 0.9, 0.98])
def test_erk_gives_small_matrices_more(sparsity):
  items = [
    units.Units('a/kernel', (784, 300)),
    units.Units('b/kernel', (300, 100)),
    units.Units('c/kernel', (100, 10)),
    CONVOLUTION,
  ]
  options = config_lib.Sparsity(sparsity=sparsity, distribution='erk')
  shares = units.densities(options, items)
  sizes = [np.prod(item.matrix_shape) for item in items]
  assert np.dot(shares, sizes) == pytest.approx((1 - sparsity) * sum(sizes))
  assert all(0 < share <= 1 for share in shares)
  raw = [1084 / 235200, 400 / 30000, 110 / 1000, 25 / 384]
  factors = [share / r for share, r in zip(shares, raw, strict=True)]
  free = [f for f, s in zip(factors, shares, strict=True) if s < 1]
  np.testing.assert_allclose(free, free[:1] * len(free), rtol=1e-9)
  uniform = config_lib.Sparsity(sparsity=sparsity)
  assert units.densities(uniform, items) == [1 - sparsity] * 4


def test_what_is_frozen_is_not_pruned():
  config = tiny.config(
    sparsity={'method': 'static', 'pattern': '@matrix$', 'sparsity': 0.75},
    optimizer={'frozen': 'feedforward'},
  )
  chosen = units.chosen(config, toy.network())
  layers = chosen['decoder']['layers']
  assert layers['feedforward']['up']['kernel'] == optax.MaskedNode()
  assert chosen['token']['embedding'] == optax.MaskedNode()
  item = layers['attention']['output']['kernel']
  assert (item.kept, item.competing) == (9, 36)
  # At least one is left.
  config = tiny.replace(config, 'sparsity.sparsity', 0.9999)
  assert all(
    item.kept == 1
    for item in jax.tree.leaves(units.chosen(config, toy.network()))
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'pattern': 'feedforward'},
      "sparsity.pattern='feedforward' matches decoder/layers/feedforward/up/"
      'bias, which is no matrix; add @(matrix|expert)$',
    ),
    (
      {'pattern': 'up/kernel', 'n_m': '2:4'},
      "sparsity.n_m='2:4': 4 does not divide the 6 inputs of decoder/layers/"
      'feedforward/up/kernel; choose another or leave it out by '
      'sparsity.pattern',
    ),
    (
      {'pattern': 'down/kernel', 'block': 4},
      'sparsity.block=4 does not divide the 6 outputs of decoder/layers/'
      'feedforward/down/kernel; choose another or leave it out by '
      'sparsity.pattern',
    ),
    (
      {'pattern': 'attention/output'},
      "sparsity.pattern='attention/output' matches only what optimizer.frozen="
      "'attention' keeps as it is; choose others",
    ),
  ],
)
def test_what_cannot_be_pruned_is_refused(fields, message):
  config = tiny.config(
    sparsity={'method': 'static'} | fields, optimizer={'frozen': 'attention'}
  )
  with pytest.raises(config_lib.ConfigError) as error:
    units.chosen(config, toy.network())
  assert str(error.value) == message
