"""Four bits a number: the nearest levels, and products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import low_rank
import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import matmul
from gemini_jax.weights import nf4

F32 = jnp.float32


def reference(array, block):
  """Of each block the nearest of 16 levels times its largest magnitude."""
  blocks = np.asarray(array, np.float64).reshape(-1, block)
  size = np.abs(blocks).max(-1, keepdims=True)
  levels = np.float64(nf4.LEVELS)
  nearest = np.abs(blocks[..., None] / size[..., None] - levels).argmin(-1)
  return (levels[nearest] * size).reshape(array.shape)


@pytest.mark.parametrize(
  ('shape', 'block'), [((3, 128), 64), ((2, 3, 4, 32), 32), ((5, 6), 2)]
)
def test_numbers_are_the_nearest_levels_of_their_block(shape, block):
  array = toy.normal(shape, 3)
  leaf = nf4.quantised(array)
  assert leaf.shape == shape and leaf.dtype == F32
  assert leaf.codes.nbytes == array.size // 2
  np.testing.assert_allclose(
    leaf.to_array(F32), reference(array, block), rtol=1e-6
  )
  # No further than half of the widest gap between levels.
  error = np.abs(leaf.to_array(F32) - array).reshape(-1, block)
  size = np.abs(np.asarray(array)).reshape(-1, block).max(-1, keepdims=True)
  assert (error <= 0.16 * size).all() and error.max() > 0
  again = nf4.quantised(leaf.to_array(F32))
  np.testing.assert_array_equal(again.codes, leaf.codes)


def test_zeros_stay_zeros():
  leaf = nf4.quantised(jnp.zeros((2, 64)).at[1, 3].set(2.0))
  array = leaf.to_array(F32)
  assert array[1, 3] == 2 and jnp.count_nonzero(array) == 1


def test_an_odd_dim_is_refused():
  with pytest.raises(config_lib.ConfigError, match='last dim is even'):
    nf4.quantised(jnp.ones((2, 3)))


def test_products_are_those_of_the_array():
  array = toy.normal((3, 4, 8), 1)
  leaf = nf4.quantised(array)
  plain = leaf.to_array(F32)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  x = toy.normal((5, 3, 4), 2)
  same(
    matmul.dot(x, leaf, 2, dtype=F32),
    np.tensordot(np.asarray(x), np.asarray(plain), 2),
  )
  table, ids = nf4.quantised(array[0]), jnp.asarray([[0, 3], [1, 1]])
  same(matmul.rows(table, ids, F32), table.to_array(F32)[ids])
  y = toy.normal((5, 8), 3)
  same(matmul.dot_transposed(y, table, dtype=F32), y @ table.to_array(F32).T)
  sizes, rows = jnp.asarray([2, 0, 1]), toy.normal((3, 4), 4)
  same(
    matmul.grouped_dot(rows, leaf, sizes),
    matmul.grouped_dot(rows, plain, sizes),
  )


def test_the_array_is_not_kept_for_the_backward_pass():
  """Of a scan over layers; the gradient goes to the update beside it."""
  stack = low_rank.beside(
    nf4.quantised(toy.normal((6, 32, 32), 1)), num_stacked=1
  )
  x = toy.normal((4, 32), 2)

  def loss(a, leaf):
    body = lambda x, leaf: (
      jnp.tanh(matmul.dot(x, leaf, 1, dtype=F32)),
      None,
    )
    return jnp.sum(jax.lax.scan(body, x, leaf.replace(a=a))[0])

  program = str(jax.make_jaxpr(jax.grad(loss))(stack.a, stack))
  assert 'f32[32,32]' in program and 'f32[6,32,32]' not in program
  merged = stack.replace(base=stack.base.to_array(F32))
  toy.assert_near(
    jax.grad(loss)(stack.a, stack), jax.grad(loss)(stack.a, merged), 1e-4
  )
