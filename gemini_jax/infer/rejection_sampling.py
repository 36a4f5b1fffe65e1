"""Which drafted tokens stay, so that the text is as drawn from the target.

Leviathan et al. 2023, section 2.3.

B rows, K drafted tokens, V vocabulary, M = K + 1.
"""

import jax
import jax.numpy as jnp

from gemini_jax.infer import sampling


def verify(
  accept_keys_BK: jax.Array,
  correct_keys_BM: jax.Array,
  draft_BK: jax.Array,
  draft_probs_BKV: jax.Array,
  target_probs_BMV: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """How many drafted tokens are accepted, and the token that follows them.

  A token is accepted with probability min(1, p / q), p under the target and q
  under the draft. The first one that is not is replaced by a draw from
  max(p - q, 0); after all of them comes a draw from p.

  Args:
    accept_keys_BK: to accept a token by.
    correct_keys_BM: to draw the token that follows.
    draft_BK: drafted tokens.
    draft_probs_BKV: q of every token where these were drawn.
    target_probs_BMV: p there, and after the last one.

  Returns:
    int32[B] between 0 and K, and int32[B].
  """
  place = lambda probs_BKV: jnp.take_along_axis(
    probs_BKV, draft_BK[..., None], axis=-1
  )[..., 0]
  uniform_BK = jax.vmap(jax.vmap(jax.random.uniform))(accept_keys_BK)
  is_accepted_BK = uniform_BK * place(draft_probs_BKV) < place(
    target_probs_BMV[:, :-1]
  )
  num_B = jnp.sum(jnp.cumprod(is_accepted_BK, axis=1), axis=1)
  at = lambda values: values[jnp.arange(len(num_B)), num_B]
  target_BV = at(target_probs_BMV)
  # Nothing is drafted after the last one.
  draft_BV = at(jnp.pad(draft_probs_BKV, ((0, 0), (0, 1), (0, 0))))
  residual_BV = jnp.maximum(target_BV - draft_BV, 0)
  # Where only rounding has rejected a token nothing may be left.
  is_empty_B1 = jnp.sum(residual_BV, axis=-1, keepdims=True) <= 0
  residual_BV = jnp.where(is_empty_B1, target_BV, residual_BV)
  keys_B = at(correct_keys_BM)
  return num_B.astype(jnp.int32), sampling.draw(keys_B, residual_BV)
