"""The parameters that preferences are relative to never change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled, reference
from gemini_jax.train import state as state_lib

PAIRS = config_lib.Data(
  inputs_field='prompt', targets_field='chosen', rejected_field='rejected'
)


def config(**optimizer):
  return config_lib.Config(
    data=PAIRS, optimizer=config_lib.Optimizer(**optimizer)
  )


def tree(seed):
  return {
    'token': {'embedding': toy.normal((4, 3), seed)},
    'head': {'kernel': toy.normal((3, 5), seed + 1).astype(jnp.bfloat16)},
  }


def test_they_are_those_of_the_start():
  """A frozen parameter is its own reference, and nothing of it is kept."""
  item = reference.from_config(config(frozen='^token/'))
  start = tree(0)
  own = jax.jit(item.init)(start)
  assert isinstance(own['token']['embedding'], optax.MaskedNode)
  moved = {'token': start['token'], 'head': tree(7)['head']}
  state = state_lib.TrainState(jnp.int32(5), moved, (), {item.name: own})
  state = item.after_update(state, None)
  found = item.reference_params(state)
  jax.tree.map(np.testing.assert_array_equal, found, start)
  assert found['head']['kernel'].dtype == jnp.bfloat16
  assert item.evaluation_params(state, moved) is moved


def test_they_are_no_alias_of_the_parameters():
  """The step donates both."""
  params = jax.tree.map(jnp.asarray, tree(0))
  own = jax.jit(reference.from_config(config()).init)(params)
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(params), strict=True):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_only_preferences_have_them():
  assert reference.from_config(config_lib.Config()) is None
  state = state_lib.TrainState(jnp.int32(0), tree(0), (), {})
  plain = enabled.extensions(config_lib.Config())
  assert plain.reference_params(state) is None
  both = enabled.extensions(config(ema_decay=0.5))
  assert set(both.init(tree(0))) == {'ema', 'reference'}
