"""Attention against plain loops in float64, in value and gradient."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_cases
from gemini_jax import config
from gemini_jax.kernels import dot_product_attention

B, S, N, H, SCALE = (
  attention_cases.B,
  attention_cases.S,
  attention_cases.N,
  attention_cases.H,
  attention_cases.SCALE,
)


@functools.partial(jax.jit, static_argnames='softcap')
def attend(q_BTNH, k_BSKH, v_BSKH, mask, softcap=0.0):
  return dot_product_attention.attention(
    q_BTNH, k_BSKH, v_BSKH, mask, scale=SCALE, softcap=softcap
  )


@functools.partial(jax.jit, static_argnames='softcap')
def gradients(qkv, mask, weights_BTNH, softcap=0.0):
  """Of the weighted sum of the outputs, by queries, keys and values."""
  return jax.grad(
    lambda qkv: jnp.sum(attend(*qkv, mask, softcap=softcap) * weights_BTNH)
  )(qkv)


@pytest.mark.parametrize('softcap', [0.0, 0.7])
@pytest.mark.parametrize('num_kv_heads', [1, 2, N])
def test_equals_the_loop(num_kv_heads, softcap):
  *qkv, mask = attention_cases.random_inputs(num_kv_heads)
  out_BTNH = attend(*attention_cases.as_float32(*qkv), mask, softcap=softcap)
  expected = attention_cases.reference(*qkv, mask, softcap)
  np.testing.assert_allclose(out_BTNH, expected, rtol=2e-5, atol=2e-6)
  # The cap is low enough to matter.
  plain = attention_cases.reference(*qkv, mask)
  assert (abs(expected - plain).max() > 0.1) == bool(softcap)


@pytest.mark.parametrize('softcap', [0.0, 0.7])
@pytest.mark.parametrize('num_kv_heads', [1, 2, N])
def test_gradients_equal_finite_differences(num_kv_heads, softcap):
  *qkv, mask = attention_cases.random_inputs(num_kv_heads, seed=1)
  rng = np.random.default_rng(2)
  weights_BTNH = rng.normal(size=qkv[0].shape)
  grads = gradients(
    attention_cases.as_float32(*qkv),
    mask,
    *attention_cases.as_float32(weights_BTNH),
    softcap=softcap,
  )
  for i, grad in enumerate(grads):
    # Along random directions: one number tells of every element.
    for _ in range(3):
      direction = rng.normal(size=grad.shape)
      ends = []
      for step in (1e-5, -1e-5):
        moved = [*qkv]
        moved[i] = qkv[i] + step * direction
        out_BTNH = attention_cases.reference(*moved, mask, softcap)
        ends.append(np.sum(out_BTNH * weights_BTNH))
      expected = (ends[0] - ends[1]) / 2e-5
      np.testing.assert_allclose(
        np.sum(np.asarray(grad, float) * direction), expected, rtol=1e-4
      )


def test_hidden_keys_have_no_influence_at_all():
  """A hidden value may be anything finite; its gradient is exactly zero."""
  q_BTNH, k_BSKH, v_BSKH, mask = attention_cases.random_inputs(2)
  mask.key_segments_BS[:, 4] = 0
  q_BTNH, k_BSKH, v_BSKH = attention_cases.as_float32(q_BTNH, k_BSKH, v_BSKH)
  out = attend(q_BTNH, k_BSKH, v_BSKH, mask)
  huge = attend(
    q_BTNH, k_BSKH.at[:, 4].set(1e4), v_BSKH.at[:, 4].set(1e4), mask
  )
  np.testing.assert_array_equal(out, huge)
  grads = gradients([q_BTNH, k_BSKH, v_BSKH], mask, out)
  for grad in grads[1:]:
    assert not np.any(grad[:, 4])
    assert np.all(np.any(np.delete(grad, 4, 1), axis=(0, 2, 3)))


@pytest.mark.parametrize('softcap', [0.0, 0.7])
def test_rows_that_see_nothing_are_zero(softcap):
  *inputs, mask = attention_cases.random_inputs(2)
  mask.query_segments_BT[0, 1] = 3
  qkv = attention_cases.as_float32(*inputs)
  out = attend(*qkv, mask, softcap=softcap)
  assert not np.any(out[0, 1])
  # The other rows do not notice.
  np.testing.assert_allclose(
    out, attention_cases.reference(*inputs, mask, softcap), rtol=2e-5, atol=2e-6
  )
  weights_BTNH = np.ones(out.shape, np.float32)
  grads = gradients(qkv, mask, weights_BTNH, softcap=softcap)
  assert not np.any(grads[0][0, 1]) and np.all(np.any(grads[0][1], axis=-1))
  for grad in grads:
    assert np.all(np.isfinite(grad))


def test_one_mask_serves_the_whole_batch():
  *qkv, mask = attention_cases.random_inputs(2)
  qkv, one = (
    attention_cases.as_float32(*qkv),
    jax.tree.map(lambda leaf: leaf[:1], mask),
  )
  np.testing.assert_array_equal(
    attend(*qkv, one),
    attend(*qkv, jax.tree.map(lambda leaf: np.repeat(leaf, B, axis=0), one)),
  )


@pytest.mark.parametrize('length', [1, 3])
def test_few_queries_of_a_decoding_step(length):
  *qkv, mask = attention_cases.random_inputs(2, seed=3, length=length)
  out = attend(*attention_cases.as_float32(*qkv), mask)
  assert out.shape == (B, length, N, H)
  np.testing.assert_allclose(
    out, attention_cases.reference(*qkv, mask), rtol=2e-5, atol=2e-6
  )


def test_large_scores_do_not_overflow():
  q_BTNH, k_BSKH, v_BSKH, mask = attention_cases.random_inputs(2)
  inputs = (q_BTNH * 100, k_BSKH * 100, v_BSKH)
  out = attend(*attention_cases.as_float32(*inputs), mask)
  np.testing.assert_allclose(
    out, attention_cases.reference(*inputs, mask), rtol=1e-3, atol=1e-3
  )


def test_bfloat16_keeps_the_softmax_in_float32():
  """The error is that of rounding inputs and weights, not of a sum in it."""
  *qkv, mask = attention_cases.random_inputs(2)
  low = [
    array.astype(jnp.bfloat16) for array in attention_cases.as_float32(*qkv)
  ]
  out = attend(*low, mask)
  assert out.dtype == jnp.bfloat16
  expected = attention_cases.reference(
    *[np.asarray(x, float) for x in low], mask
  )
  np.testing.assert_allclose(np.asarray(out, float), expected, atol=0.03)
  program = str(jax.make_jaxpr(lambda *inputs: attend(*inputs))(*low, mask))
  assert set(re.findall(r':(\w+)\[\S*\] = exp2? ', program)) == {'f32'}


@pytest.mark.parametrize(
  ('name', 'platform', 'chosen'),
  [
    ('auto', 'cpu', 'chunked'),
    ('auto', 'tpu', 'splash'),
    ('auto', 'gpu', 'chunked'),
    ('cudnn', 'gpu', 'cudnn'),
    ('chunked', 'tpu', 'chunked'),
    ('splash', 'tpu', 'splash'),
  ],
)
def test_auto_takes_the_best_of_the_platform(name, platform, chosen):
  assert dot_product_attention.choose(name, platform) == chosen


def test_a_kernel_asked_for_by_name_must_be_there():
  with pytest.raises(config.ConfigError) as caught:
    dot_product_attention.choose('splash', 'cpu')
  assert str(caught.value) == (
    "model.attention_kernel='splash' does not exist on cpu; use auto, chunked"
  )
  # Nor can it do all that is asked for.
  assert (
    dot_product_attention.choose('auto', 'tpu', plain='a latent') == 'chunked'
  )
  with pytest.raises(config.ConfigError, match='with a latent'):
    dot_product_attention.choose('splash', 'tpu', plain='a latent')
