"""Who influences whom, measured by the gradient; and the parts around it.

B batch, T decoder length, S encoder length, V vocabulary, D width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import batch as batch_lib
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.objectives import losses
from gemini_jax.parallel import sharding

T, S = toy.T, toy.S
GLOBAL, LOCAL = None, 3  # windows


@functools.cache
def built(**fields):
  model = toy.model(**fields)
  return model, toy.model_params(model)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
  return model.apply({'params': params}, batch)[0]


@functools.partial(jax.jit, static_argnums=0)
def influence(model, params, batch):
  """bool[T, V]: does the embedding of a token reach the logits of t?"""
  weights_V = toy.normal((toy.VOCAB_SIZE,), 7)

  def scores(table_VD):
    tables = {'token': {'embedding': table_VD}}
    logits_1TV = logits_of(model, params | tables, batch)
    return jnp.einsum('TV,V->T', logits_1TV[0], weights_V)

  jacobian_TVD = jax.jacrev(scores)(params['token']['embedding'])
  return jnp.any(jacobian_TVD != 0, axis=-1)


def distinct_tokens(segments=None, encoder_length=None, prefix=None):
  """One row in which every token occurs once, so that it tells its place."""
  rng = np.random.default_rng(3)
  tokens = rng.permutation(toy.VOCAB_SIZE).astype(np.int32)
  batch = toy.batch(rows=1, segments=segments, prefix=prefix)
  batch = batch.replace(decoder=batch.decoder.replace(tokens=tokens[None, :T]))
  if encoder_length is None:
    return batch
  encoder = batch_lib.plain_sequence(
    tokens[None, T : T + S], np.array([encoder_length])
  )
  return batch.replace(encoder=encoder)


def sees(window, segments=None, prefix=0, causal=True, length=T):
  """bool[T, T] of one layer, by the words of the definition."""
  segments = np.ones(length, int) if segments is None else np.asarray(segments)
  mask = np.zeros((length, length), bool)
  for t, s in np.ndindex(length, length):
    mask[t, s] = (
      segments[t] == segments[s] > 0
      and (not causal or s <= t or s < prefix)
      and (window is None or abs(t - s) < window)
    )
  return mask


def reach(*layers):
  """What reaches t through the residual stream and these layers."""
  total = np.eye(len(layers[0]), dtype=bool)
  for layer in layers:
    total = (layer | np.eye(len(layer), dtype=bool)) @ total
  return total


PACKED = [1] * 4 + [2] * 6 + [0] * 2
CASES = {
  'global': ({}, {}, [GLOBAL, GLOBAL]),
  'local_once': (
    {'attention_pattern': ('local',), 'num_layers': 1},
    {},
    [LOCAL],
  ),
  'prefix_local': (
    {'attention_pattern': ('local',), 'num_layers': 1},
    {'prefix': 5},
    [LOCAL],
  ),
  'packed': ({}, {'segments': PACKED}, [GLOBAL, GLOBAL]),
  'packed_prefix': (
    {},
    {'segments': PACKED, 'prefix': 3},
    [GLOBAL, GLOBAL],
  ),
  'learned': ({'position': 'learned'}, {}, [GLOBAL, GLOBAL]),
  'gemma': (
    {
      'attention_pattern': ('local', 'local', 'global'),
      'num_layers': 2,
      'norm': 'pre_post',
      'qk_norm': True,
      'attention_softcap': 5.0,
      'logit_softcap': 3.0,
    },
    {},
    [LOCAL, LOCAL],
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_influence_is_what_the_masks_allow(case):
  """The gradient is exactly zero where no path leads, and only there."""
  fields, inputs, windows = CASES[case]
  model, params = built(tie_embeddings=False, **fields)
  prefix = None
  if 'prefix' in inputs:
    prefix = np.arange(T)[None] < inputs['prefix']
  batch = distinct_tokens(inputs.get('segments'), prefix=prefix)
  actual_TV = np.asarray(influence(model, params, batch))
  expected_TT = reach(*(sees(window, **inputs) for window in windows))
  real = batch.decoder.segments[0] > 0
  np.testing.assert_array_equal(
    actual_TV[:, batch.decoder.tokens[0]][real], expected_TT[real]
  )


@pytest.mark.parametrize(
  ('pattern', 'window'), [('global', GLOBAL), ('local', LOCAL)]
)
def test_the_decoder_sees_the_encoder_but_not_its_padding(pattern, window):
  length = 4
  model, params = built(
    architecture='encoder_decoder',
    tie_embeddings=False,
    attention_pattern=(pattern,),
    num_encoder_layers=1,
  )
  batch = distinct_tokens(encoder_length=length)
  actual_TV = np.asarray(influence(model, params, batch))
  np.testing.assert_array_equal(
    actual_TV[:, batch.decoder.tokens[0]], reach(*[sees(window)] * 2)
  )
  seen_S = np.arange(S) < length
  np.testing.assert_array_equal(
    actual_TV[:, batch.encoder.tokens[0]], np.tile(seen_S, (T, 1))
  )

  def encoded(params):
    memory_1SD, _ = model.apply(
      {'params': params}, batch.encoder, method='encode'
    )
    return jnp.einsum('SD,D->S', memory_1SD[0], toy.normal((16,), 7))

  jacobian = jax.jit(jax.jacrev(encoded))(params)['token']['embedding']
  actual_SV = np.any(np.asarray(jacobian) != 0, axis=-1)
  # Both directions.
  np.testing.assert_array_equal(
    actual_SV[:, batch.encoder.tokens[0]][seen_S],
    reach(sees(window, seen_S, causal=False, length=S))[seen_S],
  )


@pytest.mark.parametrize('position', ['rotary', 'learned'])
def test_packed_records_do_not_mix(position):
  model, params = built(position=position)
  batch = toy.batch(rows=1, segments=PACKED)
  logits_1TV = np.asarray(logits_of(model, params, batch))
  tokens = batch.decoder.tokens.copy()
  tokens[0, 4:] = (tokens[0, 4:] + 1) % toy.VOCAB_SIZE
  other = batch.replace(decoder=batch.decoder.replace(tokens=tokens))
  other_1TV = np.asarray(logits_of(model, params, other))
  np.testing.assert_array_equal(logits_1TV[:, :4], other_1TV[:, :4])
  assert np.all(np.abs(logits_1TV - other_1TV)[:, 4:10].max(-1) > 1e-3)
  # The second record, alone at the start of a row, scores the same.
  alone = batch_lib.plain_sequence(
    np.roll(batch.decoder.tokens, -4, axis=1), np.array([6])
  )
  alone_1TV = logits_of(model, params, batch.replace(decoder=alone))
  np.testing.assert_allclose(
    logits_1TV[:, 4:10], alone_1TV[:, :6], rtol=1e-4, atol=1e-5
  )


def test_packed_pairs_read_their_own_inputs():
  """Cross-attention keeps to the segment."""
  model, params = built(architecture='encoder_decoder')
  encoder = toy.sequence(1, S, seed=5, segments=[1, 1, 1, 2, 2, 2, 0])
  batch = toy.batch(rows=1, segments=PACKED, encoder=encoder)
  logits_1TV = np.asarray(logits_of(model, params, batch))
  tokens = encoder.tokens.copy()
  tokens[0, 3:] = (tokens[0, 3:] + 1) % toy.VOCAB_SIZE
  other = batch.replace(encoder=encoder.replace(tokens=tokens))
  other_1TV = np.asarray(logits_of(model, params, other))
  np.testing.assert_array_equal(logits_1TV[:, :4], other_1TV[:, :4])
  assert np.all(np.abs(logits_1TV - other_1TV)[:, 4:10].max(-1) > 1e-3)


def hidden_and_logits(model, params, batch):
  """Numpy's view of the last norm's output and the logits after it."""
  kept = lambda module, _: module.name == 'decoder_norm'
  (logits_BTV, _), state = model.apply(
    {'params': params},
    batch,
    capture_intermediates=kept,
    mutable='intermediates',
  )
  (x_BTD,) = state['intermediates']['decoder_norm']['__call__']
  return np.asarray(x_BTD), np.asarray(logits_BTV)


def test_tied_logits_are_products_with_the_table():
  model, params = built()
  x_BTD, logits_BTV = hidden_and_logits(model, params, toy.batch())
  assert 'head' not in params
  table_VD = np.asarray(params['token']['embedding'])
  np.testing.assert_allclose(
    logits_BTV, x_BTD @ table_VD.T, rtol=1e-4, atol=1e-5
  )


def test_untied_logits_have_a_head_and_a_cap():
  model, params = built(tie_embeddings=False, logit_softcap=0.5)
  x_BTD, logits_BTV = hidden_and_logits(model, params, toy.batch())
  plain_BTV = x_BTD @ np.asarray(params['head']['kernel'])
  assert np.abs(plain_BTV).max() > 1
  np.testing.assert_allclose(
    logits_BTV, 0.5 * np.tanh(plain_BTV / 0.5), rtol=1e-4, atol=1e-5
  )


def test_embeddings_are_scaled_before_positions_are_added():
  model, params = built(scale_embeddings=True, position='learned')
  sequence = toy.sequence()
  x_BTD = model.apply({'params': params}, sequence, True, method='embed')
  token_VD = np.asarray(params['token']['embedding'])
  position_TD = np.asarray(params['position']['embedding'])
  expected_BTD = 4 * token_VD[sequence.tokens] + position_TD[sequence.positions]
  np.testing.assert_allclose(x_BTD, expected_BTD, rtol=1e-5, atol=1e-6)


def test_logits_are_float32_whatever_the_types():
  model, params = built(dtype='bfloat16', param_dtype='bfloat16')
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    is_norm = parameter_groups.kind(name) == 'norm'
    assert leaf.dtype == (jnp.float32 if is_norm else jnp.bfloat16), name
  logits_BTV = logits_of(model, params, toy.batch())
  assert logits_BTV.dtype == jnp.float32
  exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  exact_BTV = logits_of(built()[0], exact, toy.batch())
  error_BTV = np.abs(np.asarray(logits_BTV - exact_BTV))
  assert 0 < error_BTV.max() < 0.05 * np.abs(exact_BTV).max()


def test_logits_of_an_untied_head_are_not_rounded():
  """Those of decoding are those of the loss."""
  model, params = built(
    dtype='bfloat16', param_dtype='bfloat16', tie_embeddings=False
  )
  batch = toy.batch()
  logits_BTV = logits_of(model, params, batch)
  loss_BT = -jnp.take_along_axis(
    jax.nn.log_softmax(logits_BTV), batch.targets[..., None], axis=-1
  )[..., 0]
  sums = jax.jit(lambda params: losses.model_sums(model, params, batch))(params)
  np.testing.assert_allclose(
    sums.loss, jnp.sum(loss_BT * batch.weights), rtol=1e-5
  )
  rounded_BTV = logits_BTV.astype(jnp.bfloat16).astype(jnp.float32)
  assert np.mean(np.asarray(logits_BTV) == np.asarray(rounded_BTV)) < 0.1


FULL = {
  'architecture': 'encoder_decoder',
  'num_encoder_layers': 3,
  'position': 'learned',
  'norm': 'pre_post',
  'qk_norm': True,
  'attention_bias': True,
  'mlp_bias': True,
  'tie_embeddings': False,
}
EXPERTS = {'num_experts': 6, 'expert_dim': 10, 'shared_expert_dim': 7}


def boxed_params(**fields):
  model = toy.model(**fields)
  return jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0)))


def test_parameter_count_of_a_llama():
  # Width 16, 4 query and 2 key/value heads of 4, hidden 24, vocabulary 23.
  attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
  layer = attention + 3 * 16 * 24 + 2 * 16
  count = 23 * 16 + 2 * layer + 16
  assert gemini.param_count(nn.unbox(boxed_params())) == count
  untied = nn.unbox(boxed_params(tie_embeddings=False))
  assert gemini.param_count(untied) == count + 16 * 23


def test_parameter_count_of_everything():
  attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
  attention += 16 + 2 * 8  # biases of query, key and value
  attention += 2 * 4 + 2 * 16  # norms of queries, keys, before and after
  feedforward = 3 * 16 * 24 + 2 * 24 + 16 + 2 * 16
  encoder = 3 * (attention + feedforward) + 16
  decoder = 2 * (2 * attention + feedforward) + 16
  count = 2 * 23 * 16 + T * 16 + encoder + decoder
  assert gemini.param_count(nn.unbox(boxed_params(**FULL))) == count


def test_parameter_count_with_experts():
  attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
  experts = 16 * 6 + 6 * 3 * 16 * 10 + 3 * 16 * 7
  count = 23 * 16 + 2 * (attention + experts + 2 * 16) + 16
  assert gemini.param_count(nn.unbox(boxed_params(**EXPERTS))) == count


@pytest.mark.parametrize(
  'fields', [{}, FULL, EXPERTS], ids=['plain', 'full', 'experts']
)
def test_every_parameter_names_its_dims(fields):
  rules = dict(sharding.RULES)
  is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  boxed = boxed_params(**fields)
  for path, leaf in jax.tree_util.tree_flatten_with_path(boxed, is_box)[0]:
    where = jax.tree_util.keystr(path)
    assert is_box(leaf), where
    assert len(leaf.names) == leaf.value.ndim, where
    assert all(name is None or name in rules for name in leaf.names), where
    in_stack = "'layers'" in where
    assert (leaf.names[0] == 'layers') == in_stack, where
    # Whatever grows with the square of the width can be split.
    if 'kernel' in where or 'embedding' in where:
      assert 'embed' in leaf.names, where


@functools.cache
def initialized(**fields):
  wide = {'width': 64, 'mlp_dim': 96, 'head_dim': 32, 'vocab_size': 300}
  model = toy.model(**(wide | fields))
  init = jax.jit(functools.partial(gemini.init_params, model))
  return jax.tree.map(np.asarray, nn.unbox(init(jax.random.key(3))))


def test_initial_weights_have_the_spread_of_their_fan_in():
  params = initialized(position='learned', tie_embeddings=False)
  fans_in = {'query': 64, 'key': 64, 'value': 64, 'output': 128}
  layers = params['decoder']['layers']
  for name, fan_in in fans_in.items():
    kernel = layers['attention'][name]['kernel']
    for layer in kernel:
      assert layer.std() == pytest.approx(fan_in**-0.5, rel=0.06), name
    assert not np.allclose(kernel[0], kernel[1]), name
  for name, fan_in in {'gate': 64, 'up': 64, 'down': 96}.items():
    kernel = layers['feedforward'][name]['kernel']
    assert kernel.std() == pytest.approx(fan_in**-0.5, rel=0.06), name
  assert params['token']['embedding'].std() == pytest.approx(1 / 8, rel=0.05)
  assert params['position']['embedding'].std() == pytest.approx(0.02, rel=0.1)
  assert params['head']['kernel'].std() == pytest.approx(1 / 8, rel=0.05)
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if 'norm' in jax.tree_util.keystr(path):
      assert not leaf.any()


def test_init_scale_rules_them_all():
  params = initialized(init_scale=0.05)
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if 'norm' not in jax.tree_util.keystr(path):
      assert leaf.std() == pytest.approx(0.05, rel=0.06)


def test_an_empty_cache_has_one_slot_for_every_position():
  config = toy.model(architecture='encoder_decoder', dtype='bfloat16').config
  cache = jax.eval_shape(lambda: gemini.init_cache(config, 3, T, S))
  assert cache.self_attention.key.shape == (2, 3, 2, T, 4)
  assert cache.cross_attention.value.shape == (2, 3, 2, S, 4)
  assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cache))
  plain = jax.eval_shape(lambda: gemini.init_cache(toy.model().config, 3, T))
  assert plain.cross_attention is None
