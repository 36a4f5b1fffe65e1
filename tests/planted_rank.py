"""A frozen residual network, and a target that differs from it in few ranks.

L layers, D width, B rows, R rank.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemini_jax import config as config_lib
from gemini_jax.adapt import adalora, extension
from gemini_jax.layers import matmul
from gemini_jax.models import parameter_groups
from gemini_jax.train import state as state_lib
from gemini_jax.weights import tuning

L, D, B = 6, 64, 128
# By layer: the rank of what the target has beside the network.
PLANTED = {1: 4, 4: 8}
LEARNING_RATE = 5e-3


def network(params, x_BD):
  def layer(x_BD, kernel):
    y_BD = matmul.dot(x_BD, kernel, 1, dtype=jnp.float32)
    return x_BD + jax.nn.gelu(y_BD), None

  return jax.lax.scan(layer, x_BD, params['net']['layers']['kernel'])[0]


def plant(seed):
  """(parameters, those of the target)."""
  rng = np.random.default_rng(seed)
  kernel_LDD = rng.normal(0, D**-0.5, (L, D, D))
  target_LDD = kernel_LDD.copy()
  for layer, rank in PLANTED.items():
    u_DR, v_DR = (np.linalg.qr(rng.normal(size=(D, rank)))[0] for _ in range(2))
    target_LDD[layer] += u_DR @ v_DR.T
  return tuple(
    {'net': {'layers': {'kernel': jnp.asarray(array, jnp.float32)}}}
    for array in (kernel_LDD, target_LDD)
  )


def tuned(method, rank, seed=0, num_steps=1500, cuts=True, **adalora_fields):
  """(error of the tuned network, 1 without tuning; rank of each layer)."""
  tune = config_lib.Tune(
    method=method,
    pattern='kernel',
    rank=rank,
    alpha=adalora_fields.get('initial_rank', rank),
    adalora=config_lib.AdaLoRA(**adalora_fields),
  )
  config = config_lib.Config(
    tune=tune, train=config_lib.Train(init_from='x', num_steps=num_steps)
  )
  base, target = plant(seed)
  found = adalora.from_config(config)
  on = extension.Extensions((found,) if found and cuts else ())
  rule = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
  own = functools.partial(parameter_groups.own, tune)

  def loss(trained, params, x_BD):
    y_BD = network(parameter_groups.merged(trained, params), x_BD)
    return jnp.mean(jnp.square(y_BD - network(target, x_BD)))

  def step(state, index):
    key = jax.random.fold_in(jax.random.key(seed), index)
    x_BD = jax.random.normal(key, (B, D))
    task = jax.grad(loss)(own(state.params), state.params, x_BD)
    updates, opt_state = rule.update(on.gradients(state, task), state.opt_state)
    trained = optax.apply_updates(own(state.params), updates)
    state = state.replace(
      step=state.step + 1,
      params=parameter_groups.merged(trained, state.params),
      opt_state=opt_state,
    )
    return on.after_update(state, task), None

  @jax.jit
  def run(params):
    state = state_lib.TrainState(
      jnp.int32(0), params, rule.init(own(params)), on.init(params)
    )
    state = jax.lax.scan(step, state, jnp.arange(num_steps))[0]
    x_BD = jax.random.normal(jax.random.key(10**6), (1024, D))
    error = lambda params: loss(own(params), params, x_BD)
    return state, error(state.params) / error(base)

  state, error = run(tuning.wrapped(tune, base, jax.random.key(seed)))
  gains = state.params['net']['layers']['kernel'].gains
  ranks = [rank] * L if gains is None else np.sum(gains != 0, axis=-1).tolist()
  return float(error), ranks
