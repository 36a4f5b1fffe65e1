"""A model without some units is a plain one that computes as if they were 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.config import growth as growth_lib
from gemini_jax.models import gemini
from gemini_jax.weights import shrinking

SMALLER = {'num_heads': 2, 'num_kv_heads': 1, 'mlp_dim': 16, 'num_layers': 2}


def without_worst(params, scores, model):
  """The parameters with zeros where units are that `SMALLER` leaves out."""
  stack, one = params['decoder']['layers'], scores['decoder']
  groups = one.heads_LN['attention'].reshape(3, 2, 2).sum(-1)
  is_kept = groups == groups.max(axis=-1, keepdims=True)
  heads = jnp.asarray(np.repeat(is_kept, 2, axis=1), jnp.float32)
  worst = np.argsort(one.channels_LF, axis=-1)[:, :8]
  channels = np.ones_like(one.channels_LF, np.float32)
  np.put_along_axis(channels, worst, 0, axis=-1)
  layers = np.ones(3, np.float32)
  layers[np.argmin(one.layers_L)] = 0
  output = stack['attention']['output']['kernel']
  down = stack['feedforward']['down']['kernel']
  stack = stack | {
    'attention': stack['attention']
    | {
      'output': {
        'kernel': output * heads[..., None, None] * layers[:, None, None, None]
      }
    },
    'feedforward': stack['feedforward']
    | {'down': {'kernel': down * channels[..., None] * layers[:, None, None]}},
  }
  return params | {'decoder': {'layers': stack}}


def test_units_that_are_cut_count_as_zeros():
  model = toy.model(num_layers=3).config
  params = toy.model_params(gemini.Gemini(model))
  scores = shrinking.magnitudes(params, model)
  after = growth_lib.with_sizes(model, SMALLER)
  shrinking.check(model, after)
  small = shrinking.shrink(params, model, after, scores)
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  assert shapes(small) == shapes(toy.model_params(gemini.Gemini(after)))
  zeros, batch = without_worst(params, scores, model), toy.batch()
  run = lambda model, params: jax.jit(gemini.Gemini(model).apply)(
    {'params': params}, batch
  )[0]
  toy.assert_near(run(after, small), run(model, zeros), rtol=1e-4)
  # What is zero is found without being told.
  found = shrinking.live_sizes(shrinking.magnitudes(zeros, model), model)
  assert {name: found[name] for name in SMALLER} == SMALLER


def test_the_first_order_is_that_of_a_gate():
  model = toy.model().config
  params = toy.model_params(gemini.Gemini(model))
  grads = toy.model_params(gemini.Gemini(model), seed=1)
  products = jax.tree.map(jnp.multiply, params, grads)
  scores = shrinking.first_order(products, model)['decoder']
  layers = products['decoder']['layers']
  head = np.asarray(layers['attention']['output']['kernel'])
  down = np.asarray(layers['feedforward']['down']['kernel'])
  pick = lambda array, expected: np.testing.assert_allclose(
    array, np.abs(expected), rtol=1e-3, atol=1e-5
  )
  pick(scores.heads_LN['attention'], head.sum((2, 3)))
  pick(scores.channels_LF, down.sum(2))
  pick(scores.layers_L, head.sum((1, 2, 3)) + down.sum((1, 2)))


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'mlp_dim': 32}, '--mlp_dim=32 must be at most 24'),
    ({'num_layers': 3}, '--num_layers=3 must be at most 2'),
    ({'num_kv_heads': 1}, '--num_heads=4 are 4 for each of --num_kv_heads=1'),
    ({'num_heads': 3}, 'num_kv_heads=2 must divide model.num_heads=3'),
  ],
)
def test_what_cannot_be_cut_is_told(sizes, message):
  model = toy.model().config
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    shrinking.check(model, growth_lib.with_sizes(model, sizes))
  assert '\n' not in str(error.value)
