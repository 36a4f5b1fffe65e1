"""The Pallas kernel, interpreted, against plain XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_cases
from gemini_jax.kernels import dot_product_attention, splash_attention

SCALE = attention_cases.SCALE


@pytest.mark.parametrize(
  'rule',
  [
    {'causal': True},
    {'causal': True, 'window': 40},
    {'window': 40},
    {},
    {'causal': True, 'softcap': 2.0},
  ],
  ids=str,
)
def test_splash_is_the_same_attention(rule):
  """Interpreted, where there is no TPU; padding sees what it likes."""
  softcap = rule.get('softcap', 0.0)
  rule = {name: value for name, value in rule.items() if name != 'softcap'}
  *qkv, mask = attention_cases.packed_inputs(128, **rule)
  qkv = attention_cases.as_float32(*qkv)
  real = mask.query_segments_BT[..., None, None] > 0
  weights = real * jax.random.normal(jax.random.key(1), qkv[0].shape)

  def total(qkv, attend):
    out = attend(*qkv, mask, scale=SCALE, softcap=softcap)
    return jnp.sum(out * weights), out * real

  evaluate = jax.jit(jax.grad(total, has_aux=True), static_argnames='attend')
  grads, out = evaluate(
    qkv, attend=functools.partial(splash_attention.attention, interpret=True)
  )
  expected, wanted = evaluate(qkv, attend=dot_product_attention.attention)
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
  for grad, want in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-3)
