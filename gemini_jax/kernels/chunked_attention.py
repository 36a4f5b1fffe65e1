"""Attention in plain XLA, chunk by chunk, memory linear in the lengths.

B batch, T query length, S key length, N query heads, K key/value heads,
G query heads per key/value head, M = G T, H head width.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemini_jax.kernels import masking

# Finite, so that a row which sees nothing gives 0 and not NaN.
MASK_VALUE = -1e30
# Queries are cut into at most this many bands of at least this many, each
# with the range of keys that it can see at all.
_BANDS, _BAND = 8, 64
# Most scores held at one time, unless a chunk of _BAND queries has more.
_SCORES = 2**24
# With at most this many scores in total, their exponentials are kept for the
# gradient.
_KEPT = 2**22


def with_log_sum(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masking.Mask,
  *,
  scale: float,
  softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Softmax attention, and the log of the softmax's sum, float32[B, T, N].

  From both, `partial_attention.merge` combines several sets of keys exactly.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  # Heads go beside the batch: XLA then sees B * K plain matrix products, each
  # of G * T queries.
  q_BKGTH = (
    (q_BTNH * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  )
  k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  outputs: Any = _chunked(softcap, q_BKGTH, k_BKSH, v_BKSH, mask)
  out_BKGTH, log_sum_BKGT = outputs
  return (
    out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H),
    log_sum_BKGT.transpose(0, 3, 1, 2).reshape(B, T, N),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(softcap, q_BKGTH, k_BKSH, v_BKSH, mask):
  """Attention band by band; the gradient recomputes the scores.

  FlashAttention-2 (Dao 2023), section 3.1, in plain XLA. Where there are few
  scores, their exponentials are kept instead.
  """
  return _chunked_forward(softcap, q_BKGTH, k_BKSH, v_BKSH, mask)[0]


def _chunked_forward(softcap, q_BKGTH, k_BKSH, v_BKSH, mask):
  bands = _bands(mask, q_BKGTH.shape)
  keeps = not softcap and _few(bands, q_BKGTH.shape)

  def band(start, stop, size, low, high):
    def chunk(_, rows):
      scores_BKMS = _scores(
        softcap, _rows(q_BKGTH, rows), k_BKSH, mask, rows, (low, high)
      )
      max_BKM1 = jnp.max(scores_BKMS, axis=-1, keepdims=True)
      max_BKM1 = jnp.maximum(max_BKM1, MASK_VALUE / 2)
      exp_BKMS = jnp.exp(scores_BKMS - max_BKM1)
      sum_BKM1 = jnp.sum(exp_BKMS, axis=-1, keepdims=True)
      sum_BKM1 = jnp.maximum(sum_BKM1, 1e-30)
      out_BKMH = jnp.einsum(
        'BKMS,BKSH->BKMH',
        exp_BKMS.astype(v_BKSH.dtype),
        v_BKSH[:, :, low:high],
        preferred_element_type=jnp.float32,
      )
      # Divided after the product with the values: H numbers a row, not S.
      inverse_BKM1 = 1 / sum_BKM1
      out_BKMH = (out_BKMH * inverse_BKM1).astype(v_BKSH.dtype)
      groups = (*q_BKGTH.shape[:3], size)
      log_sum_BKM1 = max_BKM1 + jnp.log(sum_BKM1)
      kept = (exp_BKMS, inverse_BKM1) if keeps else ()
      return kept, (out_BKMH.reshape(*groups, -1), log_sum_BKM1.reshape(groups))

    return _over_chunks(chunk, (), start, stop, size)

  kept, parts = zip(*(band(*limits) for limits in bands), strict=True)
  out_BKGTH, log_sum_BKGT = (
    jnp.concatenate(leaves, axis=3) for leaves in zip(*parts, strict=True)
  )
  # Named here, where the gradient reads them, so that remat can keep them.
  out_BKGTH = checkpoint_name(out_BKGTH, 'attended')
  log_sum_BKGT = checkpoint_name(log_sum_BKGT, 'attended')
  residuals = (q_BKGTH, k_BKSH, v_BKSH, mask, out_BKGTH, log_sum_BKGT, kept)
  return (out_BKGTH, log_sum_BKGT), residuals


def _chunked_backward(softcap, residuals, grads):
  q_BKGTH, k_BKSH, v_BKSH, mask, out_BKGTH, log_sum_BKGT, kept = residuals
  grad_BKGTH, grad_log_sum_BKGT = grads
  # The weights of a row sum to one: their mean gradient is subtracted.
  mean_BKGT = grad_log_sum_BKGT - jnp.sum(
    grad_BKGTH.astype(jnp.float32) * out_BKGTH.astype(jnp.float32), axis=-1
  )

  def band(kept, start, stop, size, low, high):
    k, v = k_BKSH[:, :, low:high], v_BKSH[:, :, low:high]

    def chunk(total, rows):
      q_BKMH, grad_BKMH = _rows(q_BKGTH, rows), _rows(grad_BKGTH, rows)
      mean_BKM1 = _rows(mean_BKGT, rows)[..., None]
      if kept:
        # Divided in the gradient of the output: H numbers a row, not S.
        weights_BKMS, inverse_BKM1 = kept
        grad_BKMH = (grad_BKMH * inverse_BKM1).astype(v.dtype)
        mean_BKM1 = mean_BKM1 * inverse_BKM1
      else:
        scores_BKMS = _scores(softcap, q_BKMH, k_BKSH, mask, rows, (low, high))
        log_sum_BKM1 = _rows(log_sum_BKGT, rows)[..., None]
        weights_BKMS = jnp.exp(scores_BKMS - log_sum_BKM1)
      grad_v_BKSH = jnp.einsum(
        'BKMS,BKMH->BKSH',
        weights_BKMS.astype(v.dtype),
        grad_BKMH,
        preferred_element_type=jnp.float32,
      )
      grad_BKMS = jnp.einsum(
        'BKMH,BKSH->BKMS', grad_BKMH, v, preferred_element_type=jnp.float32
      )
      # A masked score has weight 0, and so has its gradient.
      grad_BKMS = weights_BKMS * (grad_BKMS + mean_BKM1)
      if softcap:
        slope_BKMS = 1 - jnp.square(scores_BKMS / softcap)
        grad_BKMS *= jnp.where(weights_BKMS > 0, slope_BKMS, 0)
      grad_BKMS = grad_BKMS.astype(k.dtype)
      grad_q_BKMH = jnp.einsum('BKMS,BKSH->BKMH', grad_BKMS, k)
      grad_k_BKSH = jnp.einsum(
        'BKMS,BKMH->BKSH', grad_BKMS, q_BKMH, preferred_element_type=jnp.float32
      )
      total = jax.tree.map(jnp.add, total, (grad_k_BKSH, grad_v_BKSH))
      return total, grad_q_BKMH.reshape(*q_BKGTH.shape[:3], size, -1)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (k, v))
    total, grad_q_BKGTH = _over_chunks(chunk, zeros, start, stop, size)
    around = ((0, 0), (0, 0), (low, k_BKSH.shape[2] - high), (0, 0))
    return grad_q_BKGTH, *(jnp.pad(x, around) for x in total)

  bands = [
    band(part, *limits)
    for part, limits in zip(kept, _bands(mask, q_BKGTH.shape), strict=True)
  ]
  grads_q, grads_k, grads_v = zip(*bands, strict=True)
  return (
    jnp.concatenate(grads_q, axis=3),
    functools.reduce(jnp.add, grads_k).astype(k_BKSH.dtype),
    functools.reduce(jnp.add, grads_v).astype(v_BKSH.dtype),
    None,
  )


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _bands(mask, shape):
  """(start, stop, chunk size, low, high) of each band's queries and keys."""
  B, K, G, T, _ = shape
  count = max(
    n
    for n in range(1, _BANDS + 1)
    if n == 1 or (T % n == 0 and T // n >= _BAND)
  )
  if mask.reach(0, T // count) == mask.reach(T - T // count, T):
    count = 1
  size = T // count
  bands = []
  for start in range(0, T, size):
    low, high = mask.reach(start, start + size)
    limit = max(_SCORES // (B * K * G * (high - low)), _BAND)
    chunk = max(n for n in range(1, min(size, limit) + 1) if size % n == 0)
    bands.append((start, start + size, chunk, low, high))
  return bands


def _few(bands, shape):
  """Whether the scores are few in total and each band is one chunk."""
  scores = sum(
    (stop - start) * (high - low) for start, stop, _, low, high in bands
  )
  whole = all(stop - start == size for start, stop, size, *_ in bands)
  return whole and math.prod(shape[:3]) * scores <= _KEPT


def _over_chunks(chunk, carry, start, stop, size):
  """Runs chunks of queries in turn; joins their outputs, [B, K, G, T...]."""
  if stop - start == size:
    return chunk(carry, (start, size))
  carry, parts = jax.lax.scan(
    lambda carry, at: chunk(carry, (at, size)),
    carry,
    jnp.arange(start, stop, size),
  )

  def join(x):
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])

  return carry, jax.tree.map(join, parts)


def _rows(x_BKGTX, rows):
  """The queries at (start, size), their groups in one row: [B, K, M, ...]."""
  x = jax.lax.dynamic_slice_in_dim(x_BKGTX, *rows, axis=3)
  return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _scores(softcap, q_BKMH, k_BKSH, mask, rows, keys):
  """Masked scores, float32[B, K, M, S], of (start, size) and [low, high)."""
  low, high = keys
  scores_BKMS = jnp.einsum(
    'BKMH,BKSH->BKMS',
    q_BKMH,
    k_BKSH[:, :, low:high],
    preferred_element_type=jnp.float32,
  )
  if softcap:
    scores_BKMS = softcap * jnp.tanh(scores_BKMS / softcap)
  seen_BTS = mask.part(rows, (low, high - low)).dense()
  B, K, M, S = scores_BKMS.shape
  scores_BKGTS = scores_BKMS.reshape(B, K, -1, rows[1], S)
  scores_BKGTS = jnp.where(seen_BTS[:, None, None], scores_BKGTS, MASK_VALUE)
  return scores_BKGTS.reshape(B, K, M, S)
