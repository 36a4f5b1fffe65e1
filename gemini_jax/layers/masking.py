"""Who may attend to whom.

B batch, T query length, S key length.
"""

import jax
import jax.numpy as jnp

from gemini_jax import batch


def visible(
  queries: batch.Sequence,
  keys: batch.Sequence,
  *,
  causal: bool,
  window: int | None = None,
  prefix_BS: jax.Array | None = None,
) -> jax.Array:
  """bool[B, T, S]: true where a query may attend to a key.

  Args:
    queries: their segments and positions.
    keys: theirs; segment 0 is padding and never seen.
    causal: only keys at the query's position or before.
    window: only keys nearer than this many positions.
    prefix_BS: keys that all of their segment may see, past or future.
  """
  mask_BTS = queries.segments[:, :, None] == keys.segments[:, None, :]
  mask_BTS &= keys.segments[:, None, :] > 0
  distance_BTS = queries.positions[:, :, None] - keys.positions[:, None, :]
  if causal:
    past_BTS = distance_BTS >= 0
    if prefix_BS is not None:
      past_BTS |= prefix_BS[:, None, :]
    mask_BTS &= past_BTS
  if window is not None:
    mask_BTS &= jnp.abs(distance_BTS) < window
  return mask_BTS


def same_segment(queries: batch.Sequence, keys: batch.Sequence) -> jax.Array:
  """bool[B, T, S]: cross-attention inside a segment, padding unseen."""
  return (queries.segments[:, :, None] == keys.segments[:, None, :]) & (
    keys.segments[:, None, :] > 0
  )
