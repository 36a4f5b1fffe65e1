"""One update, as a pure function of state and batch."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.objectives import losses
from gemini_jax.train import gradient as gradient_lib
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib


def train_step(
  state: state_lib.TrainState,
  batch: batch_lib.Batch,
  index: jax.Array,
  *,
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
  """One update. Returns the new state and scalar metrics, still on device.

  A step whose loss or gradient is not finite changes nothing, and no later
  one does: batch `index` is applied only to the state after `index` updates.
  The state thus stays as it was until the host has looked.
  """
  key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
  extensions = enabled.extensions(config)
  state, params = begin(state, config=config, model=model, optimizer=optimizer)
  loss_weights = losses.weights_at(config, state.step)
  grads, sums = gradient_lib.accumulated_gradient(
    config,
    model,
    params,
    batch,
    key,
    loss_weights,
    extensions.reference_params(state),
  )
  weight = jnp.maximum(sums.weight, 1e-9)
  grads = jax.tree.map(lambda grad: grad / weight.astype(grad.dtype), grads)
  objective = sums.objective / weight
  changes = compute_updates(
    state, grads, objective, config=config, optimizer=optimizer
  )
  metrics = {
    'loss': sums.loss / weight,
    'token_accuracy': sums.correct / weight,
    'grad_norm': optax.tree.norm(changes.grads),
    'learning_rate': optimizer_lib.learning_rate(
      config.optimizer, config.train.num_steps, state.opt_state, state.step
    ),
    'tokens': sums.weight,
  }
  if model.config.output == 'numbers':
    # There are none that are right.
    metrics.pop('token_accuracy')
  metrics |= losses.means(sums.terms)
  if config.model.latent.dim:
    metrics['kl_weight'] = loss_weights['kl']
  metrics = extensions.metrics(state, metrics)
  applies = (
    jnp.isfinite(objective)
    & jnp.isfinite(metrics['grad_norm'])
    & (state.step == index)
  )
  new = dataclasses.replace(
    state,
    step=state.step + 1,
    params=optimizer_lib.apply_updates(state.params, changes.updates),
    opt_state=changes.opt_state,
  )
  new = extensions.after_update(new, grads)
  new = jax.tree.map(lambda a, b: jnp.where(applies, a, b), new, state)
  return new, metrics | {'finite': applies}


def begin(
  state: state_lib.TrainState,
  *,
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
) -> tuple[state_lib.TrainState, Any]:
  """The state from which a step starts, and what its forward pass reads."""
  extensions = enabled.extensions(config)
  fresh = functools.partial(state_lib.fresh_state, config, model, optimizer)
  state = extensions.before_step(state, fresh)
  return state, extensions.forward_params(state)


class Changes(NamedTuple):
  """What a step makes of the gradients.

  Attributes:
    grads: of the parameters as they are stored.
    updates: to be added to the parameters.
    opt_state: of the optimizer, after it.
  """

  grads: Any
  updates: Any
  opt_state: Any


def compute_updates(
  state: state_lib.TrainState,
  grads: Any,
  objective: jax.Array,
  *,
  config: config_lib.Config,
  optimizer: optax.GradientTransformationExtraArgs,
) -> Changes:
  """The updates by the gradients of what the forward pass has read."""
  extensions = enabled.extensions(config)
  grads = extensions.gradients(state, grads)
  updates, opt_state = optimizer.update(
    grads,
    state.opt_state,
    parameter_groups.trained(config, state.params),
    value=objective,
  )
  return Changes(grads, extensions.updates(state, updates), opt_state)


def jitted(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: state_lib.TrainState,
) -> Any:
  """`train_step` to be compiled; a new state takes the place of the old."""
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(
    functools.partial(
      train_step, config=config, model=model, optimizer=optimizer
    ),
    donate_argnums=0,
    out_shardings=(where, None),
  )
