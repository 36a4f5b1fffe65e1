"""Products of few rows by kernels in C++, beside those of XLA."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.kernels import native
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.weights import grids, int8, native_products

F32 = jnp.float32


@pytest.fixture(name='kernel', scope='module')
def fixture_kernel():
  try:
    native.load()
  except native.NoKernelError as error:
    pytest.skip(f'no kernel in C++: {error}')


@pytest.mark.parametrize('num_rows', [1, 3, 4])
def test_the_kernel_gives_what_xla_gives(kernel, num_rows):
  array = toy.normal((3, 100, 130), 1)
  weight = int8.Int8.from_array(array, 1, 1)
  x = toy.normal((num_rows, 100), 2).at[0].set(0)
  stack = weight.replace(kernel='native')
  assert stack.stays_in_stack and not weight.stays_in_stack
  dot = jax.jit(functools.partial(matmul.dot, num_contracted=1, dtype=F32))
  for layer in range(3):
    found = dot(x, stack.of_layer(jnp.int32(layer)))
    sliced = jax.tree.map(lambda leaf, i=layer: leaf[i], weight)
    np.testing.assert_allclose(found, dot(x, sliced), rtol=1e-6, atol=1e-6)
    assert np.all(found[0] == 0) and stack.of_layer(layer).shape == (100, 130)
    toy.assert_near(
      matmul.to_array(stack.of_layer(jnp.int32(layer)), F32),
      matmul.to_array(sliced, F32),
    )
  # What is not finite stays in its row; the gradient is that of XLA's product.
  if num_rows > 2:
    bad = dot(x.at[1, 3].set(jnp.nan).at[2, 7].set(jnp.inf), stack.of_layer(1))
    assert not np.isfinite(bad[1:3]).any() and np.isfinite(bad[0]).all()
  total = lambda x, leaf: jnp.sum(jnp.sin(dot(x, leaf)))
  toy.assert_near(
    jax.grad(total)(x, stack.of_layer(jnp.int32(2))),
    jax.grad(total)(x, jax.tree.map(lambda leaf: leaf[2], weight)),
  )


@pytest.mark.parametrize(
  'size, group, num_rows', [(100, 32, 1), (131, 32, 3), (64, 128, 5)]
)
def test_the_kernel_of_four_bits(kernel, size, group, num_rows):
  matrix_LFD = toy.normal((3, 70, size), 1)
  grid = grids.Grid('int4', group)
  weight = grid.leaf(matrix_LFD, grid.scale(matrix_LFD), (size,), (70,), False)
  x = toy.normal((num_rows, size), 2) + 1
  stack = weight.replace(kernel='native')
  dot = jax.jit(functools.partial(matmul.dot, num_contracted=1, dtype=F32))
  program = dot.lower(x, stack.of_layer(jnp.int32(0))).as_text()
  assert 'custom_call' in program
  for layer in range(3):
    own = stack.of_layer(jnp.int32(layer))
    array = matmul.to_array(jax.tree.map(lambda a, i=layer: a[i], weight), F32)
    assert own.shape == array.shape == (size, 70)
    toy.assert_near(dot(x, own), x @ array, 5e-5)
    toy.assert_near(matmul.to_array(own, F32), array)
  total = lambda x, leaf: jnp.sum(jnp.sin(matmul.dot(x, leaf, 1, dtype=F32)))
  toy.assert_near(jax.grad(total)(x, own), jax.grad(total)(x, array), 1e-3)
  bad = dot(x.at[0, 5].set(jnp.inf), own)
  assert not np.isfinite(bad[0]).any() and np.isfinite(bad[1:]).all()


@pytest.mark.parametrize('scan', [True, False])
def test_a_model_reads_its_layers_in_the_stack(kernel, scan):
  model = toy.model(
    width=64, mlp_dim=96, num_layers=3, scan_layers=scan, tie_embeddings=scan
  )
  params = int8.quantize(toy.model_params(model, scale=0.1))
  batch = toy.batch()
  cache = gemini.init_cache(model.config, toy.B, toy.T)
  first = jax.tree.map(lambda leaf: leaf[:, :1], batch.decoder)

  @jax.jit
  def step(params):
    return gemini.apply(model, params, first, cache=cache, method='decode')[0]

  native_params = native_products.with_kernel(params, 'native')
  assert 'custom_call' in step.lower(native_params).as_text()
  assert 'custom_call' not in step.lower(params).as_text()
  # Inputs that differ by a rounding may be a step apart, 3e-5 of the largest.
  np.testing.assert_allclose(step(native_params), step(params), atol=2e-4)


def test_without_a_compiler_xla_is_used(monkeypatch, caplog, tmp_path):
  params = {'kernel': int8.Int8.from_array(toy.normal((8, 4)), 0, 1)}
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  load = native._load.__wrapped__
  for compiler in ('/no/such/compiler', 'false'):
    monkeypatch.setenv('CXX', compiler)
    monkeypatch.setattr(native, '_load', load)
    with caplog.at_level(logging.INFO):
      found = native_products.with_kernel(params, 'auto')
    assert found['kernel'].kernel == 'xla' and compiler in caplog.text
    with pytest.raises(config_lib.ConfigError, match='use auto or xla'):
      native_products.with_kernel(params, 'native')
  assert native_products.with_kernel(params, 'xla')['kernel'].kernel == 'xla'
  plain = {'kernel': toy.normal((8, 4))}
  assert native_products.with_kernel(plain, 'native') is plain


@pytest.mark.parametrize(
  ('dtype', 'num_rows'),
  [('float32', 1), ('float32', 3), ('float32', 9), ('bfloat16', 2)],
)
def test_the_kernel_of_floats(kernel, dtype, num_rows):
  """More inputs than one part has, and outputs that fill no register."""
  array = toy.normal((3, 6, 33, 37), 1).astype(dtype)
  table = toy.normal((70, 198), 2).astype(dtype)
  stack = native_products.Dense(array, 1, 2, kernel='native')
  x = toy.normal((num_rows, 198), 3).astype(dtype)
  dot = jax.jit(
    functools.partial(matmul.dot, dtype=dtype, out_dtype=F32), static_argnums=2
  )
  exact = lambda a: np.asarray(a, np.float64)
  for layer in range(3):
    own = stack.of_layer(jnp.int32(layer))
    assert own.shape == (6, 33, 37) and stack.stays_in_stack
    found = dot(x.reshape(-1, 6, 33), own, 2)
    toy.assert_near(
      found, exact(x) @ exact(array[layer]).reshape(198, 37), 1e-5
    )
    toy.assert_near(matmul.to_array(own, F32), array[layer].astype(F32))
  own = native_products.Dense(table, 0, 1, is_table=True, kernel='native')
  transposed = jax.jit(
    functools.partial(matmul.dot_transposed, dtype=dtype, out_dtype=F32)
  )
  toy.assert_near(transposed(x, own), exact(x) @ exact(table).T, 1e-5)
  assert 'custom_call' in transposed.lower(x, own).as_text()
  ids = jnp.array([[3, 69]])
  assert np.array_equal(matmul.rows(own, ids, dtype), table[ids])
  total = lambda x, leaf: jnp.sum(
    jnp.sin(matmul.dot_transposed(x, leaf, dtype=dtype))
  )
  toy.assert_near(jax.grad(total)(x, own), jax.grad(total)(x, table), 2e-2)


def test_floats_of_another_type_are_products_of_xla(kernel):
  own = native_products.Dense(toy.normal((70, 20)), 0, 1, kernel='native')
  dot = jax.jit(
    lambda x, dtype: matmul.dot(x, own, 1, dtype=dtype), static_argnums=1
  )
  x = toy.normal((2, 70), 1)
  assert 'custom_call' in dot.lower(x, 'float32').as_text()
  assert 'custom_call' not in dot.lower(x, 'bfloat16').as_text()
  many = jnp.zeros((native.MOST_FLOAT_ROWS['float32'] + 1, 70))
  assert 'custom_call' not in dot.lower(many, 'float32').as_text()


@pytest.mark.parametrize('tied', [True, False])
def test_a_plain_model_decodes_by_the_kernel(kernel, tied, monkeypatch):
  model = toy.model(width=64, mlp_dim=96, num_layers=3, tie_embeddings=tied)
  params = toy.model_params(model, scale=0.1)
  batch = toy.batch()
  cache = gemini.init_cache(model.config, toy.B, toy.T)
  first = jax.tree.map(lambda leaf: leaf[:, :1], batch.decoder)

  @jax.jit
  def step(params):
    return gemini.apply(model, params, first, cache=cache, method='decode')[0]

  # Caches hold it.
  assert native_products.with_kernel(params, 'auto') is params
  monkeypatch.setattr(native_products, '_LEAST_BYTES', 1000)
  fast = native_products.with_kernel(params, 'auto')
  layers = fast['decoder']['layers']
  assert isinstance(
    layers['attention']['output']['kernel'], native_products.Dense
  )
  shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
  assert shapes(fast) == shapes(params)
  program = step.lower(fast).as_text()
  # Of a layer: query, key, value and output, gate, up and down; the logits.
  assert program.count('custom_call @gemini_jax_float') == 8
  np.testing.assert_allclose(step(fast), step(params), rtol=1e-4, atol=1e-5)


def test_matrices_on_several_devices_stay_plain():
  mesh = toy.make_mesh(fsdp=2)
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
  array = jax.device_put(toy.normal((4, 6, 5)), place)
  params = {'decoder': {'layers': {'up': {'kernel': array}}}}
  assert native_products.with_kernel(params, 'native') is params
