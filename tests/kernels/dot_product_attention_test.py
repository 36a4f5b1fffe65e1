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

from gemini_jax import batch, config
from gemini_jax.kernels import dot_product_attention, masking

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


def as_float32(*arrays):
  return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize('softcap', [0.0, 0.7])
@pytest.mark.parametrize('num_kv_heads', [1, 2, N])
def test_equals_the_loop(num_kv_heads, softcap):
  *qkv, mask = random_inputs(num_kv_heads)
  out_BTNH = attend(*as_float32(*qkv), mask, softcap=softcap)
  expected = reference(*qkv, mask, softcap)
  np.testing.assert_allclose(out_BTNH, expected, rtol=2e-5, atol=2e-6)
  # The cap is low enough to matter.
  plain = reference(*qkv, mask)
  assert (abs(expected - plain).max() > 0.1) == bool(softcap)


@pytest.mark.parametrize('softcap', [0.0, 0.7])
@pytest.mark.parametrize('num_kv_heads', [1, 2, N])
def test_gradients_equal_finite_differences(num_kv_heads, softcap):
  *qkv, mask = random_inputs(num_kv_heads, seed=1)
  rng = np.random.default_rng(2)
  weights_BTNH = rng.normal(size=qkv[0].shape)
  grads = gradients(
    as_float32(*qkv), mask, *as_float32(weights_BTNH), softcap=softcap
  )
  for i, grad in enumerate(grads):
    # Along random directions: one number tells of every element.
    for _ in range(3):
      direction = rng.normal(size=grad.shape)
      ends = []
      for step in (1e-5, -1e-5):
        moved = [*qkv]
        moved[i] = qkv[i] + step * direction
        out_BTNH = reference(*moved, mask, softcap)
        ends.append(np.sum(out_BTNH * weights_BTNH))
      expected = (ends[0] - ends[1]) / 2e-5
      np.testing.assert_allclose(
        np.sum(np.asarray(grad, float) * direction), expected, rtol=1e-4
      )


def test_hidden_keys_have_no_influence_at_all():
  """A hidden value may be anything finite; its gradient is exactly zero."""
  q_BTNH, k_BSKH, v_BSKH, mask = random_inputs(2)
  mask.key_segments_BS[:, 4] = 0
  q_BTNH, k_BSKH, v_BSKH = as_float32(q_BTNH, k_BSKH, v_BSKH)
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
  *inputs, mask = random_inputs(2)
  mask.query_segments_BT[0, 1] = 3
  qkv = as_float32(*inputs)
  out = attend(*qkv, mask, softcap=softcap)
  assert not np.any(out[0, 1])
  # The other rows do not notice.
  np.testing.assert_allclose(
    out, reference(*inputs, mask, softcap), rtol=2e-5, atol=2e-6
  )
  weights_BTNH = np.ones(out.shape, np.float32)
  grads = gradients(qkv, mask, weights_BTNH, softcap=softcap)
  assert not np.any(grads[0][0, 1]) and np.all(np.any(grads[0][1], axis=-1))
  for grad in grads:
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize('kept', [0, 2**22])
@pytest.mark.parametrize('scores', [2**24, 300])
@pytest.mark.parametrize('length', [12, 48, 53])
@pytest.mark.parametrize(
  'rule', [{'causal': True}, {'causal': True, 'window': 5}, {'window': 9}, {}]
)
def test_bands_and_chunks_leave_nothing_out(
  monkeypatch, rule, length, scores, kept
):
  """Lengths and limits with one band, many, and chunks inside them."""
  monkeypatch.setattr(dot_product_attention, '_BAND', 4)
  monkeypatch.setattr(dot_product_attention, '_SCORES', scores)
  monkeypatch.setattr(dot_product_attention, '_KEPT', kept)
  *qkv, mask = packed_inputs(length, **rule)
  bands = dot_product_attention._bands(mask, (B, 2, 2, length, H))
  if length == 48:
    assert len(bands) == (8 if rule else 1)
  if scores == 300 and length > 12:
    assert any(size < stop - start for start, stop, size, *_ in bands)
  qkv32 = as_float32(*qkv)
  weights = jax.random.normal(jax.random.key(1), qkv32[0].shape)

  def total(qkv, attend):
    out = attend(*qkv)
    return jnp.sum(out * weights), out

  # Compiled anew: the limits are not arguments.
  evaluate = jax.jit(jax.grad(total, has_aux=True), static_argnames='attend')
  grads, out = evaluate(
    qkv32,
    attend=lambda *qkv: dot_product_attention.attention(
      *qkv, mask, scale=SCALE
    ),
  )
  expected, wanted = evaluate(qkv32, attend=lambda *qkv: dense(*qkv, mask))
  np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-6)
  for grad, wanted in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)


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


def test_halves_of_the_keys_make_the_whole():
  *qkv, mask = random_inputs(2)
  q, k, v = as_float32(*qkv)
  whole, log_sum = dot_product_attention.with_log_sum(
    q, k, v, mask, scale=SCALE
  )
  parts = [
    dot_product_attention.with_log_sum(
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
  monkeypatch.setattr(dot_product_attention, '_SCORES', 2**12)
  monkeypatch.setattr(dot_product_attention, '_KEPT', 0)
  sizes = []
  for length in (512, 2048):
    *qkv, mask = packed_inputs(length, causal=True)
    step = jax.jit(
      jax.grad(
        lambda qkv, mask: jnp.sum(
          dot_product_attention.attention(*qkv, mask, scale=SCALE) ** 2
        )
      )
    )
    compiled = step.lower(as_float32(*qkv), mask).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[1] < 6 * sizes[0]


@pytest.mark.parametrize('how', ['all_gather', 'ring'])
@pytest.mark.parametrize(
  'rule',
  [{'causal': True}, *({'causal': True, 'window': n} for n in (1, 5, 6)), {}],
  ids=str,
)
def test_a_split_length_is_the_whole(how, rule):
  """Value and gradient, on a mesh axis of four devices."""
  *qkv, mask = packed_inputs(16, **rule)
  qkv = as_float32(*qkv)
  mesh = jax.make_mesh(
    (4,),
    ('sequence',),
    (jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )
  spec = jax.sharding.PartitionSpec(None, 'sequence')
  weights = jax.random.normal(jax.random.key(1), qkv[0].shape)

  def split(*qkv):
    return jax.shard_map(
      lambda *args: dot_product_attention.over_axis(
        *args, axis='sequence', how=how, scale=SCALE
      )[0],
      mesh=mesh,
      in_specs=(spec, spec, spec, jax.tree.map(lambda _: spec, mask)),
      out_specs=spec,
      check_vma=False,
    )(*qkv, mask)

  def total(qkv, attend):
    out = attend(*qkv)
    return jnp.sum(out * weights), out

  evaluate = jax.jit(jax.grad(total, has_aux=True), static_argnames='attend')
  grads, out = evaluate(qkv, split)
  expected, wanted = evaluate(qkv, lambda *qkv: dense(*qkv, mask))
  np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-6)
  for grad, wanted in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)


def test_keys_that_all_queries_see_are_like_any_others():
  """Merged with what a mask lets through: one softmax over both."""
  *qkv, mask = random_inputs(2)
  q_BTNH, k_BSKH, v_BSKH = as_float32(*qkv)
  shape = (B, 2, *k_BSKH.shape[2:])
  memory = [jax.random.normal(jax.random.key(i), shape) for i in (1, 2)]

  def merged(q, k, v, *memory):
    one = dot_product_attention.with_log_sum(q, k, v, mask, scale=SCALE)
    return dot_product_attention.merge(
      one, dot_product_attention.over_all(q, *memory, scale=SCALE)
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


def test_one_mask_serves_the_whole_batch():
  *qkv, mask = random_inputs(2)
  qkv, one = as_float32(*qkv), jax.tree.map(lambda leaf: leaf[:1], mask)
  np.testing.assert_array_equal(
    attend(*qkv, one),
    attend(*qkv, jax.tree.map(lambda leaf: np.repeat(leaf, B, axis=0), one)),
  )


@pytest.mark.parametrize('length', [1, 3])
def test_few_queries_of_a_decoding_step(length):
  *qkv, mask = random_inputs(2, seed=3, length=length)
  out = attend(*as_float32(*qkv), mask)
  assert out.shape == (B, length, N, H)
  np.testing.assert_allclose(out, reference(*qkv, mask), rtol=2e-5, atol=2e-6)


def test_large_scores_do_not_overflow():
  q_BTNH, k_BSKH, v_BSKH, mask = random_inputs(2)
  inputs = (q_BTNH * 100, k_BSKH * 100, v_BSKH)
  out = attend(*as_float32(*inputs), mask)
  np.testing.assert_allclose(
    out, reference(*inputs, mask), rtol=1e-3, atol=1e-3
  )


def test_bfloat16_keeps_the_softmax_in_float32():
  """The error is that of rounding inputs and weights, not of a sum in it."""
  *qkv, mask = random_inputs(2)
  low = [array.astype(jnp.bfloat16) for array in as_float32(*qkv)]
  out = attend(*low, mask)
  assert out.dtype == jnp.bfloat16
  expected = reference(*[np.asarray(x, float) for x in low], mask)
  np.testing.assert_allclose(np.asarray(out, float), expected, atol=0.03)
  program = str(jax.make_jaxpr(lambda *inputs: attend(*inputs))(*low, mask))
  assert set(re.findall(r':(\w+)\[\S*\] = exp2? ', program)) == {'f32'}


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
  *qkv, mask = packed_inputs(128, **rule)
  qkv = as_float32(*qkv)
  real = mask.query_segments_BT[..., None, None] > 0
  weights = real * jax.random.normal(jax.random.key(1), qkv[0].shape)

  def total(qkv, attend):
    out = attend(*qkv, mask, scale=SCALE, softcap=softcap)
    return jnp.sum(out * weights), out * real

  evaluate = jax.jit(jax.grad(total, has_aux=True), static_argnames='attend')
  grads, out = evaluate(
    qkv, attend=functools.partial(dot_product_attention.splash, interpret=True)
  )
  expected, wanted = evaluate(qkv, attend=dot_product_attention.attention)
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
  for grad, want in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-3)


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
