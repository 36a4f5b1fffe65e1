"""Inputs of attention, and attention by plain loops.

B batch, T query length, S key length, N query heads, K key/value heads,
H head width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import toy
from gemini_jax import batch
from gemini_jax.kernels import masking

B, T, S, N, H = 2, 5, 7, 4, 6
SCALE = 0.4


def random_inputs(num_kv_heads, seed=0, length=T):
  """Queries, keys, values and a mask in which every row sees something."""
  rng = np.random.default_rng(seed)
  q_BTNH = rng.normal(size=(B, length, N, H))
  k_BSKH = rng.normal(size=(B, S, num_kv_heads, H))
  v_BSKH = rng.normal(size=(B, S, num_kv_heads, H))
  key_segments_BS = rng.integers(0, 3, size=(B, S))
  key_segments_BS[:, 2:4] = [1, 2]
  mask = masking.Mask(
    rng.integers(1, 3, size=(B, length)),
    np.zeros((B, length), int),
    key_segments_BS,
    np.zeros((B, S), int),
  )
  return q_BTNH, k_BSKH, v_BSKH, mask


def packed_inputs(length, num_kv_heads=2, seed=0, **rule):
  """Self-attention over three packed records and padding."""
  rng = np.random.default_rng(seed)
  qkv = [
    rng.normal(size=(B, length, heads, H))
    for heads in (N, num_kv_heads, num_kv_heads)
  ]
  cuts_B3 = np.sort(rng.integers(1, length, size=(B, 3)), axis=1)
  slots_BT = np.broadcast_to(np.arange(length), (B, length))
  record_BT = np.sum(slots_BT[..., None] >= cuts_B3[:, None], axis=-1)
  starts_B4 = np.concatenate([np.zeros((B, 1), int), cuts_B3], axis=1)
  sequence = batch.Sequence(
    None,
    slots_BT - np.take_along_axis(starts_B4, record_BT, axis=1),
    np.where(record_BT == 3, 0, record_BT + 1),
  )
  return *qkv, masking.visible(sequence, sequence, **rule)


def reference(q_BTNH, k_BSKH, v_BSKH, mask, softcap=0.0, scale=SCALE):
  """One query and one head at a time, over the keys it may see."""
  mask_BTS = np.asarray(mask.dense())
  out_BTNH = np.zeros(q_BTNH.shape)
  group = q_BTNH.shape[2] // k_BSKH.shape[2]
  for b, t, n in np.ndindex(q_BTNH.shape[:3]):
    seen = mask_BTS[min(b, len(mask_BTS) - 1), t]
    if not seen.any():
      continue
    scores = k_BSKH[b, seen, n // group] @ q_BTNH[b, t, n] * scale
    if softcap:
      scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max())
    out_BTNH[b, t, n] = weights / weights.sum() @ v_BSKH[b, seen, n // group]
  return out_BTNH


def dense(q_BTNH, k_BSKH, v_BSKH, mask):
  """Attention as the textbook writes it; unseen rows are 0."""
  group = N // k_BSKH.shape[2]
  k_BSNH, v_BSNH = (jnp.repeat(x, group, axis=2) for x in (k_BSKH, v_BSKH))
  scores_BNTS = jnp.einsum('BTNH,BSNH->BNTS', q_BTNH, k_BSNH) * SCALE
  seen_B1TS = mask.dense()[:, None]
  scores_BNTS = jnp.where(seen_B1TS, scores_BNTS, -1e9)
  weights_BNTS = jax.nn.softmax(scores_BNTS, axis=-1)
  weights_BNTS = jnp.where(seen_B1TS, weights_BNTS, 0)
  return jnp.einsum('BNTS,BSNH->BTNH', weights_BNTS, v_BSNH)


def as_float32(*arrays):
  return [jnp.asarray(array, jnp.float32) for array in arrays]


def evaluate(qkv, attend):
  """(gradients of a random projection, output); compiled anew each time."""

  def total(qkv):
    out = attend(*qkv)
    return jnp.sum(out * toy.normal(out.shape, 1)), out

  return jax.jit(jax.grad(total, has_aux=True))(qkv)


@functools.cache
def expected_of(length, **rule):
  """Packed inputs, their mask, and what `dense` makes of them, evaluated."""
  *qkv, mask = packed_inputs(length, **rule)
  qkv = as_float32(*qkv)
  return qkv, mask, evaluate(qkv, lambda *qkv: dense(*qkv, mask))
