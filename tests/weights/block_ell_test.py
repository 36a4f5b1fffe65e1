"""A model pruned in blocks computes the same without the zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.compress import layers
from gemini_jax.kernels import native
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.parallel import sharding
from gemini_jax.weights import block_ell, compressed, native_products

F32 = jnp.float32
BLOCK, ALPHA = 8, 0.7


# Dims of the stack, of inputs and of outputs.
@pytest.mark.parametrize(
  'dims',
  [((2,), (32,), (24,)), ((2,), (32,), (4, 6)), ((2, 3), (4, 8), (32,))],
)
def test_it_stands_for_the_array(dims):
  lead, inputs, outputs = dims
  blocks = (*lead, 4, np.prod(outputs) // BLOCK)
  order = np.argsort(np.random.default_rng(0).random(blocks), axis=-2)
  # One block of outputs has fewer blocks.
  kept = order < block_ell.num_kept(ALPHA, 4)
  kept[..., 1] = False
  grown = np.repeat(np.repeat(kept, BLOCK, -2), BLOCK, -1)
  shape = (*lead, *inputs, *outputs)
  array = toy.normal(shape, 1) * grown.reshape(shape)
  weight = block_ell.BlockSparse.from_array(
    array, BLOCK, ALPHA, len(lead), len(inputs)
  )
  assert weight.shape == array.shape and weight.dtype == F32
  assert weight.blocks.nbytes == array.nbytes / 4
  np.testing.assert_array_equal(matmul.to_array(weight, F32), array)
  one = (1,) * len(lead)
  layer = jax.tree.map(lambda leaf: leaf[one], weight)
  x = toy.normal((3, 1, *inputs), 2)
  dot = functools.partial(matmul.dot, num_contracted=len(inputs), dtype=F32)
  toy.assert_near(dot(x, layer), dot(x, array[one]))
  toy.assert_near(
    jax.grad(lambda x: jnp.sum(jnp.sin(dot(x, layer))))(x),
    jax.grad(lambda x: jnp.sum(jnp.sin(dot(x, array[one]))))(x),
  )


def pruned(**fields):
  """(config, model, parameters in blocks, the same in arrays)."""
  options = config_lib.Compress(method='magnitude', alpha=ALPHA, block=16)
  model = toy.model(width=32, mlp_dim=48, **fields)
  plain = toy.model_params(model)
  params = layers.compress(options, model, plain, ())
  return options, model, params, compressed.to_plain(params, plain)


@pytest.mark.parametrize('scan', [True, False])
def test_a_model_computes_the_same(scan):
  _, model, sparse, params = pruned(scan_layers=scan)
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  assert size(sparse) < 0.5 * size(params)
  batch = toy.batch()
  run = jax.jit(lambda params: gemini.apply(model, params, batch)[0])
  np.testing.assert_allclose(run(sparse), run(params), rtol=1e-3, atol=1e-4)
  cache = gemini.init_cache(model.config, toy.B, toy.T)
  decode = jax.jit(
    lambda params: gemini.apply(
      model, params, batch.decoder, cache=cache, method='decode'
    )[0]
  )
  # Where there is a compiler, by the kernel that reads layers in the stack.
  found = decode(native_products.with_kernel(sparse, 'auto'))
  np.testing.assert_allclose(found, run(sparse), rtol=1e-3, atol=1e-3)


def test_a_mesh_does_not_change_it():
  """Outputs and gradients, of parameters opened as from a checkpoint."""
  options, model, sparse, _ = pruned(vocab_size=24, max_length=256)
  batch, mesh = toy.batch(rows=8), toy.make_mesh(pipeline=2, fsdp=2, tensor=2)
  config = config_lib.Config(model=model.config, compress=options)
  places = jax.tree.map(
    lambda leaf: leaf.sharding,
    compressed.abstract_stored(config, model, mesh),
  )

  def loss(params, batch):
    return jnp.sum(jnp.sin(gemini.apply(model, params, batch)[0]))

  run = jax.jit(jax.value_and_grad(loss, allow_int=True))
  floats = lambda tree: [
    leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == F32
  ]
  expected = run(sparse, batch)
  with sharding.use(mesh):
    found = run(jax.device_put(sparse, places), batch)
  toy.assert_near(floats(found), floats(expected), 1e-4)


@pytest.mark.parametrize(
  ('block', 'num_rows', 'dtype'),
  [(16, 1, F32), (48, 3, jnp.bfloat16), (96, 7, F32)],
)
def test_the_kernel_reads_a_layer_in_the_stack(block, num_rows, dtype):
  try:
    native.load()
  except native.NoKernelError as error:
    pytest.skip(f'no kernel in C++: {error}')
  shape = (3, 2, 2 * block, 3, block)
  array = toy.normal(shape, 1).astype(dtype)
  # Other blocks are left in each layer.
  order = np.argsort(np.random.default_rng(0).random((3, 4, 3)), axis=1)
  grown = np.repeat(np.repeat(order < 2, block, 1), block, 2)
  array *= grown.reshape(shape)
  weight = block_ell.BlockSparse.from_array(array, block, 0.5, 1, 2)
  stack = weight.replace(kernel='native')
  assert stack.stays_in_stack and not weight.stays_in_stack
  dot = jax.jit(functools.partial(matmul.dot, num_contracted=2, dtype=F32))
  x = toy.normal((num_rows, 1, 2, 2 * block), 2)
  total = jax.jit(jax.grad(lambda x, leaf: jnp.sum(jnp.sin(dot(x, leaf)))))
  layer = stack.of_layer(jnp.int32(2))
  assert 'custom_call' in dot.lower(x, layer).as_text()
  assert layer.shape == array.shape[1:]
  np.testing.assert_array_equal(matmul.to_array(layer, dtype), array[2])
  toy.assert_near(dot(x, layer), dot(x, array[2]))
  toy.assert_near(total(x, layer), total(x, array[2]))
  # What has many rows is multiplied as ever.
  many = toy.normal((40, 1, 2, 2 * block), 3)
  assert 'custom_call' not in dot.lower(many, layer).as_text()
  toy.assert_near(dot(many, layer), dot(many, array[2]))
