"""A model pruned in blocks, and the same model without the zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.weights import block_ell

F32 = jnp.float32
BLOCK = 8


def pruned(name, leaf, share=0.75):
  """With blocks of zeros; each block of outputs keeps at least one."""
  kept = block_ell.nonzero_blocks(name, leaf, BLOCK)
  rng = np.random.default_rng(len(name))
  order = np.argsort(rng.random(kept.shape), axis=-2)
  kept = order < max(1, round((1 - share) * kept.shape[-2]))
  grown = np.repeat(np.repeat(kept, BLOCK, -2), BLOCK, -1)
  return leaf * grown.reshape(leaf.shape)


SHAPES = {
  'decoder/layers/feedforward/up/kernel': (2, 32, 24),
  'decoder/layers/attention/query/kernel': (2, 32, 4, 6),
  'decoder/layers/attention/output/kernel': (2, 4, 8, 32),
}


@pytest.mark.parametrize('name', SHAPES)
def test_it_stands_for_the_array(name):
  array = pruned(name, toy.normal(SHAPES[name], 1))
  tree = {}
  *parents, last = name.split('/')
  node = tree
  for part in parents:
    node = node.setdefault(part, {})
  node[last] = array
  (weight,) = jax.tree.leaves(
    block_ell.convert(tree, BLOCK),
    is_leaf=lambda leaf: isinstance(leaf, matmul.Weight),
  )
  assert isinstance(weight, block_ell.BlockSparse)
  assert weight.shape == array.shape and weight.dtype == F32
  assert weight.blocks.nbytes <= array.nbytes / 2
  np.testing.assert_array_equal(matmul.to_array(weight, F32), array)
  layer, num_in = jax.tree.map(lambda leaf: leaf[1], weight), len(weight.inputs)
  x = toy.normal((3, 1, *weight.inputs), 2)
  dot = functools.partial(matmul.dot, num_contracted=num_in, dtype=F32)
  toy.assert_near(dot(x, layer), dot(x, array[1]))
  toy.assert_near(
    jax.grad(lambda x: jnp.sum(jnp.sin(dot(x, layer))))(x),
    jax.grad(lambda x: jnp.sum(jnp.sin(dot(x, array[1]))))(x),
  )


@pytest.mark.parametrize('scan', [True, False])
def test_a_model_computes_the_same(scan):
  model = toy.model(width=32, mlp_dim=48, scan_layers=scan)
  params = toy.model_params(model)
  matches = lambda path: '/layers/' in path and path.endswith('kernel')

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return pruned(name, leaf) if matches(name) else leaf

  params = jax.tree_util.tree_map_with_path(one, params)
  sparse = block_ell.convert(params, BLOCK)
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  assert size(sparse) < 0.6 * size(params)
  batch = toy.batch()
  run = jax.jit(lambda params: gemini.apply(model, params, batch)[0])
  np.testing.assert_allclose(run(sparse), run(params), rtol=1e-3, atol=1e-4)
  cache = gemini.init_cache(model.config, toy.B, toy.T)
  found = gemini.apply(
    model, sparse, batch.decoder, cache=cache, method='decode'
  )[0]
  np.testing.assert_allclose(found, run(sparse), rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_refused_or_left():
  path = {'decoder': {'layers': {'up': {'kernel': toy.normal((2, 32, 24))}}}}
  with pytest.raises(config_lib.ConfigError, match='does not divide the 32'):
    block_ell.convert(path, 7)
  # Zeros of single weights are no blocks: nothing is gained, or claimed.
  dense = jax.tree.map(lambda leaf: jnp.where(leaf > 0, leaf, 0), path)
  found = block_ell.convert(dense, BLOCK)
  assert jax.tree.leaves(found)[0] is jax.tree.leaves(dense)[0]
