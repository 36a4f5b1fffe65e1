"""Products of int8 matrices, and a model that has them."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.weights import int8

F32 = jnp.float32


def relative(found, expected):
  found, expected = (np.asarray(a, np.float64) for a in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# Dims of layers, dims in, dims out.
SHAPES = [((), (48,), (40,)), ((), (6, 8), (40,)), ((3,), (48,), (5, 8))]


@pytest.mark.parametrize(('lead', 'inputs', 'outputs'), SHAPES)
def test_the_array_is_near(lead, inputs, outputs):
  array = toy.normal((*lead, *inputs, *outputs), 1)
  weight = int8.Int8.from_array(array, len(lead), len(inputs))
  assert weight.shape == array.shape and weight.dtype == F32
  found = matmul.to_array(weight, F32)
  dims = tuple(range(len(lead), len(lead) + len(inputs)))
  step = jnp.max(jnp.abs(array), axis=dims, keepdims=True) / 127
  # Each output has the step that its largest weight asks for.
  assert np.all(np.abs(found - array) <= 0.501 * step)
  assert relative(found, array) < 0.01
  # A slice of all arrays is the weight of a layer.
  if lead:
    layer = jax.tree.map(lambda leaf: leaf[1], weight)
    assert layer.shape == array.shape[1:]
    np.testing.assert_array_equal(matmul.to_array(layer, F32), found[1])


@pytest.mark.parametrize('num_rows', [1, 2, 3, 8])
@pytest.mark.parametrize(('lead', 'inputs', 'outputs'), SHAPES[:2])
def test_products_are_near(lead, inputs, outputs, num_rows):
  array = toy.normal((*inputs, *outputs), 1)
  x = toy.normal((num_rows, 1, *inputs), 2)
  weight = int8.Int8.from_array(array, 0, len(inputs))
  dot = functools.partial(matmul.dot, dtype=F32)
  found = jax.jit(dot, static_argnums=2)(x, weight, len(inputs))
  exact = dot(x, matmul.to_array(weight, F32), len(inputs))
  assert found.shape == exact.shape and found.dtype == F32
  # Inputs are rounded to 15 bits, weights to 8.
  assert 0 < relative(found, exact) < 1e-4
  assert relative(found, dot(x, array, len(inputs))) < 0.01
  # A row does not depend on the others.
  alone = dot(x[-1:], weight, len(inputs))
  np.testing.assert_allclose(found[-1:], alone, rtol=1e-6)


def test_a_table():
  table = toy.normal((50, 16), 3) * jnp.arange(1, 51)[:, None]
  weight = int8.Int8.from_array(table, 0, 1, is_table=True)
  assert weight.shape == table.shape
  ids = jnp.array([[3, 49], [0, 3]])
  found = matmul.rows(weight, ids, F32)
  # A row has its own scale.
  assert relative(found[1, 0], table[0]) < 0.01
  assert found.shape == (2, 2, 16)
  x = toy.normal((2, 1, 16), 4)
  scores = matmul.dot_transposed(x, weight, dtype=F32, out_dtype=F32)
  expected = matmul.dot_transposed(x, table, dtype=F32, out_dtype=F32)
  assert scores.shape == (2, 1, 50)
  assert relative(scores, expected) < 0.01


def test_uses_that_are_not_fast_are_right():
  array = toy.normal((4, 6, 8), 1)
  weight = int8.Int8.from_array(array, 0, 2)
  plain = matmul.to_array(weight, F32)
  x = toy.normal((3, 4), 2)
  toy.assert_near(
    matmul.dot(x, weight, 1, dtype=F32), matmul.dot(x, plain, 1, dtype=F32)
  )
  matrix = int8.Int8.from_array(array[0], 0, 1)
  plain = matmul.to_array(matrix, F32)
  ids = jnp.array([1, 5])
  toy.assert_near(matmul.rows(matrix, ids, F32), plain[ids])
  y = toy.normal((3, 8), 2)
  toy.assert_near(
    matmul.dot_transposed(y, matrix, dtype=F32),
    matmul.dot_transposed(y, plain, dtype=F32),
  )
  table = int8.Int8.from_array(array[0], 0, 1, is_table=True)
  z = toy.normal((3, 6), 2)
  toy.assert_near(
    matmul.dot(z, table, 1, dtype=F32),
    matmul.dot(z, matmul.to_array(table, F32), 1, dtype=F32),
  )


def test_zeros_and_what_is_not_finite():
  array = toy.normal((8, 4), 1).at[:, 2].set(0)
  weight = int8.Int8.from_array(array, 0, 1)
  assert np.all(np.asarray(matmul.to_array(weight, F32))[:, 2] == 0)
  x = toy.normal((3, 8), 2).at[0].set(0).at[1, 3].set(jnp.nan)
  found = np.asarray(matmul.dot(x, weight, 1, dtype=F32))
  assert np.all(found[0] == 0) and np.all(np.isnan(found[1]))
  assert np.all(np.isfinite(found[2]))


def test_the_gradient_by_the_input_is_that_of_the_matrix():
  weight = int8.Int8.from_array(toy.normal((8, 4), 1), 0, 1)
  plain = matmul.to_array(weight, F32)
  x, cotangent = toy.normal((3, 8), 2), toy.normal((3, 4), 3)
  loss = lambda x, leaf: jnp.sum(cotangent * matmul.dot(x, leaf, 1, dtype=F32))
  toy.assert_near(jax.grad(loss)(x, weight), jax.grad(loss)(x, plain))


def test_the_computation_keeps_its_type():
  weight = int8.Int8.from_array(toy.normal((8, 4), 1), 0, 1)
  x = toy.normal((3, 8), 2).astype(jnp.bfloat16)
  dot = functools.partial(matmul.dot, x, weight, 1, dtype=jnp.bfloat16)
  assert dot().dtype == jnp.bfloat16
  assert dot(out_dtype=F32).dtype == F32


MODELS = {
  'tied': {'width': 64, 'mlp_dim': 96, 'qk_norm': True},
  'untied, unrolled': {
    'width': 64,
    'mlp_dim': 96,
    'tie_embeddings': False,
    'scan_layers': False,
    'gated': False,
  },
}


@pytest.mark.parametrize('name', MODELS)
def test_a_model_of_integers_is_near(name, caplog):
  model = toy.model(**MODELS[name])
  params = toy.model_params(model, scale=0.1)
  with caplog.at_level(logging.INFO):
    quantised = int8.quantize(params)
  assert 'two of int8' in caplog.text and 'tensors' in caplog.text
  sizes = [
    sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    for tree in (params, quantised)
  ]
  assert sizes[1] < 0.3 * sizes[0]
  batch = toy.batch()
  run = jax.jit(
    lambda params: jax.nn.log_softmax(gemini.apply(model, params, batch)[0])
  )
  drift = np.abs(run(quantised) - run(params))
  assert 0 < drift.mean() < 0.02
  # Decoding with a cache is that of the whole sequence.
  cache = gemini.init_cache(model.config, toy.B, toy.T)
  found = toy.apply(
    model, quantised, batch.decoder, cache=cache, method='decode'
  )[0]
  whole = toy.apply(model, quantised, batch)[0]
  np.testing.assert_allclose(found, whole, atol=1e-3)


def test_a_pattern_chooses():
  model = toy.model()
  params = toy.model_params(model)
  found = int8.quantize(params, 'feedforward/.*@matrix$')
  layers = found['decoder']['layers']
  assert isinstance(layers['feedforward']['up']['kernel'], int8.Int8)
  kernel = layers['attention']['query']['kernel']
  assert kernel is params['decoder']['layers']['attention']['query']['kernel']
  with pytest.raises(config_lib.ConfigError, match='int8='):
    int8.quantize(params, 'feedfoward')
