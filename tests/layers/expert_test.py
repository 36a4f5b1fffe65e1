"""Mixture of experts against a loop over experts, on one device and on many.

B batch, T length, D width, E experts, K experts of a token.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import expert, feedforward
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import sharding

B, T, D, E = 8, 3, 12, 8
HIDDEN = 10


def make_module(k=2, **fields):
  return expert.MixtureOfExperts(E, k, HIDDEN, activation='silu', **fields)


def make_args(module, collapsed=False, rows=B):
  """(params, x_BTD) at random; `collapsed`: all choose the first experts."""
  x_BTD = toy.normal((rows, T, D), 1)
  params = toy.random_params(module, x_BTD, scale=0.5)
  if collapsed:
    # Every token is alike along this direction, which the router reads.
    x_BTD = x_BTD.at[..., 0].set(5)
    router = params['router']['kernel']
    router = router.at[0].set(jnp.linspace(6, -6, E))
    params = params | {'router': {'kernel': router}}
  return params, x_BTD


def reference(module, params, x_BTD):
  """Every expert computes every token, for itself; gates choose and weigh."""
  logits_BTE = jnp.einsum('BTD,DE->BTE', x_BTD, params['router']['kernel'])
  probs_BTE = jax.nn.softmax(logits_BTE)
  chosen_BTK = jnp.argsort(-probs_BTE)[..., : module.experts_per_token]
  picked_BTE = jnp.sum(jax.nn.one_hot(chosen_BTK, E), axis=-2)
  gates_BTE = probs_BTE * picked_BTE
  if module.experts_per_token > 1:
    gates_BTE /= jnp.sum(gates_BTE, axis=-1, keepdims=True)
  activate = feedforward.ACTIVATIONS[module.activation]

  def mlp(names, kernels):
    parts = dict(zip(names, kernels, strict=True))
    up = x_BTD @ parts['up']
    hidden = activate(x_BTD @ parts['gate']) * up if module.gated else up
    if not module.gated:
      hidden = activate(up)
    return hidden @ parts['down']

  names = ['up', 'down', *['gate'] * module.gated]
  out_EBTD = jax.vmap(functools.partial(mlp, names))(
    [params[f'expert_{name}']['kernel'] for name in names]
  )
  out_BTD = jnp.einsum('BTE,EBTD->BTD', gates_BTE, out_EBTD)
  if module.shared_dim:
    out_BTD += mlp(names, [params['shared'][name]['kernel'] for name in names])
  return out_BTD, chosen_BTK


def value_and_gradient(function):
  """Of a random projection, by parameters and by input; and the output."""

  def objective(params, x_BTD):
    out_BTD, beside = function(params, x_BTD)
    return jnp.sum(out_BTD * toy.normal(out_BTD.shape, 7)), (out_BTD, beside)

  return jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))


def applied(module):
  return lambda params, x_BTD: module.apply({'params': params}, x_BTD)


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    actual,
    expected,
  )


CASES = {
  'top 1': {'k': 1},
  'top 2': {'k': 2},
  'all': {'k': E},
  'plain': {'k': 3, 'gated': False},
  'shared': {'k': 2, 'shared_dim': 5},
}


@functools.cache
def expected_of(case, collapsed=False, rows=B):
  module = make_module(**CASES[case])
  args = make_args(module, collapsed, rows)
  gradient, (out_BTD, chosen_BTK) = value_and_gradient(
    functools.partial(reference, module)
  )(*args)
  return module, args, gradient, out_BTD, np.asarray(chosen_BTK)


@pytest.mark.parametrize('collapsed', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_equals_a_loop_over_experts(case, collapsed):
  module, args, gradient, out_BTD, chosen_BTK = expected_of(case, collapsed)
  actual, (actual_BTD, _) = value_and_gradient(applied(module))(*args)
  assert_close(actual_BTD, out_BTD)
  assert_close(actual, gradient)
  counts_E = np.bincount(chosen_BTK.reshape(-1), minlength=E)
  assert counts_E.sum() == B * T * module.experts_per_token
  if collapsed and case != 'all':
    # One expert has every token, another has none, whose gradient is zero.
    assert counts_E.max() == B * T and counts_E.min() == 0
    unused = actual[0]['expert_up']['kernel'][counts_E.argmin()]
    assert not np.any(unused)
  # The router learns from the output, with one expert a token too.
  if not collapsed:
    assert np.abs(actual[0]['router']['kernel']).max() > 1e-3


@functools.cache
def losses_of(case, collapsed, rows):
  module, args, *_ = expected_of(case, collapsed, rows)
  return jax.jit(applied(module))(*args)[1]


MESHES = {
  'expert': {'data': 2, 'expert': 4},
  'one expert each': {'expert': 8},
  'expert fsdp tensor': {'fsdp': 2, 'expert': 2, 'tensor': 2},
  'fsdp tensor': {'fsdp': 4, 'tensor': 2},
  'sequence': {'expert': 2, 'sequence': 3},
}


def make_mesh(name):
  sizes = {'data': 1} | MESHES[name]
  devices = jax.devices()[: math.prod(sizes.values())]
  return mesh_lib.make_mesh(config_lib.Parallel(**sizes), devices)


def place(mesh, module, params, x_BTD):
  """Parameters and tokens on the mesh, by the rules."""
  boxed = jax.eval_shape(module.init, jax.random.key(0), x_BTD)['params']
  tokens = sharding.batch_sharding(mesh)
  if x_BTD.shape[0] < B:
    tokens = NamedSharding(mesh, P())
  return (
    jax.device_put(params, sharding.param_shardings(mesh, boxed)),
    jax.device_put(x_BTD, tokens),
  )


@pytest.mark.parametrize(
  ('mesh_name', 'case', 'collapsed', 'rows'),
  [
    ('expert', 'shared', False, B),
    # All rows of a step belong to one device.
    ('expert', 'top 2', True, B),
    ('one expert each', 'top 1', False, B),
    ('expert fsdp tensor', 'plain', False, B),
    ('fsdp tensor', 'top 2', False, B),
    ('sequence', 'top 2', False, B),
    # No axis divides one row: every device has it.
    ('expert fsdp tensor', 'top 2', False, 1),
  ],
)
def test_a_mesh_does_not_change_the_layer(mesh_name, case, collapsed, rows):
  module, args, gradient, out_BTD, _ = expected_of(case, collapsed, rows)
  mesh = make_mesh(mesh_name)
  with sharding.use(mesh):
    placed = place(mesh, module, *args)
    actual, (actual_BTD, losses) = value_and_gradient(applied(module))(*placed)
  assert_close(actual_BTD, out_BTD)
  assert_close(actual, gradient)
  assert_close(losses, losses_of(case, collapsed, rows))
  sizes = MESHES[mesh_name]
  split = math.prod(sizes.values()) / sizes.get('tensor', 1)
  shard = actual_BTD.addressable_shards[0].data
  assert shard.size == out_BTD.size / (split if rows == B else 1)


def inner_shapes(jaxpr, name):
  """Shapes of the operands of every primitive called `name`, all inside."""
  shapes = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      shapes.append([v.aval.shape for v in equation.invars])
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        shapes += inner_shapes(inner, name)
  return shapes


def test_experts_and_tokens_are_really_distributed():
  module = make_module()
  mesh = make_mesh('expert fsdp tensor')
  args = make_args(module)
  with sharding.use(mesh):
    params, x_BTD = place(mesh, module, *args)
    for name, shape in {
      'expert_gate': (E // 2, D // 2, HIDDEN // 2),
      'expert_up': (E // 2, D // 2, HIDDEN // 2),
      'expert_down': (E // 2, HIDDEN // 2, D // 2),
    }.items():
      shard = params[name]['kernel'].addressable_shards[0].data
      assert shard.shape == shape, name
    traced = jax.jit(applied(module)).trace(params, x_BTD)
    program = traced.lower().compile().as_text()
  # Two rows for each of a device's tokens, its experts, its hidden units.
  rows, half = 2 * B * T // 4, HIDDEN // 2
  up = [(rows, D), (E // 2, D, half), (E // 2,)]
  down = [(rows, half), (E // 2, half, D), (E // 2,)]
  products = inner_shapes(traced.jaxpr.jaxpr, 'ragged_dot_general')
  assert products == [up, up, down]
  # Tokens travel; nothing gathers all of them, or all experts.
  assert 'collective-permute' in program
  gathered = [line for line in program.splitlines() if 'all-gather(' in line]
  for line in gathered:
    assert f'f32[{E},' not in line and f'f32[{B},' not in line, line


def test_experts_that_an_axis_does_not_divide_are_refused():
  module = expert.MixtureOfExperts(6, 2, HIDDEN)
  boxed = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 1, D)))[
    'params'
  ]
  with pytest.raises(config_lib.ConfigError) as error:
    sharding.param_shardings(make_mesh('expert'), boxed)
  assert str(error.value) == (
    'parallel.expert=4 does not divide expert=6 (expert_down/kernel); use 1, '
    '2, 3'
  )


@jax.custom_vjp
def poisoned_dot(x_RD, kernel_EDF, sizes_E):
  """What a backend may do: NaN where no group is, forward and backward."""
  y_RF = RAGGED_DOT(x_RD, kernel_EDF, sizes_E)
  return poison(y_RF, sizes_E)


RAGGED_DOT = jax.lax.ragged_dot


def poison(x_RD, sizes_E):
  beyond_R1 = (jnp.arange(x_RD.shape[0]) >= jnp.sum(sizes_E))[:, None]
  return jnp.where(beyond_R1, jnp.nan, x_RD)


def _poisoned_backward(saved, dy_RF):
  x_RD, kernel_EDF, sizes_E = saved
  _, pull = jax.vjp(lambda x, k: RAGGED_DOT(x, k, sizes_E), x_RD, kernel_EDF)
  dx_RD, dkernel_EDF = pull(dy_RF)
  return poison(dx_RD, sizes_E), dkernel_EDF, None


poisoned_dot.defvjp(
  lambda *args: (poisoned_dot(*args), args), _poisoned_backward
)


def test_rows_of_other_devices_cannot_spoil_anything(monkeypatch):
  module, args, gradient, out_BTD, _ = expected_of('top 2')
  monkeypatch.setattr(jax.lax, 'ragged_dot', poisoned_dot)
  mesh = make_mesh('expert')
  with sharding.use(mesh):
    placed = place(mesh, module, *args)
    actual, (actual_BTD, _) = value_and_gradient(applied(module))(*placed)
  assert_close(actual_BTD, out_BTD)
  assert_close(actual, gradient)
  sizes_E = jnp.asarray([2, 0, 1])
  x_RD, kernel_EDF = toy.normal((5, 4)), toy.normal((3, 4, 6))
  assert np.isnan(poisoned_dot(x_RD, kernel_EDF, sizes_E)[3:]).all()


def router_inputs(chosen_TK, strength):
  """Logits that prefer these experts, with the choice itself; one row."""
  chosen_1TK = jnp.asarray(chosen_TK)[None]
  return strength * jax.nn.one_hot(chosen_1TK, E).sum(2), chosen_1TK


TOKENS = 4 * E
REAL_1T = np.ones((1, TOKENS), bool)
router_losses = jax.jit(expert.router_losses)


@pytest.mark.parametrize(
  ('chosen_TK', 'expected'),
  [
    (np.arange(TOKENS)[:, None] % E, 1.0),
    ((np.arange(TOKENS)[:, None] + np.arange(2)) % E, 1.0),
    (np.full((TOKENS, 1), 3), E),
    (np.full((TOKENS, 2), (3, 5)), E / 2),
  ],
)
def test_balance_is_one_at_best_and_e_over_k_at_worst(chosen_TK, expected):
  inputs = router_inputs(chosen_TK, strength=20.0)
  losses = router_losses(*inputs, REAL_1T)
  np.testing.assert_allclose(losses['router_balance'], expected, rtol=1e-5)


def test_balance_pushes_tokens_away_from_a_full_expert():
  chosen_TK = np.where(np.arange(TOKENS) < 3 * E, 0, np.arange(TOKENS) % E)
  logits_1TE, chosen_1TK = router_inputs(chosen_TK[:, None], strength=1.0)

  @jax.jit
  def balance(logits_1TE):
    losses = expert.router_losses(logits_1TE, chosen_1TK, REAL_1T)
    return losses['router_balance']

  value, slope_1TE = jax.jit(jax.value_and_grad(balance))(logits_1TE)
  assert value > 1.5
  # Descent lowers the full expert's logits and raises the others'.
  assert np.all(slope_1TE[..., 0] > 0) and np.all(slope_1TE[..., 1:] < 0)
  assert balance(logits_1TE - 0.5 * TOKENS * slope_1TE) < value


def test_training_the_router_on_balance_balances_it():
  """The choice follows the logits: rows move from the full expert."""
  module = make_module(k=1)
  params, x_BTD = make_args(module)
  # Some tokens are within reach of another expert, not all alike.
  router = params['router']['kernel'].at[:, 0].multiply(4)
  params = params | {'router': {'kernel': router}}

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def slope(router):
    new = params | {'router': {'kernel': router}}
    balance = applied(module)(new, x_BTD)[1]['router_balance']
    return balance, balance

  values = []
  for _ in range(60):
    gradient, value = slope(router)
    router -= 0.3 * gradient
    values.append(float(value))
  assert values[0] > 1.4 and values[-1] < 1.1


def test_router_z_and_balance_by_numpy():
  logits_BTE = toy.normal((2, 5, E), 3, scale=2.0)
  chosen_BTK = jax.lax.top_k(logits_BTE, 2)[1]
  real_BT = np.arange(5)[None] < np.array([[5], [2]])
  losses = router_losses(logits_BTE, chosen_BTK, real_BT)
  logits_NE = np.asarray(logits_BTE, float)[real_BT]
  partition_N = np.log(np.exp(logits_NE).sum(-1))
  np.testing.assert_allclose(
    losses['router_z'], np.mean(partition_N**2), rtol=1e-5
  )
  probs_E = np.exp(logits_NE - partition_N[:, None]).mean(0)
  rows = np.asarray(chosen_BTK)[real_BT].reshape(-1)
  share_E = np.bincount(rows, minlength=E) / rows.size
  np.testing.assert_allclose(
    losses['router_balance'], E * np.sum(share_E * probs_E), rtol=1e-5
  )
  # Padding matters to neither: other tokens there change nothing.
  other_BTE = jnp.where(real_BT[..., None], logits_BTE, 9.0)
  other_BTK = jnp.where(real_BT[..., None], chosen_BTK, 0)
  assert_close(router_losses(other_BTE, other_BTK, real_BT), losses)
  counted = router_losses(other_BTE, other_BTK, real_BT | True)
  assert counted['router_z'] > 1.5 * losses['router_z']
  empty = router_losses(logits_BTE, chosen_BTK, real_BT & False)
  assert all(value == 0 for value in empty.values())


def test_the_layer_leaves_padding_out_of_its_losses():
  module = make_module()
  params, x_BTD = make_args(module)
  real_BT = np.arange(T)[None] < np.arange(1, B + 1)[:, None]
  apply = jax.jit(module.apply)
  out_BTD, losses = apply({'params': params}, x_BTD, real_BT)
  other_BTD = jnp.where(real_BT[..., None], x_BTD, 3 * x_BTD[::-1])
  other_out_BTD, other = apply({'params': params}, other_BTD, real_BT)
  assert_close(other, losses)
  np.testing.assert_array_equal(out_BTD[real_BT], other_out_BTD[real_BT])
  assert abs(
    apply({'params': params}, x_BTD)[1]['router_z'] - losses['router_z']
  )


def test_the_router_stays_in_float32():
  module = make_module(dtype=jnp.bfloat16, shared_dim=4)
  params, x_BTD = make_args(module)
  out_BTD, losses = jax.jit(applied(module))(params, x_BTD)
  assert out_BTD.dtype == jnp.bfloat16
  exact_BTD, exact = jax.jit(applied(make_module(shared_dim=4)))(params, x_BTD)
  assert_close(losses, exact)
  error = np.abs(np.asarray(out_BTD, np.float32) - exact_BTD).max()
  assert 0 < error < 0.05 * np.abs(exact_BTD).max()


def test_initial_kernels_have_the_spread_of_their_fan_in():
  module = expert.MixtureOfExperts(4, 2, 96)
  init = jax.jit(module.init)
  params = nn.unbox(init(jax.random.key(0), jnp.ones((1, 1, 64))))
  for name, fan_in in {'gate': 64, 'up': 64, 'down': 96}.items():
    kernel = np.asarray(params['params'][f'expert_{name}']['kernel'])
    assert kernel.std() == pytest.approx(fan_in**-0.5, rel=0.05), name
    assert not np.allclose(kernel[0], kernel[1])
