"""Attention over grouped heads: the choice of its implementation.

B batch, T query length, S key length, N query heads, K key/value heads,
H head width.
"""

from typing import Any

import jax

from gemini_jax import config
from gemini_jax.kernels import chunked_attention, masking, splash_attention

# Implementations and their platforms; 'auto' takes the first of a platform.
# cudnn comes last: for packed rows it needs a dense mask, T times S numbers.
IMPLEMENTATIONS = {
  'splash': ('tpu',),
  'chunked': ('cpu', 'tpu', 'gpu', 'cuda', 'rocm'),
  'cudnn': ('gpu', 'cuda'),
}


def choose(name: str, platform: str, *, plain: str = '') -> str:
  """The implementation that 'auto' or a name means on a platform.

  Args:
    name: asked for.
    platform: of the devices.
    plain: a feature of the model that only chunked supports; '': none.

  Raises:
    ConfigError: the platform lacks the implementation asked for by name.
  """
  available = [
    key for key, platforms in IMPLEMENTATIONS.items() if platform in platforms
  ]
  if plain:
    available = ['chunked']
  if name == 'auto':
    return available[0]
  config.check(
    name in available,
    f'model.attention_kernel={name!r} does not exist on {platform}'
    f'{f" with {plain}" if plain else ""}; use '
    f'{", ".join(["auto", *available])}',
  )
  return name


def attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masking.Mask,
  *,
  scale: float,
  softcap: float = 0.0,
  implementation: str = 'chunked',
) -> jax.Array:
  """Softmax attention of N query heads over K shared key/value heads.

  Args:
    q_BTNH: queries.
    k_BSKH: keys; K divides N.
    v_BSKH: values.
    mask: where a query may attend; a query that sees no key gives 0.
    scale: multiplies the scores.
    softcap: scores become softcap * tanh(scores / softcap); 0: off.
    implementation: of IMPLEMENTATIONS. Chunked replaces splash for masks that
      are not of self-attention, prefixes, and lengths that 128 does not divide;
      it replaces cudnn for the one query of a decode step.

  Returns:
    [B, T, N, H] in the type of the values; softmax in float32.
  """
  options: dict[str, Any] = {'scale': scale, 'softcap': softcap}
  if implementation == 'splash' and splash_attention.supports(mask):
    return splash_attention.attention(q_BTNH, k_BSKH, v_BSKH, mask, **options)
  if implementation == 'cudnn' and q_BTNH.shape[1] > 1:
    # Its program for a dense mask; cuDNN has none for segments through jax.
    return jax.nn.dot_product_attention(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      mask=mask.dense()[:, None],
      scale=scale,
      implementation='cudnn',
    )
  return chunked_attention.with_log_sum(
    q_BTNH, k_BSKH, v_BSKH, mask, **options
  )[0]
