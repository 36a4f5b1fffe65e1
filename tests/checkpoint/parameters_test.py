"""Parameters to evaluate come out of the states of every version."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gemini_jax.checkpoint import checkpointer, parameters

MESH = jax.make_mesh((8,), ('data',))
# One of them is frozen: rules of training do not see it.
FROZEN = 'encoder'


def draw(seed):
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    # Its path ends as that of another parameter does.
    'decoder': {'decoder': {'kernel': jax.random.normal(keys[0], (16, 3))}},
    'encoder': {'kernel': jax.random.normal(keys[1], (8, 2), jnp.bfloat16)},
  }


def abstract(params):
  def one(leaf):
    where = NamedSharding(MESH, PartitionSpec('data'))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(one, params)


def trained(params, masked=None):
  return {
    name: masked if name == FROZEN else value for name, value in params.items()
  }


def schedule_free(params):
  """A state after updates, and the parameters that belong to it."""
  rule = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.8)
  params = trained(params, optax.MaskedNode())
  state = rule.init(params)
  for _ in range(3):
    updates, state = rule.update(params, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def restore(folder, state, params):
  checkpoints = checkpointer.Checkpointer(folder)
  checkpoints.save(3, state, {})
  checkpoints.close()
  wanted = abstract(params)
  select = lambda saved: parameters.select(saved, wanted).arrays
  restored = checkpoints.restore_arrays(select)
  saved = restored.manifest['arrays']
  read = set(restored.state)
  return parameters.select(saved, wanted).params(restored.state), read


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('beginning', ['ema', 'extra'])
def test_an_average_takes_the_place_of_the_parameters(beginning, tmp_path):
  """Of what was frozen there may be none, and there its type is kept."""
  params, average = draw(0), jax.tree.map(lambda x: 2.0 * x, draw(1))
  kept = trained(average) if beginning == 'extra' else average
  kept = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), kept)
  state = {'step': 3, 'params': params, 'opt_state': [draw(2)], 'ema': None}
  state |= {'ema': kept} if beginning == 'ema' else {'extra': {'ema': kept}}
  state['step'] = jnp.int32(3)
  restored, read = restore(tmp_path / 'run', state, params)
  expected = kept
  if beginning == 'extra':
    expected = kept | {FROZEN: params[FROZEN]}
  assert_equal(restored, expected)
  assert len(read) == 2
  for leaf in jax.tree.leaves(restored):
    assert leaf.sharding.spec == PartitionSpec('data')


def test_without_an_average_they_are_read_alone(tmp_path):
  params = draw(0)
  state = {'params': params, 'opt_state': ({'mu': draw(1), 'z': draw(2)},)}
  restored, read = restore(tmp_path / 'run', state, params)
  assert_equal(restored, params)
  assert read == {
    'params/decoder/decoder/kernel',
    'params/encoder/kernel',
  }


def test_schedule_free_parameters_are_computed_as_optax_does(tmp_path):
  params = draw(0)
  moved, rule = schedule_free(params)
  expected = optax.contrib.schedule_free_eval_params(rule, moved)
  moved = moved | {FROZEN: params[FROZEN]}
  state = {'params': moved, 'opt_state': ({'count': jnp.int32(1)}, rule)}
  restored, read = restore(tmp_path / 'run', state, params)
  assert_equal(restored[FROZEN], params[FROZEN])
  expected = expected['decoder']['decoder']['kernel']
  actual = restored['decoder']['decoder']['kernel']
  assert (
    np.abs(np.asarray(moved['decoder']['decoder']['kernel']) - expected).max()
    > 0.01
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  assert sorted(name.split('/')[-1] for name in read) == [
    *('b1', 'kernel', 'kernel', 'kernel'),
  ]


def test_what_does_not_fit_is_named():
  wanted = abstract(draw(0))
  saved = {
    'params/decoder/decoder/kernel': 'bfloat16[16, 3]',
    'params/encoder/kernel': 'float32[8, 2]',
    'params/head/kernel': 'float32[8, 2]',
  }
  selection = parameters.select(saved, wanted)
  assert parameters.first_misfit(saved, selection) == ''
  assert parameters.unused(saved, selection) == ['head/kernel']
  saved['params/encoder/kernel'] = 'float32[8, 3]'
  assert parameters.first_misfit(saved, selection) == (
    'encoder/kernel is float32[8, 3] there and bfloat16[8, 2] here'
  )
  del saved['params/encoder/kernel']
  assert parameters.first_misfit(saved, selection) == (
    'encoder/kernel is absent there and bfloat16[8, 2] here'
  )
  with pytest.raises(KeyError):
    selection.params({})
