"""One update, as a pure function of state and batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.objectives import losses
from gemini_jax.train import gradient as gradient_lib
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib

# What the text decoder alone has, of the parameters of a Gemini.
_DECODER = r'^(decoder|decoder_norm|head|latent_embedding)/'


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
  state = with_new_decoder(
    state, config=config, model=model, optimizer=optimizer
  )
  loss_weights = losses.weights_at(config, state.step)
  grads, sums = gradient_lib.accumulated_gradient(
    config, model, state.params, batch, key, loss_weights
  )
  weight = jnp.maximum(sums.weight, 1e-9)
  trained = functools.partial(parameter_groups.trained, config.optimizer)
  grads = jax.tree.map(lambda grad: grad / weight.astype(grad.dtype), grads)
  objective = sums.objective / weight
  updates, opt_state = optimizer.update(
    grads, state.opt_state, trained(state.params), value=objective
  )
  metrics = {
    'loss': sums.loss / weight,
    'token_accuracy': sums.correct / weight,
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': optimizer_lib.learning_rate(
      config.optimizer, config.train.num_steps, state.opt_state, state.step
    ),
    'tokens': sums.weight,
  }
  metrics |= losses.media_means(sums.terms)
  if config.model.latent.dim:
    metrics['kl'] = sums.terms['kl'] / sums.terms['sequences']
    metrics['kl_weight'] = loss_weights['kl']
  params = optimizer_lib.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    # The average starts as a plain mean, so that it forgets the first values.
    decay = jnp.minimum(
      config.optimizer.ema_decay, (1 + state.step) / (10 + state.step)
    )
    average = optax.incremental_update(
      parameter_groups.to_float32(trained(params)), trained(ema), 1 - decay
    )
    ema = parameter_groups.merged(average, ema)
  applies = (
    jnp.isfinite(objective)
    & jnp.isfinite(metrics['grad_norm'])
    & (state.step == index)
  )
  new = state_lib.TrainState(state.step + 1, params, opt_state, ema)
  new = jax.tree.map(lambda a, b: jnp.where(applies, a, b), new, state)
  return new, metrics | {'finite': applies}


def with_new_decoder(
  state: state_lib.TrainState,
  *,
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
) -> state_lib.TrainState:
  """The state with a fresh decoder at the one step where it is due.

  What the encoder has learned stays, in the tokens' table too; the optimizer
  forgets the old decoder (Li et al. 2019).
  """
  due = losses.decoder_reset(config.train.kl_annealing, config.train.num_steps)
  if not due or not config.model.latent.dim:
    return state
  is_replaced = parameter_groups.mirrored(
    state,
    state.params,
    parameter_groups.matching(_DECODER, state.params),
    default=False,
    same_shape=False,
  )

  def reset(state):
    key = jax.random.fold_in(jax.random.key(config.train.seed), due)
    return jax.tree.map(
      lambda replaces, old, new: new if replaces else old,
      is_replaced,
      state,
      state_lib.fresh_state(config, model, optimizer, key),
    )

  return jax.lax.cond(state.step == due, reset, lambda state: state, state)


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
