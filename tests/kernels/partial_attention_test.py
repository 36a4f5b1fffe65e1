"""Attention over parts of the keys against one softmax over all."""

import jax
import jax.numpy as jnp
import numpy as np

import attention_cases
from gemini_jax.kernels import chunked_attention, partial_attention

B, SCALE = attention_cases.B, attention_cases.SCALE


def test_keys_that_all_queries_see_are_like_any_others():
  """Merged with what a mask lets through: one softmax over both."""
  *qkv, mask = attention_cases.random_inputs(2)
  q_BTNH, k_BSKH, v_BSKH = attention_cases.as_float32(*qkv)
  shape = (B, 2, *k_BSKH.shape[2:])
  memory = [jax.random.normal(jax.random.key(i), shape) for i in (1, 2)]

  def merged(q, k, v, *memory):
    one = chunked_attention.with_log_sum(q, k, v, mask, scale=SCALE)
    return partial_attention.merge(
      one, partial_attention.unmasked(q, *memory, scale=SCALE)
    )[0]

  def whole(q, k, v, *memory):
    k, v = (
      jnp.concatenate(both, axis=1) for both in zip(memory, (k, v), strict=True)
    )
    seen_BTS = jnp.pad(
      mask.dense(), ((0, 0), (0, 0), (2, 0)), constant_values=1
    )
    return jax.nn.dot_product_attention(
      q, k, v, mask=seen_BTS[:, None], scale=SCALE
    )

  args = (q_BTNH, k_BSKH, v_BSKH, *memory)
  weights = jax.random.normal(jax.random.key(3), q_BTNH.shape)
  found, wanted = (
    jax.value_and_grad(lambda args, f=function: jnp.sum(f(*args) * weights))(
      args
    )
    for function in (merged, whole)
  )
  np.testing.assert_allclose(merged(*args), whole(*args), rtol=1e-4, atol=1e-5)
  for grad, other in zip(found[1], wanted[1], strict=True):
    np.testing.assert_allclose(grad, other, rtol=1e-3, atol=1e-5)
