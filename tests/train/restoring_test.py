"""Extensions that come and go, and checkpoints of earlier versions."""

import functools
import logging
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import restoring
from gemini_jax.train import state as state_lib


@functools.cache
def parts(optimizer=()):
  """(config, abstract state, a state of random numbers)."""
  config = tiny.config(optimizer=dict(optimizer))
  mesh = mesh_lib.make_mesh(config_lib.Parallel(data=2, fsdp=4))
  abstract = state_lib.abstract_state(
    config,
    gemini.Gemini(config.model),
    optimizer_lib.make_optimizer(config.optimizer, 10),
    mesh,
  )
  return config, abstract, filled(abstract)


def filled(abstract):
  """A state of random numbers, placed; of small counts where it counts."""

  def one(leaf, value):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      value = np.full(leaf.shape, 3)
    return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)

  return jax.tree.map(one, abstract, toy.random_tree(abstract))


def names(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def assert_equal(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def saved(folder, state):
  checkpoints = checkpointer.Checkpointer(folder)
  checkpoints.save(7, state, {})
  checkpoints.wait()
  return checkpoints


EMA = ('ema_decay', 0.9)
PLATEAU = ('plateau_patience', 2)


def test_what_is_turned_on_begins_and_what_is_turned_off_ends(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  _, _, state = parts((EMA,))
  checkpoints = saved(tmp_path, state)
  path = checkpoints.path(7)
  config, abstract, _ = parts((PLATEAU,))
  restored = restoring.restore(checkpoints, config, abstract)
  assert restored.step == 7
  assert_equal(
    (restored.state.step, restored.state.params, restored.state.opt_state),
    (state.step, state.params, state.opt_state),
  )
  assert set(restored.state.extra) == {'plateau'}
  assert float(restored.state.extra['plateau'].scale) == 1
  assert [m for m in caplog.messages if m.startswith('extension')] == [
    f'extension plateau begins at step 7: {path} has none of it',
    f'extension ema is off now: what {path} has of it is not used',
  ]


def test_a_new_average_begins_at_the_parameters(tmp_path):
  """A copy of them, where they lie."""
  _, _, state = parts()
  config, abstract, _ = parts((EMA,))
  restored = restoring.restore(saved(tmp_path, state), config, abstract).state
  assert_equal(restored.extra['ema'], state.params)
  jax.tree.map(
    lambda a, b: a.sharding == b.sharding or pytest.fail(f'{a} {b}'),
    restored,
    abstract,
  )
  assert jax.tree.structure(restored) == jax.tree.structure(abstract)


def test_extensions_that_stay_are_restored(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  config, abstract, state = parts((EMA, PLATEAU))
  restored = restoring.restore(saved(tmp_path, state), config, abstract)
  assert_equal(restored.state, state)
  assert not [m for m in caplog.messages if m.startswith('extension')]


@flax.struct.dataclass
class Earlier:
  """The state of an earlier version."""

  step: Any
  params: Any
  opt_state: Any
  ema: Any


@pytest.mark.parametrize('clip_norm', [0.0, 1.0])
@pytest.mark.parametrize('frozen', ['', '^token/'])
def test_checkpoints_of_earlier_versions(clip_norm, frozen, tmp_path, caplog):
  """The average was a field, the plateau the last rule of the chain."""
  caplog.set_level(logging.INFO)
  fields = (EMA, PLATEAU, ('clip_norm', clip_norm), ('frozen', frozen))
  config, abstract, state = parts(fields)
  last = state.extra['plateau']
  opt_state = state.opt_state
  if frozen:
    inner = dict(opt_state.inner_states)
    inner[False] = optax.MaskedState((*inner[False].inner_state, last))
    opt_state = opt_state._replace(inner_states=inner)
  else:
    opt_state = (*opt_state, last)
  # It had one of frozen parameters too.
  average = jax.tree.map(
    lambda own, leaf: leaf if isinstance(own, optax.MaskedNode) else own,
    state.extra['ema'],
    state.params,
    is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
  )
  checkpoints = saved(
    tmp_path, Earlier(state.step, state.params, opt_state, average)
  )
  arrays = checkpoints.manifest(7)['arrays']
  assert 'ema/token/embedding' in arrays
  assert any(name.endswith(f'/{1 + bool(clip_norm)}/scale') for name in arrays)
  restored = restoring.restore(checkpoints, config, abstract)
  assert_equal(restored.state, state)
  assert not [m for m in caplog.messages if m.startswith('extension')]
  # And without them.
  config, abstract, _ = parts((('clip_norm', clip_norm), ('frozen', frozen)))
  restored = restoring.restore(checkpoints, config, abstract)
  assert_equal(restored.state, state.replace(extra={}))
  assert sum(m.startswith('extension') for m in caplog.messages) == 2


def test_what_belongs_to_no_extension_must_be_there_and_be_wanted(tmp_path):
  _, _, state = parts()
  config, abstract, _ = parts((('name', 'lion'),))
  with pytest.raises(checkpointer.MismatchError, match='opt_state/1/0/nu/'):
    restoring.restore(saved(tmp_path / 'a', state), config, abstract)
  _, _, lion = parts((('name', 'lion'),))
  config, abstract, _ = parts()
  with pytest.raises(checkpointer.MismatchError, match=r'/nu/.* is absent'):
    restoring.restore(saved(tmp_path / 'b', lion), config, abstract)
