"""The average of the trained parameters, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import ema
from gemini_jax.train import state as state_lib


def tree(seed, dtype='float32'):
  return {
    'token': {'embedding': jnp.asarray(toy.normal((4, 3), seed), dtype)},
    'head': {'kernel': jnp.asarray(toy.normal((3, 5), seed + 1), dtype)},
  }


def extension(**optimizer):
  return ema.from_config(
    config_lib.Config(optimizer=config_lib.Optimizer(**optimizer))
  )


def state_of(item, params, step=0):
  extra = {item.name: item.init(params)}
  return state_lib.TrainState(jnp.int32(step), params, (), extra)


def test_the_average_follows_its_formula():
  """Decay = min(ema_decay, (1 + t) / (10 + t)), of update t from 0."""
  item = extension(ema_decay=0.15)
  state = state_of(item, tree(0))
  expected = jax.tree.map(np.float64, state.params)
  update = jax.jit(lambda state: item.after_update(state, None))
  for index, decay in enumerate((0.1, 0.15, 0.15)):
    state = update(state.replace(step=index + 1, params=tree(3 * index + 5)))
    expected = jax.tree.map(
      lambda average, param, decay=decay: (
        decay * average + (1 - decay) * np.float64(param)
      ),
      expected,
      state.params,
    )
    evaluated = item.evaluation_params(state, state.params)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-6),
      evaluated,
      expected,
    )


def test_frozen_parameters_have_no_average():
  item = extension(ema_decay=0.5, frozen='^token/')
  params = tree(0, 'bfloat16')
  state = state_of(item, params)
  own = state.extra['ema']
  assert isinstance(own['token']['embedding'], optax.MaskedNode)
  assert own['head']['kernel'].dtype == jnp.float32
  state = item.after_update(state.replace(step=1, params=tree(9)), None)
  evaluated = item.evaluation_params(state, params)
  assert evaluated['token'] is params['token'] or np.array_equal(
    evaluated['token']['embedding'], params['token']['embedding']
  )
  assert not np.array_equal(
    evaluated['head']['kernel'], state.params['head']['kernel']
  )


def test_the_average_is_no_alias_of_the_parameters():
  """The step donates both."""
  item = extension(ema_decay=0.5)
  params = jax.tree.map(jnp.asarray, tree(0))
  own = jax.jit(item.init)(params)
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(params), strict=True):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
