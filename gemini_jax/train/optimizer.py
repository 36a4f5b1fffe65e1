"""Optax chains from a config: rules, schedules, decay, freezing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups
from gemini_jax.train import schedule as schedule_lib

# What Muon orthogonalises: the matrices of the layers. Embeddings, heads,
# norms and biases are Adam's (Jordan et al. 2024).
MUON_MATRICES = r'/layers/.*@(matrix|expert)$'
_UNTUNED = config_lib.Tune()


def apply_updates(params: Any, updates: Any) -> Any:
  """The parameters after float32 updates; each sum is rounded once."""
  return jax.tree.map(
    lambda update, param: (
      param
      if parameter_groups.is_masked(update)
      else (param + update).astype(param.dtype)
    ),
    updates,
    params,
    is_leaf=parameter_groups.is_masked,
  )


def make_optimizer(
  config: config_lib.Optimizer,
  num_steps: int,
  tune: config_lib.Tune = _UNTUNED,
) -> optax.GradientTransformationExtraArgs:
  """The update rule of a config; `update` wants the loss as `value=`.

  Its state and its updates are float32, in whatever type parameters are. What
  is frozen has neither.
  """
  schedule = schedule_lib.make_schedule(config, num_steps)
  decayed = lambda params: jax.tree.map(
    lambda skip: not skip,
    parameter_groups.matching(config.no_decay, params),
  )
  with_decay = lambda *rule: optax.chain(
    *rule,
    optax.add_decayed_weights(config.weight_decay, decayed),
    optax.scale_by_learning_rate(schedule),
  )
  by_estimate = lambda state: (
    config.weight_decay * state.estim_lr * schedule(state.count)
  )
  b1, b2, eps = config.b1, config.b2, config.eps
  adam_share = (config.adam_learning_rate or config.peak) / config.peak
  rules: dict[str, Callable[[], Any]] = {
    'adamw': lambda: with_decay(optax.scale_by_adam(b1, b2, eps)),
    'lion': lambda: with_decay(optax.scale_by_lion(b1, b2)),
    'adafactor': lambda: with_decay(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    'muon': lambda: optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      weight_decay_mask=decayed,
      adam_b1=b1,
      adam_b2=b2,
      adam_learning_rate=lambda step: adam_share * schedule(step),
      # Updates as large as Adam's are late in training (Liu et al. 2025,
      # Moonlight, section 2.2).
      consistent_rms=0.2,
      muon_weight_dimension_numbers=muon_dims,
    ),
    'prodigy': lambda: decay_beside(
      keep_estimate(
        optax.contrib.prodigy(
          schedule,
          (b1, b2),
          eps=eps,
          safeguard_warmup=config.warmup_steps > 0,
        )
      ),
      by_estimate,
      decayed,
    ),
    'dadapt_adamw': lambda: decay_beside(
      keep_estimate(optax.contrib.dadapt_adamw(schedule, (b1, b2), eps=eps)),
      by_estimate,
      decayed,
    ),
    'dog': lambda: optax.chain(
      # Before the distance is taken: SGD's decay is that of the loss.
      optax.add_decayed_weights(config.weight_decay, decayed),
      optax.contrib.dog(schedule),
    ),
    'momo_adam': lambda: decay_beside(
      optax.contrib.momo_adam(schedule, b1, b2, eps),
      lambda state: config.weight_decay * schedule(state.count),
      decayed,
    ),
    'schedule_free': lambda: optax.contrib.schedule_free(
      with_decay(
        optax.scale_by_rms(
          decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True
        )
      ),
      schedule,
      b1=b1,
    ),
  }
  chain = [rules[config.name]()]
  if config.clip_norm:
    clip = optax.clip_by_global_norm(config.clip_norm)
    # Its step is the loss by the squared norm of the whole gradient.
    chain.insert(0, optax.identity() if config.name == 'momo_adam' else clip)
  optimizer = optax.chain(*chain)
  if config.frozen or tune.method != 'full':
    # set_to_zero, since optax.masked would pass the rest through unchanged.
    optimizer = optax.partition(
      {False: optimizer, True: optax.set_to_zero()},
      lambda params: parameter_groups.frozen(config, tune, params),
    )
  return in_float32(optimizer)


def in_float32(
  rule: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """`rule` of float32 gradients and parameters, so that its state is too."""
  rule = optax.with_extra_args_support(rule)

  def update(updates, state, params=None, **extra):
    return rule.update(
      parameter_groups.to_float32(updates),
      state,
      parameter_groups.to_float32(params),
      **extra,
    )

  # Copied: prodigy and dog keep the first parameters, and both are donated.
  return optax.GradientTransformationExtraArgs(
    lambda params: rule.init(
      jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
    ),
    update,
  )


def selections(
  config: config_lib.Optimizer,
) -> list[parameter_groups.Selection]:
  """The parameters that a rule, its decay and freezing are about."""
  chosen = [
    parameter_groups.Selection('optimizer.no_decay', config.no_decay),
    parameter_groups.Selection(
      'optimizer.frozen', config.frozen, can_be_all=False
    ),
  ]
  if config.name == 'muon':
    chosen.append(
      parameter_groups.Selection('optimizer.name=muon, matrices', MUON_MATRICES)
    )
  return chosen


def muon_dims(params: Any) -> Any:
  """Muon's view of each parameter; None, for Adam, where it is no matrix."""
  return parameter_groups.map_matrices(
    lambda dims: optax.contrib.MuonDimensionNumbers(dims.inputs, dims.outputs),
    MUON_MATRICES,
    params,
  )


def decay_beside(
  rule: optax.GradientTransformationExtraArgs,
  rate: Callable[[Any], Any],
  decayed: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
  """`rule` with decoupled weight decay at `rate(its state)`, masked."""

  def update(updates, state, params=None, **extra):
    new_updates, new_state = rule.update(updates, state, params, **extra)
    shrink = rate(state)
    new_updates = jax.tree.map(
      lambda decays, update, param: (
        update - (shrink * param).astype(update.dtype) if decays else update
      ),
      decayed(params),
      new_updates,
      params,
    )
    return new_updates, new_state

  return optax.GradientTransformationExtraArgs(rule.init, update)


def keep_estimate(
  rule: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """`rule` that does nothing until a gradient is not zero.

  Prodigy and D-Adaptation divide by the norm of the gradients so far.
  """

  def update(updates, state, params=None, **extra):
    new_state: Any
    new_updates, new_state = rule.update(updates, state, params, **extra)
    waits = jnp.isnan(new_state.estim_lr) & (optax.tree.norm(updates) == 0)
    kept = lambda old, new: jnp.where(waits, old, new)
    zeros = jax.tree.map(jnp.zeros_like, new_updates)
    return (
      jax.tree.map(kept, zeros, new_updates),
      jax.tree.map(kept, state, new_state),
    )

  return optax.GradientTransformationExtraArgs(rule.init, update)


def find_state(opt_state: Any, kind: Any) -> Any | None:
  """The first state of this kind inside a chain's state, or None."""
  is_kind = lambda state: isinstance(state, kind)
  found = filter(is_kind, jax.tree.leaves(opt_state, is_leaf=is_kind))
  return next(found, None)


def evaluation_params(params: Any, opt_state: Any) -> Any:
  """What to evaluate: schedule-free's average, otherwise the parameters."""
  state = find_state(opt_state, optax.contrib.ScheduleFreeState)
  if state is None:
    return params
  # Frozen parameters, which the rule does not see, are masked in its state.
  seen = jax.tree.map(
    lambda z, param: z if parameter_groups.is_masked(z) else param,
    state.z,
    params,
    is_leaf=parameter_groups.is_masked,
  )
  averaged = optax.contrib.schedule_free_eval_params(state, seen)
  return parameter_groups.merged(averaged, params)


def learning_rate(
  config: config_lib.Optimizer, num_steps: int, opt_state: Any, step: jax.Array
) -> jax.Array:
  """The rate in force, multiplied by what a rule has found.

  Of Prodigy and D-Adaptation its estimate; of DoG the distance over gradients.
  """
  rate = jnp.asarray(
    schedule_lib.make_schedule(config, num_steps)(step), jnp.float32
  )
  kinds = optax.contrib.ProdigyState, optax.contrib.DAdaptAdamWState
  estimate = find_state(opt_state, kinds)
  if estimate is not None:
    rate = rate * estimate.estim_lr
  dog = find_state(opt_state, optax.contrib.DoGState)
  if dog is not None:
    # Before the first step nothing was divided yet.
    first = dog.sum_sq_norm_grads == 0
    norm = jnp.sqrt(jnp.where(first, 1.0, dog.sum_sq_norm_grads))
    rate = rate * dog.max_dist / norm
  return rate
