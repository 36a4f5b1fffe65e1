"""Attention over parts of the keys, merged exactly.

Each part is described by its output and the log of its softmax's sum.

B batch, T query length, N query heads, K key/value heads, G query heads per
key/value head, M keys that all queries see, H head width.
"""

import jax
import jax.numpy as jnp


def merge(
  one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Attention over two sets of keys, from output and log-sum of each."""
  both_BTN = jnp.logaddexp(one[1], other[1])
  out_BTNH = sum(
    out_BTNH * jnp.exp(log_sum_BTN - both_BTN)[..., None]
    for out_BTNH, log_sum_BTN in (one, other)
  )
  return jnp.asarray(out_BTNH), both_BTN


def unmasked(
  q_BTNH: jax.Array,
  k_BMKH: jax.Array,
  v_BMKH: jax.Array,
  *,
  scale: float,
  softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """`chunked_attention.with_log_sum` over a few keys that every query sees."""
  q_BTKGH = (q_BTNH * scale).reshape(
    *q_BTNH.shape[:2], k_BMKH.shape[2], -1, q_BTNH.shape[3]
  )
  scores_BTKGM = jnp.einsum(
    'BTKGH,BMKH->BTKGM', q_BTKGH, k_BMKH, preferred_element_type=jnp.float32
  )
  if softcap:
    scores_BTKGM = softcap * jnp.tanh(scores_BTKGM / softcap)
  out_BTKGH = jnp.einsum(
    'BTKGM,BMKH->BTKGH',
    jax.nn.softmax(scores_BTKGM),
    v_BMKH.astype(jnp.float32),
  )
  log_sum_BTKG = jax.nn.logsumexp(scores_BTKGM, axis=-1)
  return out_BTKGH.reshape(q_BTNH.shape), log_sum_BTKG.reshape(q_BTNH.shape[:3])
