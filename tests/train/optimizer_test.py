"""Every rule trains; decay and freezing do as said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups
from gemini_jax.train import optimizer as optimizer_lib

NAMES = tuple(config_lib.LEARNING_RATES)


def apply(params, tokens_B):
  layer = jax.tree.map(lambda leaf: leaf[0], params['decoder']['layers'])
  x_BD = params['token']['embedding'][tokens_B]
  up_BF = x_BD @ layer['feedforward']['up']['kernel']
  up_BF = jnp.tanh(up_BF + layer['feedforward']['up']['bias'][None])
  x_BD = x_BD + up_BF @ layer['feedforward']['down']['kernel']
  x_BD = x_BD * (1 + layer['attention_norm']['scale'][None])
  mixed_BD = jnp.einsum(
    'BNH,NHD->BD',
    x_BD.reshape(-1, 2, 3),
    layer['attention']['output']['kernel'],
  )
  return x_BD + mixed_BD


TOKENS = np.arange(8)
TARGETS = toy.normal((8, 6), 5)


def loss(params):
  return jnp.mean(jnp.square(apply(params, TOKENS) - TARGETS))


def fit(config, num_steps, params=None):
  """(parameters, state of the optimizer) after `num_steps`."""
  rule = optimizer_lib.make_optimizer(config, num_steps)
  params = toy.network() if params is None else params

  def body(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = rule.update(grads, state, params, value=value)
    return (optax.apply_updates(params, updates), state), value

  run = jax.jit(
    lambda params: jax.lax.scan(
      body, (params, rule.init(params)), length=num_steps
    )
  )
  (params, state), _ = run(params)
  return params, state


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


@pytest.mark.parametrize('name', NAMES)
def test_each_rule_trains_at_its_default_learning_rate(name):
  before = float(loss(toy.network()))
  # Some move a weight by no more than their rate, of 0.0002 or 0.001, a step.
  steps = {'lion': 3000, 'adamw': 800, 'adafactor': 800, 'muon': 800}
  num_steps = steps.get(name, 300)
  params, state = fit(
    config_lib.Optimizer(name=name, weight_decay=0.0), num_steps
  )
  evaluated = optimizer_lib.evaluation_params(params, state)
  assert float(loss(evaluated)) < 0.1 * before
  assert float(loss(params)) < 0.1 * before
  same = jax.tree.map(np.array_equal, params, evaluated)
  assert all(jax.tree.leaves(same)) == (name != 'schedule_free')


def test_schedule_free_evaluates_its_average():
  """The average is better than the point that gradients are taken at."""
  rng = np.random.default_rng(0)
  rule = optimizer_lib.make_optimizer(
    config_lib.Optimizer(name='schedule_free', learning_rate=0.3), 1
  )
  params = {'kernel': toy.normal((20,))}
  state = rule.init(params)
  update = jax.jit(rule.update)
  for _ in range(60):
    noise = rng.normal(0, 2, 20).astype(np.float32)
    grads = {'kernel': params['kernel'] + noise}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  averaged = optimizer_lib.evaluation_params(params, state)
  distance = lambda tree: float(jnp.linalg.norm(tree['kernel']))
  assert distance(averaged) < 0.9 * distance(params)


@pytest.mark.parametrize('name', NAMES)
def test_the_first_step_of_a_warm_up_moves(name):
  """Its rate is above 0, and so is its update."""
  config = config_lib.Optimizer(
    name=name, warmup_steps=10, weight_decay=0.0, clip_norm=0.0
  )
  rule = optimizer_lib.make_optimizer(config, 20)
  params = toy.network()
  state = rule.init(params)
  grads = jax.grad(loss)(params)
  updates, state = rule.update(grads, state, params, value=loss(params))
  rate = optimizer_lib.learning_rate(config, 20, state, np.int32(0))
  assert float(optax.tree.norm(updates)) > 0, 'the first step must move'
  assert float(rate) > 0


@pytest.mark.parametrize(
  'name', ['adamw', 'muon', 'lion', 'adafactor', 'momo_adam', 'schedule_free']
)
def test_decay_shrinks_kernels_and_nothing_else(name):
  config = config_lib.Optimizer(
    name=name, learning_rate=0.1, schedule='constant', weight_decay=0.5
  )
  rule = optimizer_lib.make_optimizer(config, 10)
  before = params = toy.network()
  state = rule.init(params)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for _ in range(2):
    updates, state = rule.update(zeros, state, params, value=jnp.float32(1))
    params = optax.apply_updates(params, updates)
  first = by_path(before)
  for path, leaf in by_path(params).items():
    if not path.endswith('kernel'):
      np.testing.assert_allclose(leaf, first[path], rtol=1e-6, err_msg=path)
    elif name == 'schedule_free':
      ratio = leaf / first[path]
      assert 0.85 < ratio.min() <= ratio.max() < 0.999, path
    else:
      np.testing.assert_allclose(
        leaf, first[path] * 0.95**2, rtol=1e-5, err_msg=path
      )


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adamw'])
def test_gradients_of_zero_do_not_harm_an_estimate(name):
  """It would be 0 / 0 from then on."""
  config = config_lib.Optimizer(name=name, weight_decay=0.0)
  rule = optimizer_lib.make_optimizer(config, 30)
  params = toy.network()
  grads = jax.grad(loss)(params)
  zeros = jax.tree.map(jnp.zeros_like, grads)
  state = rule.init(params)
  for tree in (zeros, grads, zeros):
    updates, state = rule.update(tree, state, params, value=jnp.float32(1))
    params = optax.apply_updates(params, updates)
  assert np.isfinite(float(optax.tree.norm(params)))
  rate = optimizer_lib.learning_rate(config, 30, state, np.int32(3))
  assert 0 < float(rate) < 1


def test_the_rate_of_dog_is_the_distance_over_the_gradients():
  config = config_lib.Optimizer(
    name='dog', schedule='constant', weight_decay=0.0, clip_norm=0.0
  )
  rule = optimizer_lib.make_optimizer(config, 9)
  params, state = fit(config, 9)
  grads = jax.grad(loss)(params)
  updates, after = rule.update(grads, state, params, value=loss(params))
  expected = optimizer_lib.learning_rate(config, 9, after, np.int32(9))
  ratio = optax.tree.norm(updates) / optax.tree.norm(grads)
  np.testing.assert_allclose(ratio, expected, rtol=1e-3)


@pytest.mark.parametrize('name', NAMES)
def test_a_state_shares_no_buffer_with_the_parameters(name):
  """Both are donated to the step."""
  params = toy.network()
  state = optimizer_lib.make_optimizer(
    config_lib.Optimizer(name=name), 10
  ).init(params)
  pointers = [
    leaf.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves((params, state))
    if leaf.nbytes > 8
  ]
  assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adamw'])
def test_decay_follows_an_estimate(name):
  config = config_lib.Optimizer(
    name=name, schedule='constant', weight_decay=0.5
  )
  rule = optimizer_lib.make_optimizer(config, 30)
  params, state = fit(config, 30)
  grads = jax.grad(loss)(params)
  estimate = optimizer_lib.learning_rate(config, 30, state, np.int32(30))
  assert float(estimate) > 1e-5, 'it must have grown'
  with_decay, _ = rule.update(grads, state, params, value=loss(params))
  plain = optimizer_lib.make_optimizer(
    config_lib.Optimizer(name=name, schedule='constant', weight_decay=0.0),
    10,
  )
  without, _ = plain.update(grads, state, params, value=loss(params))
  start = by_path(params)
  without = by_path(without)
  for path, leaf in by_path(with_decay).items():
    expected = 0.5 * estimate * start[path] if path.endswith('kernel') else 0
    np.testing.assert_allclose(
      without[path] - leaf, expected, atol=1e-6, err_msg=path
    )


@pytest.mark.parametrize('name', NAMES)
def test_frozen_parameters_stay_bitwise(name):
  config = config_lib.Optimizer(
    name=name, frozen=r'^token/|feedforward/up/', plateau_patience=0
  )
  before = by_path(toy.network())
  params, state = fit(config, 5)
  evaluated = by_path(optimizer_lib.evaluation_params(params, state))
  for path, leaf in by_path(params).items():
    frozen = path.startswith('token/') or 'feedforward/up/' in path
    assert np.array_equal(leaf, before[path]) == frozen, path
    if frozen:
      np.testing.assert_array_equal(evaluated[path], before[path])


def test_frozen_parameters_keep_the_state_that_checkpoints_have():
  """Whether the rule is given all parameters or those that are trained."""
  config = config_lib.Optimizer(frozen='^token/', plateau_patience=1)
  rule = optimizer_lib.make_optimizer(config, 10)
  params = toy.network()
  trained = parameter_groups.trained(
    config_lib.Config(optimizer=config), params
  )
  state = rule.init(params)
  assert jax.tree.structure(rule.init(trained)) == jax.tree.structure(state)
  paths = by_path(state)
  assert not any('token' in path for path in paths)
  mu = 'inner_states/False/inner_state/1/0/mu/decoder/layers/'
  assert any(path.startswith(mu) for path in paths), list(paths)


def test_gradients_are_clipped_to_their_global_norm():
  params = {'kernel': jnp.zeros(4), 'bias': jnp.zeros(1)}
  grads = {'kernel': jnp.full(4, 300.0), 'bias': jnp.array([800.0])}
  # Adam's epsilon this large makes it linear: the update is -rate * clipped.
  config = config_lib.Optimizer(
    learning_rate=1e6, schedule='constant', eps=1e6, clip_norm=2.0
  )
  rule = optimizer_lib.make_optimizer(config, 1)
  updates, _ = rule.update(grads, rule.init(params), params, value=0.0)
  np.testing.assert_allclose(updates['kernel'], -0.6, rtol=1e-3)
  np.testing.assert_allclose(updates['bias'], -1.6, rtol=1e-3)
  small = jax.tree.map(lambda grad: grad / 1e3, grads)
  updates, _ = rule.update(small, rule.init(params), params, value=0.0)
  np.testing.assert_allclose(updates['kernel'], -0.3, rtol=1e-3)


def test_muon_sees_every_kernel_of_a_stack_as_a_matrix():
  """In dims and out dims; embeddings, norms, biases and heads are Adam's."""
  model = toy.model(
    architecture='encoder_decoder',
    attention_bias=True,
    mlp_bias=True,
    qk_norm=True,
    tie_embeddings=False,
    position='learned',
  )
  params = toy.model_params(model)
  dims = jax.tree_util.tree_flatten_with_path(
    optimizer_lib.muon_dims(params),
    is_leaf=lambda leaf: (
      leaf is None or isinstance(leaf, optax.contrib.MuonDimensionNumbers)
    ),
  )[0]
  shapes = {path: leaf.shape for path, leaf in by_path(params).items()}
  matrices = {}
  for path, dim in dims:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if dim is None:
      assert '/layers/' not in name or not name.endswith('kernel'), name
      continue
    size = lambda axes, name=name: int(
      np.prod([shapes[name][axis] for axis in axes])
    )
    matrices[name] = (size(dim.reduction_axis), size(dim.output_axis))
    assert sorted((0, *dim.reduction_axis, *dim.output_axis)) == list(
      range(len(shapes[name]))
    ), 'every dim but the layer is in or out'
  # Width 16, 4 heads and 2 key/value heads of 4, hidden width 24.
  attention = {
    'query/kernel': (16, 16),
    'key/kernel': (16, 8),
    'value/kernel': (16, 8),
    'output/kernel': (16, 16),
  }
  feedforward = {
    'up/kernel': (16, 24),
    'gate/kernel': (16, 24),
    'down/kernel': (24, 16),
  }
  expected = {}
  for stack, kinds in (
    ('encoder', ['attention']),
    ('decoder', ['attention', 'cross_attention']),
  ):
    for kind in kinds:
      for name, shape in attention.items():
        expected[f'{stack}/layers/{kind}/{name}'] = shape
    for name, shape in feedforward.items():
      expected[f'{stack}/layers/feedforward/{name}'] = shape
  assert matrices == expected


def test_muon_sees_every_expert_as_a_matrix():
  params = toy.model_params(toy.model(num_experts=4, shared_expert_dim=8))
  dims = optimizer_lib.muon_dims(params)['decoder']['layers']['feedforward']
  matrix = optax.contrib.MuonDimensionNumbers
  assert {name: dims[name]['kernel'] for name in dims if name != 'shared'} == {
    'router': matrix((1,), (2,)),
    'expert_gate': matrix((2,), (3,)),
    'expert_up': matrix((2,), (3,)),
    'expert_down': matrix((2,), (3,)),
  }
  assert dims['shared']['down']['kernel'] == matrix((1,), (2,))


def test_muon_makes_the_update_of_each_layer_orthogonal():
  config = config_lib.Optimizer(
    name='muon',
    learning_rate=1.0,
    schedule='constant',
    weight_decay=0.0,
    clip_norm=0.0,
  )
  params = {'decoder': {'layers': {'up': {'kernel': toy.normal((3, 8, 8))}}}}
  grads = jax.tree.map(lambda leaf: toy.normal(leaf.shape, 7), params)
  rule = optimizer_lib.make_optimizer(config, 10)
  updates, _ = rule.update(grads, rule.init(params), params, value=0.0)
  for update in updates['decoder']['layers']['up']['kernel']:
    values = np.linalg.svd(update, compute_uv=False)
    # Five steps of Newton-Schulz leave them between 0.7 and 1.2.
    assert values.max() / values.min() < 2
    rms = float(jnp.sqrt(jnp.mean(jnp.square(update))))
    assert rms == pytest.approx(0.2, rel=0.3)
  assert np.linalg.cond(grads['decoder']['layers']['up']['kernel']).min() > 2


@pytest.mark.parametrize(
  ('rate', 'given', 'expected'),
  [(0.01, None, 0.01), (0.01, 0.004, 0.004)],
)
def test_what_muon_leaves_to_adam_has_a_rate_of_its_own(rate, given, expected):
  config = config_lib.Optimizer(
    name='muon',
    learning_rate=rate,
    adam_learning_rate=given,
    schedule='constant',
    weight_decay=0.0,
  )
  params = {
    'decoder': {'layers': {'up': {'kernel': toy.normal((3, 8, 8))}}},
    'token': {'embedding': toy.normal((16, 8), 1)},
  }
  grads = jax.tree.map(lambda leaf: toy.normal(leaf.shape, 7), params)
  rule = optimizer_lib.make_optimizer(config, 10)
  updates, _ = rule.update(grads, rule.init(params), params, value=0.0)
  # Adam's first step is the sign of the gradient, and with Nesterov's momentum
  # this much longer.
  nesterov = config.b1 / (1 + config.b1) + 1
  steps = np.abs(updates['token']['embedding'])
  np.testing.assert_allclose(steps, nesterov * expected, rtol=1e-3)
  matrices = updates['decoder']['layers']['up']['kernel']
  rms = float(jnp.sqrt(jnp.mean(jnp.square(matrices))))
  assert rms == pytest.approx(0.2 * rate, rel=0.3)
