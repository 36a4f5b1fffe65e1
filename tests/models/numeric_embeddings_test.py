"""Soft tokens of numbers and of series, by their definition.

X media, F fields, L steps of C channels, N patches of P steps, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import numeric_embeddings


def config(**fields):
  return toy.model(**fields).config


def test_a_number_is_a_multiple_of_its_fields_vector():
  embedder = numeric_embeddings.NumberEmbedder(config(num_numbers=3))
  values_X1 = np.array([[0.5], [-2.0], [np.nan], [1.0]], np.float32)
  fields_X1 = np.array([[1], [3], [2], [0]], np.int32)
  params = toy.random_params(embedder, values_X1, fields_X1)

  def embed(params):
    return embedder.apply({'params': params}, values_X1, fields_X1)

  tokens_X1D, counts_X = embed(params)
  slope, offset, missing = (
    params[name]['embedding'] for name in ('slope', 'offset', 'missing')
  )
  expected = [
    0.5 * slope[0] + offset[0],
    -2 * slope[2] + offset[2],
    offset[1] + missing[1],
    0 * slope[0],
  ]
  np.testing.assert_allclose(tokens_X1D[:, 0], np.stack(expected), atol=1e-6)
  assert counts_X.tolist() == [1, 1, 1, 0]
  grads = jax.grad(lambda params: jnp.sum(embed(params)[0] ** 2))(params)
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
  # What is missing is the mean until training has seen it.
  fresh = embedder.init(jax.random.key(0), values_X1, fields_X1)['params']
  assert not np.any(jax.tree.leaves(fresh['missing']))
  assert np.any(jax.tree.leaves(fresh['offset']))
  # Of a field that is missing, the slope learns nothing.
  assert not np.any(grads['slope']['embedding'][1])
  assert not np.any(grads['missing']['embedding'][np.array([0, 2])])


def test_a_series_is_read_by_patches():
  part = config_lib.Series(length=8, channels=2, patch=3)
  embedder = numeric_embeddings.SeriesEmbedder(config(series=part))
  rng = np.random.default_rng(0)
  sizes_X1 = np.array([[8], [4], [0]], np.int32)
  values_XLC = rng.normal(size=(3, 9, 2)).astype(np.float32)
  params = toy.random_params(embedder, values_XLC, sizes_X1)
  apply = lambda values: embedder.apply({'params': params}, values, sizes_X1)
  tokens_XND, counts_X = apply(values_XLC)
  assert counts_X.tolist() == [3, 2, 0]
  kernel, bias = params['patch']['kernel'], params['patch']['bias']
  for number, (size,) in enumerate(sizes_X1):
    steps = values_XLC[number].copy()
    steps[size:] = 0
    for patch in range(3):
      expected = steps[3 * patch : 3 * patch + 3].ravel() @ kernel + bias
      if patch >= counts_X[number]:
        expected = 0 * expected
      np.testing.assert_allclose(tokens_XND[number, patch], expected, atol=1e-5)
  # What lies beyond is never seen.
  values_XLC[0, 8:], values_XLC[1, 4:] = 99, np.nan
  np.testing.assert_array_equal(apply(values_XLC)[0], tokens_XND)
