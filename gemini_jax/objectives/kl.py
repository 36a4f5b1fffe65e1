"""The KL term of a latent: its value, free bits, least KL and annealing.

B rows, Z numbers in z.
"""

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import forward_pass, latent
from gemini_jax.objectives import terms as terms_lib


def terms(
  config: config_lib.Model,
  output: forward_pass.ForwardOutput,
  batch: batch_lib.Batch,
  num_tokens: jax.Array,
  train: config_lib.Train | None,
) -> terms_lib.Terms:
  """`kl` and `min_kl` of a model with a latent; reports `kl` of an example."""
  if output.latent is None:
    return terms_lib.Terms()
  annealing = config_lib.KLAnnealing(free_bits=0.0)
  if train is not None:
    annealing = train.kl_annealing
  num_B = terms_lib.num_examples(batch)
  kl_BZ = divergence(
    output.latent.posterior, output.latent.prior, output.latent.z_BZ
  )
  kl_sum, losses = loss_sums(
    kl_BZ, output.latent.multiplier, num_B, config.latent.dim, annealing
  )
  return terms_lib.Terms(
    losses={name: loss / num_tokens for name, loss in losses.items()},
    sums={'kl': jnp.stack([kl_sum, jnp.sum(num_B)])},
  )


def divergence(
  posterior: latent.Normal, prior: latent.Mixture, z_BZ: jax.Array
) -> jax.Array:
  """KL(posterior || prior) of each row in nats.

  Of each dim, [B, Z], where the prior is the standard normal. A mixture's has
  no closed form: it is estimated by one draw, for all dims together, [B, 1].

  Args:
    posterior: of [B, Z].
    prior: of one row.
    z_BZ: a draw of the posterior.
  """
  if prior.logits.shape[0] == 1:
    return posterior.divergence()
  log_ratio_B = jnp.sum(posterior.log_prob(z_BZ), axis=-1) - prior.log_prob(
    z_BZ
  )
  return log_ratio_B[:, None]


def loss_sums(
  kl_BZ: jax.Array,
  multiplier: jax.Array,
  num_B: jax.Array,
  dim: int,
  annealing: config_lib.KLAnnealing,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """KL in nats, and the losses `kl` and `min_kl`, summed over rows.

  Args:
    kl_BZ: of `divergence`.
    multiplier: of the constraint `min_kl`, at least 0.
    num_B: 1 for rows that count, else 0.
    dim: Z.
    annealing: its free bits and its least KL.
  """
  rows = jnp.sum(num_B)
  kl_Z = jnp.sum(kl_BZ * num_B[:, None], axis=0)
  kl_sum = jnp.sum(kl_Z)
  kl = kl_sum
  if annealing.free_bits:
    # Of the batch's mean, so that a dim is free or not for all rows alike.
    free = annealing.free_bits * dim / kl_Z.shape[0]
    kl = jnp.sum(jnp.maximum(kl_Z, free * rows))
  missing = annealing.min_kl * rows - kl_sum
  # Descent for the model, ascent for the multiplier.
  fixed = jax.lax.stop_gradient
  min_kl = (
    fixed(multiplier) * missing - multiplier * fixed(missing)
    if annealing.min_kl
    else jnp.zeros(())
  )
  return kl_sum, {'kl': kl, 'min_kl': min_kl}


def schedule(
  annealing: config_lib.KLAnnealing, num_steps: int, step: jax.Array
) -> jax.Array:
  """Share of the KL term's weight at a step, between 0 and 1."""
  first = decoder_reset(annealing, num_steps)
  share = (step - first) / max(num_steps - first, 1)
  if annealing.schedule == 'constant':
    value = jnp.ones(())
  else:
    if annealing.schedule == 'cyclical':
      share = (share * annealing.cycles) % 1
    ramp = (share - annealing.zero_fraction) / max(
      annealing.ramp_fraction, 1e-9
    )
    value = jnp.clip(ramp, 0, 1)
  return jnp.where(step < first, 0, value)


def decoder_reset(annealing: config_lib.KLAnnealing, num_steps: int) -> int:
  """Steps without the KL term, after which the decoder starts anew; 0: none."""
  return round(annealing.pretrain_fraction * num_steps)
