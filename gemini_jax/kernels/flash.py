"""Attention over grouped heads: one door, and the reference in plain XLA.

B batch, T query length, S key length, N query heads, K key/value heads,
G query heads per key/value head, H head width.
"""

import jax
import jax.numpy as jnp

# Finite, so that a row which sees nothing gives a mean and not NaN.
MASK_VALUE = -1e30


def attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask_BTS: jax.Array,
  *,
  scale: float,
  softcap: float = 0.0,
) -> jax.Array:
  """Softmax attention of N query heads over K shared key/value heads.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; K divides N.
    v_BSKH: values.
    mask_BTS: bool, true where a query may attend; B may be 1.
    scale: multiplies the scores.
    softcap: scores become softcap * tanh(scores / softcap); 0: off.

  Returns:
    [B, T, N, H] in the type of the values; softmax in float32.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  # Heads go beside the batch: XLA then sees B*K plain matrix products.
  q_BKGTH = (
    (q_BTNH * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  )
  k_BKSH = k_BSKH.transpose(0, 2, 1, 3)
  v_BKSH = v_BSKH.transpose(0, 2, 1, 3)
  scores_BKGTS = jnp.einsum(
    'BKGTH,BKSH->BKGTS',
    q_BKGTH,
    k_BKSH,
    preferred_element_type=jnp.float32,
  )
  if softcap:
    scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
  scores_BKGTS = jnp.where(
    mask_BTS[:, None, None, :, :], scores_BKGTS, MASK_VALUE
  )
  weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
  out_BKGTH = jnp.einsum('BKGTS,BKSH->BKGTH', weights_BKGTS, v_BKSH)
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
