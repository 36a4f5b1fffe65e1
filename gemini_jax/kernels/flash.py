"""Attention over grouped heads: one door, and the reference in plain XLA.

B batch, T query length, S key length, N query heads, K key/value heads,
G query heads per key/value head, H head width.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

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
  # Heads go beside the batch: XLA then sees B * K plain matrix products, each
  # of G * T queries.
  q_BKGTH = (q_BTNH * scale).reshape(B, T, K, N // K, H)
  q_BKMH = q_BKGTH.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
  k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  scores_BKMS = jnp.einsum(
    'BKMH,BKSH->BKMS', q_BKMH, k_BKSH, preferred_element_type=jnp.float32
  )
  if softcap:
    scores_BKMS = softcap * jnp.tanh(scores_BKMS / softcap)
  out_BKMH = softmax_mix(scores_BKMS, mask_BTS, v_BKSH)
  out_BKGTH = out_BKMH.reshape(B, K, N // K, T, H)
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@jax.custom_vjp
def softmax_mix(
  scores_BKMS: jax.Array, mask_BTS: jax.Array, v_BKSH: jax.Array
) -> jax.Array:
  """Values [B, K, M, H] mixed by the masked softmax of the scores, M = G T.

  Its gradient reads the softmax's output and not its steps: half the passes
  over [T, S] of what differentiation finds.
  """
  return _mix_forward(scores_BKMS, mask_BTS, v_BKSH)[0]


def _mix_forward(scores_BKMS, mask_BTS, v_BKSH):
  B, K, M, S = scores_BKMS.shape
  scores_BKGTS = scores_BKMS.reshape(B, K, -1, mask_BTS.shape[1], S)
  scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, MASK_VALUE)
  scores_BKMS = scores_BKGTS.reshape(B, K, M, S)
  exp_BKMS = jnp.exp(scores_BKMS - jnp.max(scores_BKMS, axis=-1, keepdims=True))
  # Divided after the product with the values: H numbers a row, not S.
  inverse_BKM1 = 1 / jnp.sum(exp_BKMS, axis=-1, keepdims=True)
  exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
  out_BKMH = jnp.einsum(
    'BKMS,BKSH->BKMH',
    exp_BKMS,
    v_BKSH,
    preferred_element_type=jnp.float32,
  )
  # Named here, where the gradient reads it, so that remat can keep it.
  out_BKMH = checkpoint_name(
    (out_BKMH * inverse_BKM1).astype(v_BKSH.dtype), 'attended'
  )
  return out_BKMH, (exp_BKMS, inverse_BKM1, v_BKSH, out_BKMH)


def _mix_backward(residuals, grad_BKMH):
  exp_BKMS, inverse_BKM1, v_BKSH, out_BKMH = residuals
  grad_BKMH = (grad_BKMH * inverse_BKM1).astype(v_BKSH.dtype)
  grad_v_BKSH = jnp.einsum('BKMS,BKMH->BKSH', exp_BKMS, grad_BKMH)
  grad_BKMS = jnp.einsum(
    'BKMH,BKSH->BKMS', grad_BKMH, v_BKSH, preferred_element_type=jnp.float32
  )
  mean_BKM1 = jnp.sum(
    grad_BKMH.astype(jnp.float32) * out_BKMH, axis=-1, keepdims=True
  )
  # A masked score has weight 0, and so has its gradient.
  grad_BKMS = exp_BKMS * (grad_BKMS - mean_BKM1)
  return grad_BKMS, None, grad_v_BKSH


softmax_mix.defvjp(_mix_forward, _mix_backward)
