"""The attention layer: projections, norms, rotation, cross, caches.

B batch, T query length, S key length, D width, N heads, K key/value heads,
H head width, L layers of a cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.kernels import dot_product_attention, masking
from gemini_jax.layers import attention, embedding

B, T, S, D, N, K, H, L = 2, 5, 7, 10, 4, 2, 6, 3


POSITIONS_BT = np.tile(np.arange(T), (B, 1))


def visible(length, positions_BT=POSITIONS_BT, causal=False, hidden=False):
  """A mask of queries at positions over `length` keys, some of them hidden."""
  segments_BS = np.ones((B, length), int)
  if hidden:
    segments_BS = (np.random.default_rng(0).random((B, length)) < 0.7).astype(
      int
    )
    segments_BS[:, 1] = 1
  return masking.Mask(
    np.ones(positions_BT.shape, int),
    positions_BT,
    segments_BS,
    np.tile(np.arange(length), (B, 1)),
    causal=causal,
  )


@functools.cache
def layer(**fields):
  """The module and random parameters for it."""
  module = attention.Attention(N, K, H, scale=0.5, **fields)
  params = toy.random_params(module, toy.normal((B, T, D)), visible(T))
  return module, params


@functools.partial(jax.jit, static_argnames=('module', 'cross'))
def apply(module, params, *args, **kwargs):
  return module.apply({'params': params}, *args, **kwargs)


attend = jax.jit(
  dot_product_attention.attention, static_argnames=('scale', 'softcap')
)


def angles_at(positions_BT):
  frequencies_F = embedding.rotary_frequencies(H, 100.0)
  return jax.jit(embedding.rotary_angles)(positions_BT, frequencies_F)


@pytest.mark.parametrize(
  'fields',
  [{}, {'qk_norm': True}, {'use_bias': True}, {'softcap': 0.5}],
  ids=['plain', 'qk_norm', 'bias', 'softcap'],
)
def test_equals_its_parts(fields):
  module, params = layer(**fields)
  assert ('bias' in params['query']) == ('use_bias' in fields)
  assert ('query_norm' in params) == ('qk_norm' in fields)
  assert 'bias' not in params['output']
  x_BTD, mask = toy.normal((B, T, D)), visible(T, causal=True)
  angles = angles_at(POSITIONS_BT)
  out_BTD, cache = apply(module, params, x_BTD, mask, angles=angles)
  assert cache is None

  def project(name):
    y = np.einsum('BTD,DNH->BTNH', x_BTD, params[name]['kernel'])
    if 'use_bias' in fields:
      y += np.asarray(params[name]['bias'])
    if name != 'value':
      if 'qk_norm' in fields:
        y /= np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-6)
        y *= 1 + np.asarray(params[f'{name}_norm']['scale'])
      y = jax.jit(embedding.rotate)(y, angles)
    return y

  attended_BTNH = attend(
    project('query'),
    project('key'),
    project('value'),
    mask,
    scale=0.5,
    softcap=fields.get('softcap', 0.0),
  )
  expected = np.einsum(
    'BTNH,NHD->BTD', attended_BTNH, params['output']['kernel']
  )
  np.testing.assert_allclose(out_BTD, expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_reads_keys_and_values_from_the_memory():
  module, params = layer()
  x_BTD, memory_BSD = toy.normal((B, T, D)), toy.normal((B, S, D), 1)
  mask = visible(S, hidden=True)
  assert not np.all(mask.dense())
  out_BTD, _ = apply(
    module, params, x_BTD, mask, memory_BSD=memory_BSD, cross=True
  )
  q, k, v = (
    np.einsum('BTD,DNH->BTNH', source, params[name]['kernel'])
    for source, name in [
      (x_BTD, 'query'),
      (memory_BSD, 'key'),
      (memory_BSD, 'value'),
    ]
  )
  expected = np.einsum(
    'BTNH,NHD->BTD',
    attend(q, k, v, mask, scale=0.5),
    params['output']['kernel'],
  )
  np.testing.assert_allclose(out_BTD, expected, rtol=1e-4, atol=1e-5)


def empty_cache(length, dtype=jnp.float32):
  # Not zeros: what was never written must not matter.
  return attention.KVCache(
    toy.normal((L, B, K, length, H), 8).astype(dtype),
    toy.normal((L, B, K, length, H), 9).astype(dtype),
  )


@pytest.mark.parametrize('chunk', [1, 2, T])
def test_cached_chunks_equal_one_pass(chunk):
  module, params = layer(qk_norm=True)
  x_BTD = toy.normal((B, T, D))
  whole_BTD, _ = apply(
    module,
    params,
    x_BTD,
    visible(T, causal=True),
    angles=angles_at(POSITIONS_BT),
  )
  cache, parts = empty_cache(S), []
  for start in range(0, T, chunk):
    positions_BT = POSITIONS_BT[:, start : start + chunk]
    out_BTD, cache = apply(
      module,
      params,
      x_BTD[:, start : start + chunk],
      visible(S, positions_BT, causal=True),
      angles=angles_at(positions_BT),
      cache=cache,
      layer=2,
      positions_BT=positions_BT,
    )
    parts.append(out_BTD)
  np.testing.assert_allclose(
    np.concatenate(parts, axis=1), whole_BTD, rtol=1e-4, atol=1e-5
  )


def test_cross_attention_reads_the_cache_that_memory_keys_made():
  fields = {'qk_norm': True, 'use_bias': True}
  module, params = layer(**fields)
  x_BTD, memory_BSD = toy.normal((B, T, D)), toy.normal((B, S, D), 1)
  mask = visible(S)
  first_BTD, _ = apply(
    module, params, x_BTD, mask, memory_BSD=memory_BSD, cross=True
  )
  memory_keys = attention.MemoryKeys(N, K, H, scale=0.5, **fields)
  k_BSKH, v_BSKH = apply(memory_keys, params, memory_BSD)
  cache = empty_cache(S)
  cache = attention.KVCache(
    cache.key.at[1].set(k_BSKH.swapaxes(1, 2)),
    cache.value.at[1].set(v_BSKH.swapaxes(1, 2)),
  )
  again_BTD, after = apply(
    module, params, x_BTD, mask, cache=cache, layer=1, cross=True
  )
  np.testing.assert_allclose(again_BTD, first_BTD, rtol=1e-5, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, cache, after)


def test_a_cache_takes_each_row_at_its_own_slots_of_one_layer():
  cache = empty_cache(S)
  k_BTKH, v_BTKH = toy.normal((B, 2, K, H), 1), toy.normal((B, 2, K, H), 2)
  # Slot S lies outside: dropped, not clamped to the last one.
  written = cache.write(1, k_BTKH, v_BTKH, jnp.array([[4, 0], [S, 3]]))
  for name, new_BTKH in ('key', k_BTKH), ('value', v_BTKH):
    expected = np.array(getattr(cache, name))
    expected[1, 0, :, 4], expected[1, 0, :, 0] = new_BTKH[0]
    expected[1, 1, :, 3] = new_BTKH[1, 1]
    np.testing.assert_array_equal(getattr(written, name), expected)
  k_BSKH, v_BSKH = written.read(1)
  np.testing.assert_array_equal(k_BSKH[0, 4], k_BTKH[0, 0])
  np.testing.assert_array_equal(v_BSKH[1, 3], v_BTKH[1, 1])


def test_a_cache_keeps_its_type():
  cache = empty_cache(S, jnp.bfloat16)
  new = toy.normal((B, 1, K, H), 1)
  written = cache.write(0, new, new, jnp.zeros((B, 1), jnp.int32))
  assert written.key.dtype == written.value.dtype == jnp.bfloat16
