"""How to choose a token from logits.

B batch, V vocabulary, M groups of a vocabulary, N tokens of a group.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib

# Tokens of a group, of which a draw chooses one before it chooses a token.
_GROUP = 256


@flax.struct.dataclass
class Sampler:
  """What shapes the distribution; scalars, or [B] for each row its own.

  All are data, so another value never compiles again. The filters apply in
  this order, each to what the one before it left.

  Attributes:
    temperature: divides the logits; 0: the likeliest token.
    top_k: keep the k likeliest tokens, and those tied with the last; 0: all.
    top_p: keep the fewest likeliest tokens that together hold this
      probability (Holtzman et al. 2020), and those tied with the last.
    min_p: keep tokens at least this likely relative to the likeliest
      (Nguyen et al. 2024).
  """

  temperature: Any = 1.0
  top_k: Any = 0
  top_p: Any = 1.0
  min_p: Any = 0.0

  @classmethod
  def from_config(cls, config: config_lib.Generate) -> 'Sampler':
    """The sampler that the generate section describes."""
    return cls(config.temperature, config.top_k, config.top_p, config.min_p)

  def rows(self, batch_size: int) -> 'Sampler':
    """The same with one value a row, in types that never change."""

    def spread(value, dtype):
      return jnp.broadcast_to(jnp.asarray(value, dtype), (batch_size,))

    return Sampler(
      spread(self.temperature, jnp.float32),
      spread(self.top_k, jnp.int32),
      spread(self.top_p, jnp.float32),
      spread(self.min_p, jnp.float32),
    )


def sample(
  key_B: jax.Array,
  logits_BV: jax.Array,
  sampler: Sampler,
  forbidden_V: jax.Array | np.ndarray | None = None,
) -> jax.Array:
  """int32[B], one token a row, drawn with the row's own key."""
  logits_BV = forbid(logits_BV.astype(jnp.float32), forbidden_V)
  sampler = sampler.rows(logits_BV.shape[0])
  greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

  def sampled() -> jax.Array:
    probs_BV = jax.nn.softmax(filter_logits(logits_BV, sampler))
    return jnp.where(sampler.temperature > 0, draw(key_B, probs_BV), greedy_B)

  return jax.lax.cond(
    jnp.any(sampler.temperature > 0), sampled, lambda: greedy_B
  )


def draw(key_B: jax.Array, weights_BV: jax.Array) -> jax.Array:
  """int32[B], a token a row, as likely as its weight; never one of weight 0.

  It takes two random numbers: one for each token, as
  `jax.random.categorical` has, takes longer on a CPU than a small model does.

  Args:
    key_B: the row's own keys.
    weights_BV: float32, not negative; they need not sum to 1.
  """
  padding = -weights_BV.shape[1] % _GROUP
  groups_BMN = jnp.pad(weights_BV, ((0, 0), (0, padding))).reshape(
    len(weights_BV), -1, _GROUP
  )
  number_B2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(key_B)
  group_B = _place(jnp.sum(groups_BMN, axis=-1), number_B2[:, 0])
  group_BN = groups_BMN[jnp.arange(len(group_B)), group_B]
  return group_B * _GROUP + _place(group_BN, number_B2[:, 1])


def _place(weights_BN: jax.Array, number_B: jax.Array) -> jax.Array:
  """int32[B], where the sum of weights exceeds that share of all of them."""
  # Sums are rounded, so that only places with a weight may count.
  sums_BN = jnp.where(weights_BN > 0, jnp.cumsum(weights_BN, axis=-1), 0.0)
  share_B = number_B * jnp.max(sums_BN, axis=-1)
  return jnp.argmax(sums_BN > share_B[:, None], axis=-1).astype(jnp.int32)


def distribution(
  logits_BV: jax.Array,
  sampler: Sampler,
  forbidden_V: jax.Array | np.ndarray | None = None,
) -> jax.Array:
  """float32[B, V], the probabilities by which `sample` draws.

  At temperature 0 that is 1 for the likeliest token.
  """
  logits_BV = forbid(logits_BV.astype(jnp.float32), forbidden_V)
  sampler = sampler.rows(logits_BV.shape[0])
  drawn_BV = jax.nn.softmax(filter_logits(logits_BV, sampler))
  greedy_BV = jax.nn.one_hot(
    jnp.argmax(logits_BV, axis=-1), logits_BV.shape[1], dtype=jnp.float32
  )
  return jnp.where(sampler.temperature[:, None] > 0, drawn_BV, greedy_BV)


def forbid(
  logits_BV: jax.Array, forbidden_V: jax.Array | np.ndarray | None
) -> jax.Array:
  """Logits with -inf where a token is never to be chosen."""
  if forbidden_V is None:
    return logits_BV
  return jnp.where(forbidden_V[None, :], -jnp.inf, logits_BV)


def filter_logits(logits_BV: jax.Array, sampler: Sampler) -> jax.Array:
  """float32[B, V], scaled by temperature; -inf where filtered out."""
  sampler = sampler.rows(logits_BV.shape[0])
  hot_B = sampler.temperature > 0
  scale_B1 = jnp.where(hot_B, sampler.temperature, 1.0)[:, None]
  logits_BV = logits_BV.astype(jnp.float32)
  # From the largest down, so that a tiny temperature cannot overflow.
  logits_BV -= jnp.max(logits_BV, axis=-1, keepdims=True)
  logits_BV /= scale_B1
  # Sorting a large vocabulary is slow on a CPU: only where it is asked for.
  floor_B = jax.lax.cond(
    jnp.any((sampler.top_k > 0) | (sampler.top_p < 1)),
    _sorted_floor,
    lambda logits_BV, sampler: jnp.full_like(logits_BV[:, 0], -jnp.inf),
    logits_BV,
    sampler,
  )
  # The largest is 0, and log(0) = -inf keeps everything.
  floor_B = jnp.maximum(floor_B, jnp.log(sampler.min_p))
  return jnp.where(logits_BV >= floor_B[:, None], logits_BV, -jnp.inf)


def _sorted_floor(logits_BV: jax.Array, sampler: Sampler) -> jax.Array:
  """float32[B], the smallest logit that top_k and then top_p keep."""
  vocab_size = logits_BV.shape[-1]
  sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  top_k_B = jnp.where(sampler.top_k > 0, sampler.top_k, vocab_size)
  last_B1 = jnp.minimum(top_k_B, vocab_size)[:, None] - 1
  kth_B1 = jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
  sorted_BV = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
  probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
  before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
  # All of it is all of it, whatever the sum rounds to.
  keep_BV = (before_BV < sampler.top_p[:, None]) | (sampler.top_p >= 1)[:, None]
  keep_BV &= sorted_BV >= kth_B1
  return jnp.min(jnp.where(keep_BV, sorted_BV, jnp.inf), axis=-1)
