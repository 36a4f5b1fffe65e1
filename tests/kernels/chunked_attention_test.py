"""Bands and chunks against dense attention, and the memory they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_cases
from gemini_jax.kernels import chunked_attention, dot_product_attention

B, T, S, H, SCALE = (
  attention_cases.B,
  attention_cases.T,
  attention_cases.S,
  attention_cases.H,
  attention_cases.SCALE,
)


# Exponentials are kept where each band is one chunk.
@pytest.mark.parametrize(
  ('scores', 'kept'), [(2**24, 0), (2**24, 2**22), (300, 0)]
)
@pytest.mark.parametrize('length', [48, 53])
@pytest.mark.parametrize(
  'rule', [{'causal': True}, {'causal': True, 'window': 5}, {'window': 9}, {}]
)
def test_bands_and_chunks_leave_nothing_out(
  monkeypatch, rule, length, scores, kept
):
  """Lengths and limits with one band, many, and chunks inside them."""
  monkeypatch.setattr(chunked_attention, '_BAND', 4)
  monkeypatch.setattr(chunked_attention, '_SCORES', scores)
  monkeypatch.setattr(chunked_attention, '_KEPT', kept)
  qkv, mask, (expected, wanted) = attention_cases.expected_of(length, **rule)
  bands = chunked_attention._bands(mask, (B, 2, 2, length, H))
  if length == 48:
    assert len(bands) == (8 if rule else 1)
  if scores == 300:
    assert any(size < stop - start for start, stop, size, *_ in bands)
  # The limits are not arguments.
  grads, out = attention_cases.evaluate(
    qkv,
    lambda *qkv: dot_product_attention.attention(*qkv, mask, scale=SCALE),
  )
  np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-6)
  for grad, wanted in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)


def test_halves_of_the_keys_make_the_whole():
  *qkv, mask = attention_cases.random_inputs(2)
  q, k, v = attention_cases.as_float32(*qkv)
  attend = jax.jit(chunked_attention.with_log_sum, static_argnames='scale')
  whole, log_sum = attend(q, k, v, mask, scale=SCALE)
  parts = [
    attend(
      q,
      k[:, low:high],
      v[:, low:high],
      mask.part((0, T), (low, high - low)),
      scale=SCALE,
    )
    for low, high in ((0, 3), (3, S))
  ]
  both = jnp.logaddexp(parts[0][1], parts[1][1])
  np.testing.assert_allclose(both, log_sum, rtol=1e-5)
  out = sum(x * jnp.exp(part - both)[..., None] for x, part in parts)
  np.testing.assert_allclose(out, whole, rtol=1e-5, atol=1e-6)


def test_memory_grows_with_the_length_not_its_square(monkeypatch):
  """Four times the length takes about four times the temporaries."""
  monkeypatch.setattr(chunked_attention, '_SCORES', 2**12)
  monkeypatch.setattr(chunked_attention, '_KEPT', 0)
  sizes = []
  for length in (512, 2048):
    *qkv, mask = attention_cases.packed_inputs(length, causal=True)
    step = jax.jit(
      jax.grad(
        lambda qkv, mask: jnp.sum(
          dot_product_attention.attention(*qkv, mask, scale=SCALE) ** 2
        )
      )
    )
    compiled = step.lower(attention_cases.as_float32(*qkv), mask).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[1] < 6 * sizes[0]
