"""Whole models are compressed by what their products read."""

import dataclasses
import functools
import logging
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.commands import compress as compress_command
from gemini_jax.compress import calibration, layers, recovery
from gemini_jax.config import compress as compress_config
from gemini_jax.layers import hooks, matmul
from gemini_jax.weights import compressed, packed

MODELS = {
  'decoder': {'attention_pattern': ('local', 'global'), 'num_layers': 3},
  'encoder_decoder': {'architecture': 'encoder_decoder'},
}


@functools.cache
def case(name):
  """(model, parameters, batches of which the last rows are padding)."""
  model = toy.model(**MODELS[name])
  segments = [1] * 9 + [0] * 3
  encoder = lambda seed: (
    toy.sequence(length=7, seed=seed, segments=[1] * 5 + [0] * 2)
    if model.config.cross
    else None
  )
  batches = [
    toy.batch(rows=8, seed=seed, segments=segments, encoder=None)
    for seed in range(3)
  ]
  if model.config.cross:
    batches = [
      toy.batch(seed=seed, segments=segments, encoder=encoder(seed))
      for seed in range(3)
    ]
  return model, toy.model_params(model), batches


def test_inputs_are_those_of_the_model():
  """Of every product, as hooks capture them, without padding."""
  model, params, (batch, *_) = case('decoder')
  names = {
    'attention/key': 'attention/input',
    'attention/output': 'attention/attended',
    'feedforward/gate': 'feedforward/input',
    'feedforward/down': 'feedforward/hidden',
  }
  _, captured = hooks.apply(
    model,
    params,
    batch,
    True,
    method='forward',
    capture={
      f'decoder/{key.replace("/", "_")}': hooks.tensor(name)
      for key, name in names.items()
    },
  )
  (path,) = calibration.stacks(model, params, batch)
  block, kinds = calibration.block_of(
    calibration.stacks(model, params, batch)[path]
  )
  assert kinds == ('local', 'global', 'local')
  inputs = calibration.inputs_of(model, path, params, batch)
  for index, kind in enumerate(kinds):
    layer = jax.tree.map(
      lambda leaf, i=index: leaf[i], params['decoder']['layers']
    )
    paths = [f'{key}/kernel' for key in names]
    sizes = {'feedforward/down/kernel': 24}
    sums = calibration.zeros(
      {path: sizes.get(path, 16) for path in paths}, full=True
    )
    args = (block, kind, tuple(paths), layer, jnp.asarray(index), inputs)
    sums = calibration.add_hessians(*args, sums)
    for key in names:
      x = captured[f'decoder/{key.replace("/", "_")}'][index][:, :9]
      x_RD = x.reshape(8 * 9, -1)
      toy.assert_near(sums[f'{key}/kernel'], x_RD.T @ x_RD, 1e-4)
    inputs = calibration.advance(block, kind, layer, jnp.asarray(index), inputs)


def test_padding_is_that_of_what_a_product_reads():
  """Also where inputs are as long as targets, or z as wide as they are long."""
  real_BT = jnp.array([[True, True, False, False]])
  segments_BS = jnp.array([[1, 0, 0, 0]])
  context: Any = types.SimpleNamespace(
    real_BT=real_BT,
    cross_mask=types.SimpleNamespace(key_segments_BS=segments_BS),
  )
  for path, x, expected in (
    ('attention/query/kernel', toy.normal((1, 4, 8)), real_BT),
    ('cross_attention/query/kernel', toy.normal((1, 4, 8)), real_BT),
    ('cross_attention/key/kernel', toy.normal((1, 4, 8)), segments_BS > 0),
    ('cross_attention/value/kernel', toy.normal((1, 4, 8)), segments_BS > 0),
    ('attention/memory_key/kernel', toy.normal((1, 4)), None),
    ('attention/memory_value/kernel', toy.normal((1, 4, 8)), None),
  ):
    found = calibration._is_real(context, path, x)
    assert (found is None) == (expected is None), path
    assert expected is None or np.array_equal(found, expected), path


@pytest.mark.parametrize('name', MODELS)
def test_a_model_is_pruned_behind_what_is_pruned(name, caplog):
  model, params, batches = case(name)
  with caplog.at_level(logging.INFO):
    losses = {}
    for method in ('magnitude', 'sparsegpt'):
      options = config_lib.Compress(method=method, n_m='2:4')
      found = layers.compress(options, model, params, batches)
      losses[method] = moved(model, params, found, batches)
      kernels = matrices(found)
      assert len(kernels) == (7 if name == 'decoder' else 18)
      for kernel in kernels.values():
        assert np.mean(np.asarray(kernel) == 0) == 0.5
  assert losses['sparsegpt'] < 0.9 * losses['magnitude']
  assert 'decoder: layer 2 of' in caplog.text


def moved(model, params, other, batches):
  """How far logits are from those of the parameters."""
  apply = jax.jit(
    lambda params, batch: model.apply({'params': params}, batch)[0]
  )
  total = 0.0
  for batch in batches:
    apart = apply(params, batch) - apply(other, batch)
    total += float(np.square(apart[:, :9]).mean())
  return total


def matrices(params):
  flat = jax.tree_util.tree_flatten_with_path(
    params, is_leaf=compressed.is_weight
  )[0]
  return {
    compressed.name_of(path): matmul.to_array(leaf, jnp.float32)
    for path, leaf in flat
    if compressed.name_of(path).endswith('kernel')
  }


def reopened(options, found, params):
  """The parameters as a checkpoint gives them back, and their bytes in it."""
  small = compressed.stored(options, found)
  plain = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    ),
    params,
  )
  return compressed.opened(small, plain), size(small)


def size(tree):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_codes_are_stored_and_opened():
  model, params, batches = case('decoder')
  options = config_lib.Compress(
    method='sparsegpt', alpha=0.5, weights='int4', group=8
  )
  found = layers.compress(options, model, params, batches)
  back, num_bytes = reopened(options, found, params)
  assert num_bytes < size(found) < 0.45 * size(params)
  jax.tree.map(np.testing.assert_array_equal, back, found)


@pytest.mark.parametrize('weights', ['int8', 'float8', 'int4'])
def test_zeros_of_some_matrices_cost_the_others_nothing(weights):
  """Whatever pruned them, and more in one matrix than in another."""
  model, params, _ = case('decoder')
  options = config_lib.Compress(
    method='magnitude', alpha=0.75, pattern='feedforward'
  )
  pruned = layers.compress(options, model, params, ())
  up = pruned['decoder']['layers']['feedforward']['up']
  up['kernel'] = up['kernel'].at[0].multiply(0)
  options = config_lib.Compress(method='round', weights=weights)
  found = layers.compress(options, model, pruned, ())
  counted = dataclasses.replace(
    options, num_kept=compressed.num_kept(options, found)
  )
  back, num_bytes = reopened(counted, found, params)
  jax.tree.map(np.testing.assert_array_equal, back, found)
  assert num_bytes < 0.95 * size(found)


@pytest.mark.parametrize(
  'fields', [{'weights': 'int4', 'group': 8}, {'block': 4}]
)
def test_recovery_learns_and_leaves_zeros(fields):
  model, params, batches = case('decoder')
  options = config_lib.Compress(
    method='magnitude',
    alpha=0.6,
    **fields,
    recovery=compress_config.Recovery(
      steps=40, learning_rate=3e-3, distillation=1.0
    ),
  )
  start = layers.compress(options, model, params, ())
  repeated = (batches[i % 3] for i in range(40))
  found = recovery.recover(options, model, start, params, repeated)
  # Without training it is what it was.
  same = recovery.recover(options, model, start, params, ())
  jax.tree.map(np.testing.assert_array_equal, same, start)
  for name, kernel in matrices(start).items():
    assert (
      np.asarray(matrices(found)[name])[np.asarray(kernel) == 0] == 0
    ).all()
  before, after = (
    moved(model, params, tree, batches) for tree in (start, found)
  )
  assert after < 0.8 * before


def test_experts_have_no_inputs_here():
  model = toy.model(num_experts=2, expert_dim=8)
  params = toy.model_params(model)
  options = config_lib.Compress(method='wanda', alpha=0.5, pattern='@expert')
  with pytest.raises(config_lib.ConfigError, match='has no inputs of'):
    layers.compress(options, model, params, [toy.batch()])
  with pytest.raises(config_lib.ConfigError, match='gives no batch'):
    layers.compress(options, model, params, [])
  options = config_lib.Compress(
    method='magnitude', alpha=0.5, pattern='@expert'
  )
  found = layers.compress(options, model, params, ())
  expert = found['decoder']['layers']['feedforward']['expert_up']['kernel']
  assert np.mean(np.asarray(expert) == 0) == 0.5


def test_a_model_of_an_earlier_version_is_packed_as_it_was():
  """By the share that was asked for, also where that saves nothing."""
  model, params, _ = case('decoder')
  options = config_lib.Compress(method='magnitude', alpha=0.26, weights='int4')
  found = layers.compress(options, model, params, ())
  query = lambda tree: tree['decoder']['layers']['attention']['query']['kernel']
  assert isinstance(query(compressed.stored(options, found)), packed.Packed)
  counted = dataclasses.replace(
    options, num_kept=compressed.num_kept(options, found)
  )
  back, _ = reopened(counted, found, params)
  jax.tree.map(np.testing.assert_array_equal, back, found)


def test_what_is_not_calibrated_takes_experts_and_leaves_routers():
  model = toy.model(num_experts=2, expert_dim=8)
  params = toy.model_params(model)
  options = config_lib.Compress(
    method='round', weights='int8', pattern=compress_command.UNCALIBRATED
  )
  found = layers.compress(options, model, params, ())
  feedforward = found['decoder']['layers']['feedforward']
  assert compressed.is_weight(feedforward['expert_up']['kernel'])
  assert not compressed.is_weight(feedforward['router']['kernel'])
  assert moved(model, params, found, [toy.batch()]) < 1e-2
