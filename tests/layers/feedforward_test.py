"""The feed-forward layer against its formula, activation by activation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import feedforward

GRID = np.linspace(-4, 4, 41)
FORMULAS = {
  'gelu': lambda x: (
    0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  ),
  'gelu_exact': lambda x: (
    0.5
    * x
    * (
      1
      + np.array([math.erf(y / math.sqrt(2)) for y in x.flat]).reshape(x.shape)
    )
  ),
  'silu': lambda x: x / (1 + np.exp(-x)),
  'relu': lambda x: np.maximum(x, 0),
  'relu2': lambda x: np.maximum(x, 0) ** 2,
}


def test_every_activation_has_a_formula_here():
  assert set(FORMULAS) == set(feedforward.ACTIVATIONS)


@pytest.mark.parametrize('name', FORMULAS)
def test_activations(name):
  np.testing.assert_allclose(
    feedforward.ACTIVATIONS[name](jnp.asarray(GRID, jnp.float32)),
    FORMULAS[name](GRID),
    rtol=1e-5,
    atol=1e-6,
  )


def test_the_two_gelus_differ():
  assert abs(FORMULAS['gelu'](GRID) - FORMULAS['gelu_exact'](GRID)).max() > 1e-4


@pytest.mark.parametrize('use_bias', [False, True])
@pytest.mark.parametrize('gated', [False, True])
def test_equals_its_formula(gated, use_bias):
  module = feedforward.FeedForward(
    7, activation='silu', gated=gated, use_bias=use_bias
  )
  x = toy.normal((2, 3, 5))
  params = toy.random_params(module, x, scale=0.7)
  assert set(params) == {'up', 'down'} | ({'gate'} if gated else set())
  assert params['down']['kernel'].shape == (7, 5)
  out = jax.jit(module.apply)({'params': params}, x)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)

  def project(name, x):
    return x @ params[name]['kernel'] + params[name].get('bias', 0)

  x = np.asarray(x, float)
  if gated:
    hidden = FORMULAS['silu'](project('gate', x)) * project('up', x)
  else:
    hidden = FORMULAS['silu'](project('up', x))
  np.testing.assert_allclose(out, project('down', hidden), rtol=1e-4, atol=1e-5)
