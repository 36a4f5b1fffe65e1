"""One update: golden values, accumulation, averages, what is not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.objectives import losses as losses_lib
from gemini_jax.train import gradient as gradient_lib
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

# Losses and gradient norms of three steps.
GOLDEN_LOSSES = (3.3824596, 3.5845604, 3.4980226)
GOLDEN_NORMS = (3.4415686, 3.2096283, 2.6978719)

METRICS = {
  'loss',
  'token_accuracy',
  'grad_norm',
  'learning_rate',
  'tokens',
  'finite',
}


@functools.cache
def parts(optimizer=(), **model):
  """(step function, fresh state) of a tiny config."""
  config = tiny.config(
    model=model,
    data={'batch_size': 4},
    optimizer={'schedule': 'constant', **dict(optimizer)},
    train={'num_steps': 10},
  )
  network = gemini.Gemini(config.model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  params = toy.model_params(network)
  state = state_lib.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=rule.init(params),
    extra=enabled.extensions(config).init(params),
  )
  step = jax.jit(
    functools.partial(
      step_lib.train_step, config=config, model=network, optimizer=rule
    )
  )
  return step, state


def assert_equal(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_a_golden_training_step():
  """Numerics that change on purpose change these numbers, in one commit."""
  step, state = parts((('learning_rate', 0.01),), gated=True, qk_norm=True)
  losses, norms = [], []
  for index in range(3):
    state, metrics = step(state, toy.batch(rows=4, seed=index), index)
    losses.append(float(metrics['loss']))
    norms.append(float(metrics['grad_norm']))
  np.testing.assert_allclose(losses, GOLDEN_LOSSES, rtol=1e-5)
  np.testing.assert_allclose(norms, GOLDEN_NORMS, rtol=1e-5)


def test_metrics_of_a_step():
  step, state = parts((('learning_rate', 0.01),))
  batch = toy.batch(rows=4)
  new, metrics = step(state, batch, 0)
  assert set(metrics) == METRICS
  assert all(value.shape == () for value in metrics.values())
  assert bool(metrics['finite'])
  assert int(new.step) == 1
  assert float(metrics['tokens']) == pytest.approx(batch.weights.sum(), 1e-6)
  assert float(metrics['learning_rate']) == pytest.approx(0.01)
  moved = [
    np.square(a - b).sum()
    for a, b in zip(
      jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True
    )
  ]
  assert all(moved), 'every parameter learns'


@pytest.mark.parametrize('accumulation_steps', [2, 4])
def test_accumulation_equals_one_batch(accumulation_steps):
  """Although the parts hold unequal weights, one of them none at all."""
  batch = toy.batch(rows=4)
  weights_BT = np.array(batch.weights)
  weights_BT[1] *= 10
  weights_BT[3] = 0
  batch = batch.replace(weights=weights_BT)
  options = (('learning_rate', 0.01), ('name', 'schedule_free'))
  whole, state = parts(options)
  split, _ = parts((*options, ('accumulation_steps', accumulation_steps)))
  expected_state, expected = whole(state, batch, 0)
  new_state, metrics = split(state, batch, 0)
  for name in METRICS:
    np.testing.assert_allclose(
      metrics[name], expected[name], rtol=2e-5, err_msg=name
    )
  # Of Adam's normalised update a rounding error may turn the sign where the
  # gradient is zero, so compare what it sums: the second moment.
  for a, b in zip(
    jax.tree.leaves(new_state.opt_state),
    jax.tree.leaves(expected_state.opt_state),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_dropout_of_parts_differs():
  """Two equal rows in two parts are dropped differently."""
  options = (('learning_rate', 0.01), ('accumulation_steps', 2))
  step, state = parts(options, dropout=0.5)
  plain, _ = parts((('learning_rate', 0.01),))
  row = toy.batch(rows=1)
  batch = jax.tree.map(lambda leaf: np.repeat(leaf, 4, 0), row)
  first = step(state, batch, 0)[1]['loss']
  assert float(first) == float(step(state, batch, 0)[1]['loss'])
  assert float(first) != float(plain(state, batch, 0)[1]['loss'])


def test_dropout_changes_with_the_step():
  step, state = parts((('learning_rate', 1e-30),), dropout=0.5)
  batch = toy.batch(rows=4)
  losses = []
  for index in range(3):
    at = state.replace(step=jnp.int32(index))
    losses.append(float(step(at, batch, index)[1]['loss']))
    assert losses[-1] == float(step(at, batch, index)[1]['loss'])
  assert len(set(losses)) == 3


@pytest.mark.parametrize(
  'name', ['adamw', 'momo_adam', 'prodigy', 'dadapt_adamw', 'dog']
)
def test_a_step_that_is_not_finite_changes_nothing(name):
  """Nor does any later one, until the host has looked."""
  options = (('learning_rate', 0.01), ('ema_decay', 0.9), ('name', name))
  step, state = parts(options)
  good, bad = toy.batch(rows=4), toy.batch(rows=4)
  weights_BT = np.array(bad.weights)
  weights_BT[2, 5] = np.inf
  bad = bad.replace(weights=weights_BT)
  state, metrics = step(state, good, 0)
  assert bool(metrics['finite'])
  after, metrics = step(state, bad, 1)
  assert not bool(metrics['finite'])
  assert_equal(after, state)
  after, metrics = step(after, good, 2)
  assert not bool(metrics['finite'])
  assert np.isfinite(metrics['loss'])
  assert_equal(after, state)
  after, metrics = step(after, good, 1)
  assert bool(metrics['finite'])
  assert int(after.step) == 2


def test_a_step_of_another_index_changes_nothing():
  step, state = parts((('learning_rate', 0.01), ('ema_decay', 0.9)))
  for index in (1, 7, -1):
    after, metrics = step(state, toy.batch(rows=4), index)
    assert not bool(metrics['finite'])
    assert_equal(after, state)


def bfloat16_parts(name, **optimizer):
  """(config, step function, shapes of a state) with bfloat16 parameters."""
  config = tiny.config(
    model={'param_dtype': 'bfloat16', 'tie_embeddings': False},
    data={'batch_size': 4},
    optimizer={'name': name, **optimizer},
    train={'num_steps': 10},
  )
  network = gemini.Gemini(config.model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  step = functools.partial(
    step_lib.train_step, config=config, model=network, optimizer=rule
  )
  fresh = functools.partial(state_lib.fresh_state, config, network, rule)
  return config, step, jax.eval_shape(fresh, jax.random.key(0))


AROUND = {'ema_decay': 0.9, 'plateau_patience': 1, 'accumulation_steps': 2}


# What is around a rule is the same for each that takes all of it.
@pytest.mark.parametrize(
  ('name', 'around'),
  [(name, {}) for name in config_lib.LEARNING_RATES]
  + [(name, AROUND) for name in ('adamw', 'schedule_free', 'dadapt_adamw')],
)
def test_all_but_bfloat16_parameters_is_float32(name, around):
  """Norms too. A step gives back the types that it takes: it compiles once."""
  if name == 'schedule_free':
    around = {k: v for k, v in around.items() if k == 'accumulation_steps'}
  if name == 'dadapt_adamw':
    around = {k: v for k, v in around.items() if 'plateau' not in k}
  _, step, state = bfloat16_parts(name, **around)
  types = lambda tree: {
    leaf.dtype
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  matrices = parameter_groups.matching('@(matrix|embedding)$', state.params)
  for is_matrix, leaf in zip(
    *map(jax.tree.leaves, (matrices, state.params)), strict=True
  ):
    assert leaf.dtype == (jnp.bfloat16 if is_matrix else jnp.float32)
  assert types((state.opt_state, state.extra)) == {jnp.dtype('float32')}
  new, metrics = jax.eval_shape(step, state, toy.batch(rows=4), 0)
  assert types(metrics) == {jnp.dtype('float32')}
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new) == (
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
  )


@pytest.mark.parametrize('parts', [1, 2])
def test_an_update_of_bfloat16_parameters_is_rounded_once(parts):
  """All else of the step is that of float32 parameters of the same values."""
  options = {'ema_decay': 0.9, 'accumulation_steps': parts}
  config, step, shapes = bfloat16_parts('adamw', **options)
  params = toy.random_tree(shapes.params)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
  state = state_lib.TrainState(
    jnp.int32(0), params, rule.init(params), {'ema': exact}
  )
  wide = state.replace(params=exact)
  run = jax.jit(step)
  for index in range(2):
    batch = toy.batch(rows=4, seed=index)
    new, metrics = run(state, batch, index)
    # The same program but for the types of the parameters.
    expected, wanted = run(wide, batch, index)
    for key in ('loss', 'grad_norm'):
      np.testing.assert_allclose(metrics[key], wanted[key], rtol=1e-5)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
      new.opt_state,
      expected.opt_state,
    )
    for a, b in zip(
      jax.tree.leaves(new.params), jax.tree.leaves(expected.params), strict=True
    ):
      # Norms are float32, and follow the gradient of rounded matrices.
      same = np.isclose(
        a, b.astype(a.dtype), rtol=1e-6 * (a.dtype != 'bfloat16')
      )
      assert same.mean() > 0.98
    state = new
    wide = new.replace(
      params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), new.params)
    )


FROZEN = r'^token/|feedforward/up/'


def test_frozen_parameters_have_no_gradient():
  """Nor a part in the norm, in clipping, in the state and in the average."""
  options = {'schedule': 'constant', 'ema_decay': 0.9, 'accumulation_steps': 2}
  model = {'tie_embeddings': False}
  step, state = parts(tuple((options | {'frozen': FROZEN}).items()), **model)
  config = tiny.config(model=model, optimizer=options | {'frozen': FROZEN})
  network = gemini.Gemini(config.model)
  batch = toy.batch(rows=4)
  weights = losses_lib.weights_at(config, 0)
  gradient = lambda config: gradient_lib.accumulated_gradient(
    config, network, state.params, batch, jax.random.key(0), weights
  )
  grads, sums = jax.jit(gradient, static_argnums=0)(config)
  is_frozen = parameter_groups.matching(FROZEN, state.params)
  num_frozen = sum(jax.tree.leaves(is_frozen))
  num_all = len(jax.tree.leaves(state.params))
  assert num_frozen == 2 and len(jax.tree.leaves(grads)) == num_all - 2
  plain = tiny.replace(config, 'optimizer.frozen', '')
  full, _ = jax.jit(gradient, static_argnums=0)(plain)
  squares = jax.tree.map(
    lambda skip, grad: 0 if skip else jnp.sum(jnp.square(grad)), is_frozen, full
  )
  new, metrics = step(state, batch, 0)
  np.testing.assert_allclose(
    metrics['grad_norm'],
    sum(jax.tree.leaves(squares)) ** 0.5 / sums.weight,
    rtol=1e-5,
  )
  for skip, *leaves in zip(
    *map(
      jax.tree.leaves,
      (is_frozen, state.params, new.params),
    ),
    strict=True,
  ):
    before, after = leaves
    assert np.array_equal(before, after) == skip
  # Moments of the trained alone, in the tree that checkpoints have had.
  moments = optimizer_lib.find_state(new.opt_state, optax.ScaleByAdamState)
  average = new.extra['ema']
  for tree in (moments.mu, moments.nu, average):
    assert len(jax.tree.leaves(tree)) == num_all - num_frozen
    assert isinstance(tree['token']['embedding'], optax.MaskedNode)
  evaluated = state_lib.evaluation_params(config, new)
  jax.tree.map(
    lambda skip, a, b: np.testing.assert_array_equal(a, b) if skip else None,
    is_frozen,
    evaluated,
    state.params,
  )
  assert not np.array_equal(
    evaluated['head']['kernel'], new.params['head']['kernel']
  )
  assert isinstance(new.opt_state, optax.transforms.PartitionState)


def test_a_batch_without_weight_is_harmless():
  step, state = parts((('learning_rate', 0.01),))
  batch = toy.batch(rows=4)
  batch = batch.replace(weights=np.zeros_like(batch.weights))
  _, metrics = step(state, batch, 0)
  assert bool(metrics['finite'])
  assert float(metrics['loss']) == float(metrics['grad_norm']) == 0


@functools.cache
def latent_parts(kl_annealing=()):
  """(step function, a state) of a model with a latent, of 10 steps."""
  config = tiny.config(
    model={'latent': {'dim': 3}},
    data={'pack': False, 'batch_size': 4},
    optimizer={'schedule': 'constant', 'name': 'adamw'},
    train={'num_steps': 10, 'kl_annealing': dict(kl_annealing)},
  )
  network = gemini.Gemini(config.model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  state = state_lib.fresh_state(config, network, rule, jax.random.key(1))
  step = jax.jit(
    functools.partial(
      step_lib.train_step, config=config, model=network, optimizer=rule
    )
  )
  return step, state


def test_the_kl_term_follows_its_course():
  """While it is off the rate is reported all the same."""
  step, state = latent_parts(
    (('schedule', 'monotonic'), ('ramp_fraction', 0.5))
  )
  batch, weights, rates = toy.batch(rows=4), [], []
  for index in range(7):
    state, metrics = step(state, batch, index)
    weights.append(float(metrics['kl_weight']))
    rates.append(float(metrics['kl']))
  np.testing.assert_allclose(weights, [0, 0.2, 0.4, 0.6, 0.8, 1, 1], atol=1e-6)
  assert min(rates) > 0 and len(set(rates)) == 7


def test_the_multiplier_grows_where_z_says_too_little():
  step, state = latent_parts((('min_kl', 50.0), ('schedule', 'constant')))
  before = float(state.params['latent']['multiplier'])
  for index in range(3):
    state, _ = step(state, toy.batch(rows=4), index)
  assert float(state.params['latent']['multiplier']) > before + 1e-3
