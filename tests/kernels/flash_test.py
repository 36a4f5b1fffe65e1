"""Attention against plain loops in float64, in value and gradient.

B batch, T query length, S key length, N query heads, K key/value heads,
H head width.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax.kernels import flash

B, T, S, N, H = 2, 5, 7, 4, 6
SCALE = 0.4


def random_inputs(num_kv_heads, seed=0, length=T):
  """Queries, keys, values and a mask in which every row sees something."""
  rng = np.random.default_rng(seed)
  q_BTNH = rng.normal(size=(B, length, N, H))
  k_BSKH = rng.normal(size=(B, S, num_kv_heads, H))
  v_BSKH = rng.normal(size=(B, S, num_kv_heads, H))
  mask_BTS = rng.random((B, length, S)) < 0.6
  mask_BTS[..., 2] = True
  return q_BTNH, k_BSKH, v_BSKH, mask_BTS


def reference(q_BTNH, k_BSKH, v_BSKH, mask_BTS, softcap=0.0, scale=SCALE):
  """One query and one head at a time, over the keys it may see."""
  out_BTNH = np.zeros(q_BTNH.shape)
  group = q_BTNH.shape[2] // k_BSKH.shape[2]
  for b, t, n in np.ndindex(q_BTNH.shape[:3]):
    seen = mask_BTS[min(b, len(mask_BTS) - 1), t]
    scores = k_BSKH[b, seen, n // group] @ q_BTNH[b, t, n] * scale
    if softcap:
      scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max())
    out_BTNH[b, t, n] = weights / weights.sum() @ v_BSKH[b, seen, n // group]
  return out_BTNH


@functools.partial(jax.jit, static_argnames='softcap')
def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, softcap=0.0):
  return flash.attention(
    q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale=SCALE, softcap=softcap
  )


@functools.partial(jax.jit, static_argnames='softcap')
def gradients(qkv, mask_BTS, weights_BTNH, softcap=0.0):
  """Of the weighted sum of the outputs, by queries, keys and values."""
  return jax.grad(
    lambda qkv: jnp.sum(attend(*qkv, mask_BTS, softcap=softcap) * weights_BTNH)
  )(qkv)


def as_float32(*arrays):
  return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize('softcap', [0.0, 0.7])
@pytest.mark.parametrize('num_kv_heads', [1, 2, N])
def test_equals_the_loop(num_kv_heads, softcap):
  *qkv, mask_BTS = random_inputs(num_kv_heads)
  out_BTNH = attend(*as_float32(*qkv), mask_BTS, softcap=softcap)
  expected = reference(*qkv, mask_BTS, softcap)
  np.testing.assert_allclose(out_BTNH, expected, rtol=2e-5, atol=2e-6)
  # The cap is low enough to matter.
  plain = reference(*qkv, mask_BTS)
  assert (abs(expected - plain).max() > 0.1) == bool(softcap)


@pytest.mark.parametrize('softcap', [0.0, 0.7])
@pytest.mark.parametrize('num_kv_heads', [1, 2, N])
def test_gradients_equal_finite_differences(num_kv_heads, softcap):
  *qkv, mask_BTS = random_inputs(num_kv_heads, seed=1)
  rng = np.random.default_rng(2)
  weights_BTNH = rng.normal(size=qkv[0].shape)
  grads = gradients(
    as_float32(*qkv), mask_BTS, *as_float32(weights_BTNH), softcap=softcap
  )
  for i, grad in enumerate(grads):
    # Along random directions: one number tells of every element.
    for _ in range(3):
      direction = rng.normal(size=grad.shape)
      ends = []
      for step in (1e-5, -1e-5):
        moved = [*qkv]
        moved[i] = qkv[i] + step * direction
        out_BTNH = reference(*moved, mask_BTS, softcap)
        ends.append(np.sum(out_BTNH * weights_BTNH))
      expected = (ends[0] - ends[1]) / 2e-5
      np.testing.assert_allclose(
        np.sum(np.asarray(grad, float) * direction), expected, rtol=1e-4
      )


def test_hidden_keys_have_no_influence_at_all():
  """A hidden value may be anything finite; its gradient is exactly zero."""
  q_BTNH, k_BSKH, v_BSKH, mask_BTS = random_inputs(2)
  mask_BTS[:, :, 4] = False
  q_BTNH, k_BSKH, v_BSKH = as_float32(q_BTNH, k_BSKH, v_BSKH)
  out = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
  huge = attend(
    q_BTNH, k_BSKH.at[:, 4].set(1e4), v_BSKH.at[:, 4].set(1e4), mask_BTS
  )
  np.testing.assert_array_equal(out, huge)
  grads = gradients([q_BTNH, k_BSKH, v_BSKH], mask_BTS, out)
  for grad in grads[1:]:
    assert not np.any(grad[:, 4])
    assert np.all(np.any(np.delete(grad, 4, 1), axis=(0, 2, 3)))


def test_rows_that_see_nothing_are_finite():
  *inputs, mask_BTS = random_inputs(2)
  mask_BTS[0, 1] = False
  qkv = as_float32(*inputs)
  out = attend(*qkv, mask_BTS)
  assert np.all(np.isfinite(out))
  for grad in gradients(qkv, mask_BTS, out):
    assert np.all(np.isfinite(grad))
  # The other rows do not notice.
  seen = np.ones((B, T), bool)
  seen[0, 1] = False
  expected = reference(*inputs, mask_BTS | ~seen[..., None])
  np.testing.assert_allclose(
    np.asarray(out)[seen], expected[seen], rtol=2e-5, atol=2e-6
  )


def test_one_mask_serves_the_whole_batch():
  *qkv, mask_BTS = random_inputs(2)
  qkv, mask_1TS = as_float32(*qkv), mask_BTS[:1]
  np.testing.assert_array_equal(
    attend(*qkv, mask_1TS), attend(*qkv, np.repeat(mask_1TS, B, axis=0))
  )


@pytest.mark.parametrize('length', [1, 3])
def test_few_queries_of_a_decoding_step(length):
  *qkv, mask_BTS = random_inputs(2, seed=3, length=length)
  out = attend(*as_float32(*qkv), mask_BTS)
  assert out.shape == (B, length, N, H)
  np.testing.assert_allclose(
    out, reference(*qkv, mask_BTS), rtol=2e-5, atol=2e-6
  )


def test_large_scores_do_not_overflow():
  q_BTNH, k_BSKH, v_BSKH, mask_BTS = random_inputs(2)
  inputs = (q_BTNH * 100, k_BSKH * 100, v_BSKH)
  out = attend(*as_float32(*inputs), mask_BTS)
  np.testing.assert_allclose(
    out, reference(*inputs, mask_BTS), rtol=1e-3, atol=1e-3
  )


def test_bfloat16_keeps_the_softmax_in_float32():
  """The error is that of rounding inputs and weights, not of a sum in it."""
  *qkv, mask_BTS = random_inputs(2)
  low = [array.astype(jnp.bfloat16) for array in as_float32(*qkv)]
  out = attend(*low, mask_BTS)
  assert out.dtype == jnp.bfloat16
  expected = reference(*[np.asarray(x, float) for x in low], mask_BTS)
  np.testing.assert_allclose(np.asarray(out, float), expected, atol=0.03)
  program = str(jax.make_jaxpr(lambda *inputs: attend(*inputs))(*low, mask_BTS))
  assert set(re.findall(r':(\w+)\[\S*\] = exp2? ', program)) == {'f32'}
