"""What tuning adds to parameters: where it goes, and what is trained of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled
from gemini_jax.layers import matmul
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.objectives import losses
from gemini_jax.parallel import sharding
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib
from gemini_jax.weights import lora, tuning

METHODS = ('head', 'adapter', 'lora', 'adalora')
BY_METHOD = pytest.mark.parametrize('method', METHODS)
# Dims that two devices can share.
SPLIT = {'num_kv_heads': 4, 'vocab_size': 24}
EXPERTS = {'num_experts': 2, 'experts_per_token': 2, 'expert_dim': 6}


def configure(method='lora', model=None, **tune):
  return tiny.config(
    model=model or {},
    data={'batch_size': 4},
    optimizer={'schedule': 'constant', 'learning_rate': 0.01},
    train={'num_steps': 10, 'init_from': '/base'},
    tune={'method': method, 'rank': 2, 'width': 3} | tune,
  )


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def start(config, mesh=None):
  """(model, base, a state that begins, a compiled step)."""
  model = gemini.Gemini(config.model)
  base = toy.model_params(model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10, config.tune)
  params = tuning.wrapped(config.tune, base, jax.random.key(1))
  state = state_lib.TrainState(
    jnp.int32(0),
    params,
    rule.init(params),
    enabled.extensions(config).init(params),
  )
  step = jax.jit(
    functools.partial(
      step_lib.train_step, config=config, model=model, optimizer=rule
    )
  )
  return model, base, state, step


@functools.cache
def trained(method):
  """(config, model, base, state before, state after two steps)."""
  config = configure(method)
  model, base, before, step = start(config)
  state = before
  for index in range(2):
    state, metrics = step(state, toy.batch(rows=4, seed=index), index)
    assert bool(metrics['finite'])
  assert step._cache_size() == 1
  return config, model, base, before, state


@functools.cache
def logits_of(model):
  return jax.jit(lambda params: model.apply({'params': params}, toy.batch())[0])


@pytest.mark.parametrize(
  ('method', 'fields'),
  [('adapter', {}), ('lora', EXPERTS), ('adalora', {'scan_layers': False})],
)
def test_it_begins_as_the_base_exactly(method, fields):
  config = configure(method, fields)
  model = gemini.Gemini(config.model)
  base = toy.model_params(model)
  params = tuning.wrapped(config.tune, base)
  assert len(jax.tree.leaves(params)) > len(jax.tree.leaves(base))
  expected = logits_of(model)(base)
  np.testing.assert_array_equal(logits_of(model)(params), expected)


@BY_METHOD
def test_what_is_added_is_trained_and_the_base_is_not(method):
  config, _, base, before, after = trained(method)
  old, new = by_path(before.params), by_path(after.params)
  own = by_path(parameter_groups.own(config.tune, after.params))
  assert 0 < len(own) < len(new)
  for path, leaf in new.items():
    assert np.array_equal(leaf, old[path]) == (path not in own), path
  if method != 'head':
    bases = by_path(base)
    kept = {path.removesuffix('/base') for path in new if path not in own}
    assert kept == set(bases)
    for path in kept:
      leaf = new[path] if path in new else new[f'{path}/base']
      np.testing.assert_array_equal(leaf, bases[path])
  # Nor has it a gradient or moments: as many numbers as Adam needs.
  size = gemini.param_count(own)
  assert gemini.param_count(after.opt_state) - 2 * size < 10


@pytest.mark.parametrize('method', ['lora', 'adalora'])
def test_merged_is_as_unmerged(method):
  _, model, base, _, after = trained(method)
  params = jax.tree.map(
    lambda leaf: leaf + 0.1 if leaf.ndim > 1 else leaf, after.params
  )
  merged = tuning.merged(params)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  expected = logits_of(model)(params)
  toy.assert_near(logits_of(model)(merged), expected, 1e-5)
  is_weight = tuning.is_weight
  wrong = tuning.merged(
    jax.tree.map(
      lambda leaf: (
        leaf.replace(scale=1.1 * leaf.scale) if is_weight(leaf) else leaf
      ),
      params,
      is_leaf=is_weight,
    )
  )
  error = np.abs(logits_of(model)(wrong) - expected).max()
  assert error > 1e-3 * np.abs(expected).max()


def test_an_adapter_is_no_matrix():
  params = trained('adapter')[-1].params
  with pytest.raises(config_lib.ConfigError, match='cannot be merged'):
    tuning.merged(params)


@pytest.mark.parametrize(
  ('fields', 'scale'),
  [
    ({'rank': 4}, 4.0),
    ({'rank': 4, 'alpha': 2.0}, 0.5),
    ({'rank': 4, 'rank_stabilized': True}, 8.0),
    ({'rank': 4, 'method': 'adalora'}, 16 / 6),
  ],
)
def test_the_scale_follows_from_the_rank(fields, scale):
  tune = config_lib.Tune(**{'method': 'lora'} | fields)
  assert tune.scale == pytest.approx(scale)
  base = {'layers': {'attention': {'query': {'kernel': jnp.ones((1, 3, 5))}}}}
  (leaf,) = jax.tree.leaves(
    tuning.wrapped(tune, {'decoder': base}), is_leaf=tuning.is_weight
  )
  assert leaf.scale == tune.scale


def targets(config):
  base = toy.model_params(gemini.Gemini(config.model))
  params = jax.eval_shape(lambda: tuning.wrapped(config.tune, base))
  flat = jax.tree_util.tree_leaves_with_path(params, is_leaf=tuning.is_weight)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/').removeprefix(
      'decoder/layers/'
    ): leaf
    for path, leaf in flat
    if tuning.is_weight(leaf)
  }


@pytest.mark.parametrize(
  ('method', 'model', 'pattern', 'names'),
  [
    (
      *('lora', {}, ''),
      'attention/key attention/output attention/query attention/value '
      'feedforward/down feedforward/gate feedforward/up',
    ),
    (
      *('lora', EXPERTS, 'feedforward'),
      'feedforward/expert_down feedforward/expert_gate feedforward/expert_up '
      'feedforward/router',
    ),
    (
      *('adalora', EXPERTS, ''),
      'attention/key attention/output attention/query attention/value '
      'feedforward/expert_down feedforward/expert_gate feedforward/expert_up',
    ),
    ('adapter', {}, '', 'attention/output feedforward/down'),
    ('lora', {}, '^token/', 'token'),
  ],
)
def test_matrices_are_chosen_by_path(method, model, pattern, names):
  found = targets(configure(method, model, pattern=pattern))
  assert sorted(path.rpartition('/')[0] for path in found) == names.split()


def test_factors_have_the_dims_of_inputs_and_outputs():
  """Two heads' dims are contracted in an output projection."""
  found = targets(configure('adalora', EXPERTS, rank=2))
  shapes = lambda path: tuple(
    part.shape for part in jax.tree.leaves(found[f'{path}/kernel'])[1:]
  )
  assert shapes('attention/query') == ((2, 16, 3), (2, 3, 4, 4), (2, 3))
  assert shapes('attention/output') == ((2, 4, 4, 3), (2, 3, 16), (2, 3))
  assert shapes('feedforward/expert_down') == (
    *((2, 2, 6, 3), (2, 2, 3, 16)),
    (2, 2, 3),
  )


@pytest.mark.parametrize(
  ('method', 'pattern', 'message'),
  [
    ('lora', 'atention', "tune.pattern='atention' matches the path of no"),
    ('lora', 'norm', "tune.pattern='norm' matches the path of no parameter"),
    ('adapter', 'query', r'matches decoder/layers/\S+, whose output has sev'),
  ],
)
def test_a_pattern_that_is_of_no_use(method, pattern, message):
  config = configure(method, pattern=pattern)
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    targets(config)
  assert '\n' not in str(error.value)


def test_dropout_leaves_out_inputs_of_updates_in_training_alone():
  """Others in each layer and by each key; the rest is as much larger."""
  kernel = jnp.zeros((2, 64, 64))
  eye = jnp.broadcast_to(jnp.eye(64), kernel.shape)
  leaf = lora.LowRank(kernel, eye, eye, scale=3.0, dropout=0.25)
  put = tuning.with_dropout({'kernel': leaf}, jax.random.key(0))['kernel']
  layers = [jax.tree.map(lambda x, i=i: x[i], put) for i in range(2)]
  first, second = (
    matmul.dot(jnp.ones((50, 64)), layer, 1, dtype=jnp.float32)
    for layer in layers
  )
  np.testing.assert_allclose(np.unique(first), [0.0, 4.0])
  assert 0.2 < np.mean(first == 0) < 0.3
  assert np.mean((first == 0) & (second == 0)) < 0.1

  config = configure(dropout=0.25)
  model, _, state, _ = start(config)
  params = jax.tree.map(lambda x: x + 0.1 if x.ndim > 2 else x, state.params)
  plain = jax.tree.map(
    lambda x: x.replace(dropout=0.0) if tuning.is_weight(x) else x,
    params,
    is_leaf=tuning.is_weight,
  )
  run = jax.jit(
    lambda params, key, train: (
      losses.model_sums(model, params, toy.batch(), key=key, config=train).loss
    ),
    static_argnums=2,
  )
  keys = jax.random.split(jax.random.key(0))
  without = run(plain, keys[0], config.train)
  assert run(params, keys[0], None) == run(plain, keys[0], None)
  a, b = (float(run(params, key, config.train)) for key in keys)
  assert len({a, b, float(without)}) == 3


@pytest.mark.parametrize('method', ['adapter', 'lora', 'adalora'])
def test_parts_are_split_as_the_base(method):
  """Where its dims are theirs; ranks and hidden widths are whole."""
  config = configure(method, SPLIT)
  model = gemini.Gemini(config.model)
  mesh = toy.make_mesh(fsdp=2, tensor=2, pipeline=2)
  params = tuning.abstract_params(config, model, mesh)
  specs = {
    path.partition('layers/')[2]: tuple(leaf.sharding.spec)
    for path, leaf in by_path(params).items()
  }
  output = 'attention/output/kernel/'
  assert specs[f'{output}base'] == ('pipeline', 'tensor', None, 'fsdp')
  if method == 'adapter':
    assert specs[f'{output}down'] == ('pipeline', 'fsdp', None)
    assert specs[f'{output}up'] == ('pipeline', None, 'fsdp')
    return
  assert specs[f'{output}a'] == ('pipeline', 'tensor', None, None)
  assert specs[f'{output}b'] == ('pipeline', None, 'fsdp')
  assert specs['attention/query/kernel/b'] == (
    *('pipeline', None, 'tensor'),
    None,
  )
  if method == 'adalora':
    assert specs[f'{output}gains'] == ('pipeline', None)


@pytest.mark.parametrize(
  'sizes', [{'data': 2, 'fsdp': 2, 'tensor': 2}, {'pipeline': 2}], ids=str
)
def test_a_mesh_does_not_change_a_step(sizes):
  # In stages each part of a batch drops what the first of them does.
  dropout = 0.0 if 'pipeline' in sizes else 0.2
  config = configure('adalora', SPLIT, dropout=dropout)
  model, _, state, step = start(config)
  # Not as the base, whose updates would have no gradient by the factors.
  state = state.replace(
    params=jax.tree.map(
      lambda leaf: (
        leaf.replace(gains=leaf.gains + 0.5) if tuning.is_weight(leaf) else leaf
      ),
      state.params,
      is_leaf=tuning.is_weight,
    )
  )
  batch = toy.batch(rows=4)
  expected, metrics = step(state, batch, 0)
  mesh = toy.make_mesh(**sizes)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10, config.tune)
  abstract = state_lib.abstract_state(config, model, rule, mesh)
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  with sharding.use(mesh):
    split = jax.device_put(batch, sharding.batch_sharding(mesh))
    found, same = step_lib.jitted(config, model, rule, abstract)(
      jax.device_put(state, where), split, 0
    )
  own = functools.partial(parameter_groups.own, config.tune)
  toy.assert_near(own(found.params), own(expected.params), 1e-4)
  assert float(same['loss']) == pytest.approx(float(metrics['loss']), rel=1e-5)
