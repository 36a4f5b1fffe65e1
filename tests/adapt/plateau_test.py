"""Updates shrink once the validation loss no longer falls."""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled, plateau


def extension(**optimizer):
  return plateau.from_config(
    config_lib.Config(optimizer=config_lib.Optimizer(**optimizer))
  )


class State(types.SimpleNamespace):
  """A training state of extensions alone."""

  def replace(self, **fields):
    return State(**{**vars(self), **fields})


def test_a_plateau_shrinks_updates():
  item = extension(plateau_patience=2, plateau_factor=0.5)
  updates = {'kernel': toy.normal((3, 4)), 'frozen': optax.MaskedNode()}
  state = State(extra={'plateau': item.init(None), 'other': 1})
  full = float(optax.tree.norm(updates))

  def observe(values):
    nonlocal state
    for value in values:
      state = item.after_validation(state, jnp.float32(value))
    metrics = item.metrics(state, {'learning_rate': 1.0, 'loss': 2.0})
    scale = float(metrics.pop('learning_rate'))
    assert metrics == {'loss': 2.0}
    shrunk = jax.jit(lambda u: item.updates(state, u))(updates)
    assert float(optax.tree.norm(shrunk)) == pytest.approx(full * scale)
    return scale

  assert observe((5.0, 4.0, 3.0, 2.0)) == 1.0
  assert observe((2.5,)) == 1.0
  assert observe((2.0,)) == 0.5
  # One that improves starts the count again.
  assert observe((2.6, 1.0, 1.5)) == 0.5
  assert observe((1.5,)) == 0.25
  assert state.extra['other'] == 1


def test_it_is_on_where_the_config_says_so():
  assert extension() is None
  config = config_lib.Config(
    optimizer=config_lib.Optimizer(plateau_patience=1, ema_decay=0.5)
  )
  names = [item.name for item in enabled.extensions(config).items]
  assert names == ['plateau', 'ema']
