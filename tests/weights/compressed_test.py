"""What is stored in codes and without zeros is what it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import matmul
from gemini_jax.weights import compressed, grids, int4, packed

L, D, N, H = 3, 10, 2, 8
GRIDS = {
  'int8': grids.Grid('int8'),
  'inputs': grids.Grid('int8', int8_inputs=True),
  'int4': grids.Grid('int4', 4),
  'float8': grids.Grid('float8'),
}


def weight(name, array, num_lead=1, num_in=1, is_table=False):
  """An array in codes, and what they stand for."""
  dims = compressed.parameter_groups.MatrixDims(
    tuple(range(num_lead)),
    tuple(range(num_lead, num_lead + num_in)),
    tuple(range(num_lead + num_in, array.ndim)),
  )
  if is_table:
    dims = compressed.parameter_groups.MatrixDims((), (1,), (0,))
  target = compressed.Target('', is_table, dims, is_table)
  matrix, grid = target.matrix(array), GRIDS[name]
  sizes = target.sizes(array.shape)
  return grid.leaf(matrix, grid.scale(matrix), *sizes, is_table)


@pytest.mark.parametrize('name', GRIDS)
def test_a_weight_multiplies_as_its_array(name):
  array = toy.normal((L, D, N, H))
  leaf = weight(name, array)
  assert leaf.shape == array.shape
  limit = {'int4': 0.2, 'float8': 0.1}.get(name, 0.02)
  np.testing.assert_allclose(leaf.to_array(jnp.float32), array, atol=limit)
  one = jax.tree.map(lambda leaf: leaf[1], leaf)
  assert one.shape == (D, N, H)
  x = toy.normal((2, 5, D), 1)
  plain = matmul.dot(x, one.to_array(jnp.float32), 1, dtype=jnp.float32)
  found = matmul.dot(x, one, 1, dtype=jnp.float32)
  # Of integers the inputs are rounded too.
  rtol = 2e-2 if name == 'inputs' else 1e-4
  toy.assert_near(found, plain, rtol)
  assert (np.abs(found - plain).max() > 1e-3) == (name == 'inputs')


@pytest.mark.parametrize('name', GRIDS)
def test_a_table_gives_rows_and_scores(name):
  table = toy.normal((12, D))
  leaf = weight(name, table, 0, is_table=True)
  array = leaf.to_array(jnp.float32)
  assert leaf.shape == table.shape
  ids = jnp.asarray([[3, 0], [11, 3]])
  np.testing.assert_allclose(
    matmul.rows(leaf, ids, jnp.float32), array[ids], rtol=1e-6
  )
  x = toy.normal((2, 3, D), 1)
  found = matmul.dot_transposed(x, leaf, dtype=jnp.float32)
  expected = matmul.dot_transposed(x, array, dtype=jnp.float32)
  toy.assert_near(found, expected, 1e-4)


def test_gradients_of_rounded_inputs():
  leaf = jax.tree.map(
    lambda leaf: leaf[0], weight('inputs', toy.normal((L, D, H)))
  )
  x = toy.normal((4, D), 1)
  total = lambda weight, x: jnp.sum(
    jnp.sin(matmul.dot(x, weight, 1, dtype=jnp.float32))
  )
  grads = (jax.grad(total, 1)(w, x) for w in (leaf, leaf.to_array(jnp.float32)))
  toy.assert_near(*grads, 3e-2)


def test_numbers_of_four_bits_lie_two_a_byte():
  numbers = jnp.asarray([[-8, 7, 0, -1, 3]], jnp.int8)
  codes = int4.packed(numbers)
  assert codes.shape == (1, 3) and codes.dtype == jnp.uint8
  np.testing.assert_array_equal(int4.unpacked(codes, 5), numbers)


@pytest.mark.parametrize('name', ['plain', 'bfloat16', *GRIDS])
def test_packed_without_zeros(name):
  """To the last bit, in as few bytes as it says."""
  keep = np.random.default_rng(0).permuted(
    np.tile(np.arange(D * N * H) < 70, (L, 1)), axis=1
  )
  array = toy.normal((L, D, N, H)) * keep.reshape(L, D, N, H)
  leaf = array.astype(jnp.bfloat16) if name == 'bfloat16' else array
  if name in GRIDS:
    leaf = weight(name, array)
  small = packed.pack(leaf, 1, 71)
  assert small.shape == array.shape
  jax.tree.map(np.testing.assert_array_equal, packed.unpack(small), leaf)
  size = {'plain': 4 * 71, 'bfloat16': 2 * 71, 'int4': 36}.get(name, 71)
  assert small.numbers.nbytes + small.mask.nbytes == L * (size + D * N * H // 8)


@functools.cache
def model():
  module = toy.model(tie_embeddings=False, num_experts=2, expert_dim=8)
  return module, toy.model_params(module)


def test_what_is_compressed_by_default():
  _, params = model()
  options = config_lib.Compress(method='round', weights='int8')
  found = compressed.targets(options, params)
  assert {name for name, target in found.items() if target.is_table} == {
    'token/embedding',
    'head/kernel',
  }
  layers = {name.partition('/layers/')[2] for name in found} - {''}
  assert layers == {
    f'attention/{name}/kernel' for name in ('query', 'key', 'value', 'output')
  }


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'pattern': 'nothing'}, 'matches the path of no parameter'),
    ({'n_m': '2:5', 'weights': 'float'}, '5 does not divide the 16 inputs'),
  ],
)
def test_what_cannot_be_is_refused(fields, message):
  fields = {'method': 'magnitude', 'weights': 'int8'} | fields
  options = config_lib.Compress(**fields)
  with pytest.raises(config_lib.ConfigError, match=message):
    compressed.targets(options, model()[1])
