"""What is minimised, as sums with their weights beside them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy


def weights_at(config: config_lib.Config, step: jax.Array) -> dict[str, Any]:
  """The weight of each term beside the cross-entropy, at a step."""
  weights = dict(vars(config.loss_weights))
  course = kl_schedule(config.train.kl_annealing, config.train.num_steps, step)
  return weights | {'kl': weights['kl'] * course}


def kl_schedule(
  kl_annealing: config_lib.KLAnnealing, num_steps: int, step: jax.Array
) -> jax.Array:
  """Between 0 and 1: how much of the KL term's weight there is at a step."""
  first = decoder_reset(kl_annealing, num_steps)
  share = (step - first) / max(num_steps - first, 1)
  if kl_annealing.schedule == 'constant':
    course = jnp.ones(())
  else:
    if kl_annealing.schedule == 'cyclical':
      share = (share * kl_annealing.cycles) % 1
    rise = (share - kl_annealing.zero_fraction) / max(
      kl_annealing.ramp_fraction, 1e-9
    )
    course = jnp.clip(rise, 0, 1)
  return jnp.where(step < first, 0, course)


def decoder_reset(kl_annealing: config_lib.KLAnnealing, num_steps: int) -> int:
  """Steps of autoencoding, after which the decoder starts anew; 0: none."""
  return round(kl_annealing.pretrain_fraction * num_steps)


def media_means(terms: Mapping[str, Any]) -> dict[str, Any]:
  """Means of the terms that are [sum, what it is over]: those of media."""
  return {
    name: total[0] / jnp.maximum(total[1], 1)
    for name, total in terms.items()
    if jnp.ndim(total)
  }


def model_sums(
  model: Any,
  params: Any,
  batch: batch_lib.Batch,
  *,
  key: jax.Array | None = None,
  config: config_lib.Train | None = None,
  loss_weights: dict[str, Any] | None = None,
) -> cross_entropy.Sums:
  """The sums of one batch; `config` None is the evaluation mode.

  What the model returns in `aux` enters the objective by the weight of its
  name, per token; a name without a weight is an error. Without any weights, as
  in evaluation, the objective is the cross-entropy alone.

  Args:
    model: a Gemini.
    params: of the model.
    batch: to be summed over.
    key: of the randomness; None: a function of the batch.
    config: of the training.
    loss_weights: of `weights_at`.
  """
  weights = loss_weights or {}
  trains = config is not None
  if key is None:
    number = jnp.sum(batch.targets.astype(jnp.uint32))
    key = jax.random.fold_in(jax.random.key(0), number)
  rngs = {'latent': jax.random.fold_in(key, 1)}
  if trains:
    rngs['dropout'] = key
  sums, aux = model.apply(
    {'params': params},
    batch,
    deterministic=not trains,
    label_smoothing=config.label_smoothing if trains else 0.0,
    z_loss=weights.get('z_loss', 0.0),
    kl_annealing=config.kl_annealing if trains else None,
    rngs=rngs,
    method='sums',
  )
  extra = 0.0
  if loss_weights is not None:
    extra = sum((weights[name] * value for name, value in aux.items()), 0.0)
  return dataclasses.replace(
    sums, objective=sums.objective + extra * sums.weight
  )
