"""Attention by JAX's Pallas kernel for TPU, which skips hidden blocks.

B batch, T length, N query heads, K key/value heads, H head width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax.kernels import masking


def attention(
  q_BTNH: jax.Array,
  k_BTKH: jax.Array,
  v_BTKH: jax.Array,
  mask: masking.Mask,
  *,
  scale: float,
  softcap: float = 0.0,
  interpret: bool = False,
) -> jax.Array:
  """`dot_product_attention.attention`, for masks that `supports` accepts.

  Args:
    q_BTNH: queries.
    k_BTKH: keys.
    v_BTKH: values.
    mask: of self-attention; positions rise along a segment.
    scale: multiplies the scores.
    softcap: scores become softcap * tanh(scores / softcap); 0: off.
    interpret: run without a TPU, slowly.
  """
  # Imported here: it is of use on a TPU alone.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  length, num_heads = q_BTNH.shape[1:3]
  # In a row of packed segments, places are as far apart as positions.
  shape = (length, length)
  rule: Any = masks.FullMask(shape)
  if mask.causal and mask.window is None:
    rule = masks.CausalMask(shape)
  elif mask.window is not None:
    past = mask.window - 1
    rule = masks.LocalMask(shape, (past, 0 if mask.causal else past), offset=0)
  block = max(n for n in (128, 256, 512, 1024) if length % n == 0)
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([rule] * num_heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=kernels.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=min(block, 512),
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=min(block, 512),
      use_fused_bwd_kernel=True,
    ),
    attn_logits_soft_cap=softcap or None,
    residual_checkpoint_name='attended',
    interpret=interpret,
  )
  q_BNTH, k_BKTH, v_BKTH = (
    x.transpose(0, 2, 1, 3) for x in (q_BTNH * scale, k_BTKH, v_BTKH)
  )
  segments_BT = jnp.broadcast_to(
    mask.query_segments_BT, (q_BTNH.shape[0], length)
  )
  out_BNTH: Any = jax.vmap(
    lambda q, k, v, segments: kernel(
      q, k, v, segment_ids=kernels.SegmentIds(segments, segments)
    )
  )(q_BNTH, k_BKTH, v_BKTH, segments_BT)
  return out_BNTH.transpose(0, 2, 1, 3).astype(v_BTKH.dtype)


def supports(mask: masking.Mask) -> bool:
  """Whether the kernel can apply this mask."""
  length = mask.query_segments_BT.shape[1]
  return mask.aligned and mask.prefix_BS is None and length % 128 == 0
