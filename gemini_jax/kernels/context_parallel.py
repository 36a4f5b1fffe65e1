"""Attention whose queries and keys are split along a mesh axis.

B batch, T query length, S key length, N query heads, K key/value heads,
H head width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gemini_jax.kernels import chunked_attention, masking, partial_attention


def attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masking.Mask,
  *,
  axis: str,
  how: str,
  scale: float,
  softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """The output and the log-sum of `chunked_attention.with_log_sum`.

  To be called on each device with its own part of queries and keys, in the
  order of the axis.

  Args:
    q_BTNH: the queries of this device.
    k_BSKH: its keys.
    v_BSKH: its values.
    mask: of its queries and its keys.
    axis: name of the mesh axis.
    how: 'all_gather' brings all keys to every device at once; 'ring' passes
      them from neighbour to neighbour, so that a device never holds more than
      one part (Liu et al. 2023, Ring Attention).
    scale: as in `dot_product_attention.attention`.
    softcap: as in `dot_product_attention.attention`.
  """
  attend = functools.partial(
    chunked_attention.with_log_sum, scale=scale, softcap=softcap
  )
  rule = functools.partial(dataclasses.replace, mask, aligned=False)
  local = (
    k_BSKH,
    v_BSKH,
    mask.key_segments_BS,
    mask.key_positions_BS,
    mask.prefix_BS,
  )
  names = ('key_segments_BS', 'key_positions_BS', 'prefix_BS')
  if how == 'all_gather':
    k, v, *keys = jax.tree.map(
      lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True), local
    )
    mask = rule(**dict(zip(names, keys, strict=True)))
    return attend(q_BTNH, k, v, mask)
  assert how == 'ring', how
  size, index = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
  # Where positions rise along a row, no query sees keys of later devices.
  ordered = mask.aligned and mask.causal and mask.prefix_BS is None
  steps, length = size, q_BTNH.shape[1]
  if ordered and mask.window is not None:
    # Keys further back than the window need not be passed on.
    steps = min(size, -(-(mask.window + length - 1) // length))

  @jax.checkpoint
  def body(carry, step):
    local, total = carry
    k, v, *keys = local

    def attend_part():
      part = rule(**dict(zip(names, keys, strict=True)))
      return partial_attention.merge(total, attend(q_BTNH, k, v, part))

    later = ordered & ((index - step) % size > index)
    total = jax.lax.cond(later, lambda: total, attend_part)
    local = jax.tree.map(
      lambda x: jax.lax.ppermute(
        x, axis, [(i, (i + 1) % size) for i in range(size)]
      ),
      local,
    )
    return (local, total), None

  nothing = (
    jnp.zeros(q_BTNH.shape, jnp.float32),
    jnp.full(q_BTNH.shape[:3], 2 * chunked_attention.MASK_VALUE, jnp.float32),
  )
  (_, total), _ = jax.lax.scan(body, (local, nothing), jnp.arange(steps))
  return total
