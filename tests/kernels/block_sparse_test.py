"""Block-sparse products equal those of the matrix, in value and gradient."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.kernels import block_sparse
from gemini_jax.plan import topology

D, F, K, b = 5, 3, 2, 16


def case(num_rows, seed=0):
  """(x, blocks, index, the matrix); one block of inputs is never used."""
  index = np.array([[3, 0], [1, 3], [0, 4]], np.int32)
  blocks = toy.normal((F, K, b, b), seed)
  array = np.zeros((D, b, F, b), np.float32)
  for o in range(F):
    for k in range(K):
      array[index[o, k], :, o] += np.asarray(blocks[o, k])
  x = toy.normal((num_rows, D, b), seed + 1)
  return x, blocks, jnp.asarray(index), jnp.asarray(array)


@pytest.mark.parametrize('num_rows', [1, 300])
@pytest.mark.parametrize('name', block_sparse.IMPLEMENTATIONS)
def test_it_is_the_product_with_the_matrix(name, num_rows):
  x, blocks, index, array = case(num_rows)
  cotangent = toy.normal((num_rows, F, b), 5)
  product = lambda x, blocks: block_sparse.product(
    x, blocks, index, name, name != 'xla'
  )
  plain = lambda x, array: jnp.einsum('RDb,DbFc->RFc', x, array)
  run = lambda f: jax.jit(
    lambda *args: (f(*args), jax.vjp(f, *args)[1](cotangent))
  )
  found, (dx, dblocks) = run(product)(x, blocks)
  expected, (dx_dense, darray) = run(plain)(x, array)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
  near(found, expected)
  near(dx, dx_dense)
  assert np.all(np.asarray(dx)[:, 2] == 0)
  places = np.asarray(darray).transpose(2, 0, 1, 3)
  near(dblocks, places[np.arange(F)[:, None], np.asarray(index)])


def lowered(name, dtype, block):
  shapes = [((256, 8, block), dtype), ((4, 2, block, block), dtype)]
  args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  index = jax.ShapeDtypeStruct((4, 2), jnp.int32)

  def loss(x, blocks, index):
    return jnp.sum(block_sparse.product(x, blocks, index, name) ** 2)

  return jax.jit(jax.value_and_grad(loss, (0, 1))), (*args, index)


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs libtpu'
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_tpu_kernels_compile_without_a_tpu(dtype):
  # JAX lowers the kernels of GPUs only where there is one.
  devices = topology.devices('v5e:2x2')
  device = jax.sharding.SingleDeviceSharding(devices[0])
  run, args = lowered('pallas_tpu', jnp.dtype(dtype), 64)
  args = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device) for a in args]
  program = run.lower(*args)
  assert program.as_text().count('tpu_custom_call') >= 3
  program.compile()


def test_each_platform_has_its_best():
  assert block_sparse.best('cpu') == block_sparse.best('gpu') == 'xla'
  assert block_sparse.best('tpu') == 'pallas_tpu'
