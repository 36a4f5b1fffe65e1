"""Cached decoding against full forward passes, and what it must not depend on.

B rows, T length, V vocabulary, n new tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy_decoder
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.infer import decoding, decoding_state, sampling
from gemini_jax.layers import hooks
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import sharding

PAD, BOS, EOS = toy_decoder.PAD, toy_decoder.BOS, toy_decoder.EOS


def full_logits(decoder, params, tokens, prompt_length, inputs, latent=None):
  """float32[T, V] of one row by one forward pass, nothing cached."""
  tokens_1T = np.full((1, toy_decoder.LENGTH), PAD, np.int32)
  tokens_1T[0, : len(tokens)] = tokens
  encoder = None
  if inputs is not None:
    inputs_1S = np.full((1, decoder.memory_length), PAD, np.int32)
    inputs_1S[0, : len(inputs)] = inputs
    encoder = batch_lib.plain_sequence(inputs_1S, np.array([len(inputs)]))
  batch = batch_lib.Batch(
    decoder=batch_lib.plain_sequence(tokens_1T, np.array([len(tokens)])),
    targets=tokens_1T,
    weights=tokens_1T.astype(np.float32),
    prefix=(np.arange(toy_decoder.LENGTH) < prompt_length)[None]
    * decoder.prefix
    > 0,
    encoder=encoder,
  )
  latent_1Z = None if latent is None else latent[None]
  return np.asarray(forward(decoder.model, params, batch, latent_1Z))[0]


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch, latent_1Z):
  apply = functools.partial(gemini.apply, model, params)
  memory = None
  if batch.encoder is not None:
    memory = apply(batch.encoder, method='encode')[0]
  return apply(
    batch.decoder,
    memory_BSD=memory,
    memory=batch.encoder,
    prefix_BT=batch.prefix,
    latent_BZ=latent_1Z,
    method='decode',
  )[0]


@functools.partial(jax.jit, static_argnums=0)
def forced_logits(decoder, params, state, new_nB):
  """float32[n, B, V]: scores before each of the given tokens, cached."""

  def step(state, token_B):
    logits_BV, _, state = decoder.decode_step(params, state)
    return state.append(token_B, 0.0 * token_B, False & state.done), logits_BV

  return jax.lax.scan(step, state, new_nB)[1]


@pytest.mark.parametrize('name', toy_decoder.MODELS)
def test_cached_decoding_equals_the_full_forward_pass(name):
  decoder, params = toy_decoder.build(name)
  values = toy_decoder.arguments(name)
  new_nB = np.random.default_rng(2).integers(
    3, toy_decoder.VOCAB_SIZE, (8, toy_decoder.NUM_ROWS)
  )
  state = decoder.start(params, **values, max_tokens=toy_decoder.LENGTH)
  cached_nBV = np.asarray(
    forced_logits(decoder, params, state, new_nB.astype(np.int32))
  )
  for i, prompt in enumerate(values['prompts']):
    inputs = values['inputs'] and values['inputs'][i]
    tokens = np.concatenate([prompt, new_nB[:, i]])
    latent = values['latents'][i] if 'latents' in values else None
    full_TV = full_logits(decoder, params, tokens, len(prompt), inputs, latent)
    span = slice(len(prompt) - 1, len(prompt) - 1 + len(new_nB))
    assert full_TV[span].std() > 0.3, 'a flat model shows nothing'
    np.testing.assert_allclose(cached_nBV[:, i], full_TV[span], atol=1e-5)


def test_edited_parameters_decode_edited():
  """As full forward passes with the same edits; other edits don't compile."""
  decoder, plain = toy_decoder.build('encoder')
  values = toy_decoder.arguments('encoder')
  vector_D = np.random.default_rng(3).normal(size=32)

  def tokens(*places):
    """Of the last row; edits of these tensors in the second layer."""
    edits = {
      path: hooks.affine(
        [False, path in places], scale=-1.0, shift=3 * vector_D[None, None]
      )
      for path in (
        'decoder/residual_after_attention',
        'encoder/residual_after_attention',
      )
    }
    edits['decoder/cross_attention/value'] = hooks.affine(
      [False, 'keys' in places], scale=-2.0
    )
    params = hooks.EditedParams(plain, edits)
    state = decoder.start(params, **values, max_tokens=8)
    state = decoder.decode(params, state, sampling.Sampler(0.0), 8)
    row, prompt, inputs = 2, values['prompts'][2], values['inputs'][2]
    row_T = np.asarray(state.tokens[row, : int(state.lengths[row])])
    span = slice(len(prompt) - 1, len(row_T) - 1)
    logits_TV = full_logits(decoder, params, row_T, len(prompt), inputs)[span]
    logits_TV = np.where(decoder.forbidden_V, -np.inf, logits_TV)
    np.testing.assert_array_equal(row_T[len(prompt) :], logits_TV.argmax(-1))
    return tuple(row_T)

  functions = (decoding.Decoder.prefill, decoding.Decoder.decode_loop)
  found = {tokens()}
  before = [function._cache_size() for function in functions]
  for place in (
    'decoder/residual_after_attention',
    'encoder/residual_after_attention',
    'keys',
  ):
    found.add(tokens(place))
  assert len(found) == 4, 'each edit must change the row'
  assert [function._cache_size() for function in functions] == before


@pytest.mark.parametrize('name', ['plain', 'encoder', 'prefix'])
def test_greedy_is_the_argmax_of_full_forward_passes(name):
  """Until eos, with each token's log-probability under the model."""
  decoder, params = toy_decoder.build(name)
  values = toy_decoder.arguments(name)
  ended = set()
  state = decoder.start(params, **values, max_tokens=8)
  state = decoder.decode(params, state, sampling.Sampler(0.0), 8)
  for i, prompt in enumerate(values['prompts']):
    inputs = values['inputs'] and values['inputs'][i]
    tokens, logprobs = list(prompt), []
    while len(tokens) < len(prompt) + 8 and tokens[-1] != EOS:
      logits_V = full_logits(decoder, params, tokens, len(prompt), inputs)[
        len(tokens) - 1
      ]
      token = int(np.where(decoder.forbidden_V, -np.inf, logits_V).argmax())
      logprobs.append(float(jax.nn.log_softmax(logits_V)[token]))
      tokens.append(token)
    length = int(state.lengths[i])
    np.testing.assert_array_equal(state.tokens[i, :length], tokens)
    assert not np.any(state.tokens[i, length:])
    np.testing.assert_allclose(
      state.logprobs[i, len(prompt) : length], logprobs, atol=1e-5
    )
    ended.add(tokens[-1] == EOS)
  assert np.all(state.done)
  if name == 'plain':
    assert ended == {True, False}, 'rows that end and rows that are cut'


def test_a_prefix_is_seen_in_both_directions():
  """The next token depends on a later token through an earlier one."""
  decoder, params = toy_decoder.build('prefix')
  causal = dataclasses.replace(decoder, prefix=False)
  prompts = toy_decoder.random_rows((6, 6, 6))
  new_nB = np.full((8, toy_decoder.NUM_ROWS), 3, np.int32)
  first = [
    forced_logits(d, params, d.start(params, prompts, max_tokens=4), new_nB)[0]
    for d in (decoder, causal)
  ]
  assert np.abs(first[0] - first[1]).max() > 0.1


def test_tokens_do_not_depend_on_how_many_are_asked_at_a_time():
  decoder, params = toy_decoder.build('plain')
  sampler = sampling.Sampler(1.0, 0, 0.9, 0.0)

  def run(num_tokens):
    state = decoder.start(
      params,
      toy_decoder.random_rows(toy_decoder.PROMPT_LENGTHS),
      max_tokens=toy_decoder.LENGTH,
      seed=3,
      samples=(0, 1, 2),
    )
    while not np.all(state.done):
      state = decoder.decode(params, state, sampler, num_tokens)
    return jax.device_get((state.tokens, state.logprobs))

  for tokens, expected in zip(run(1), run(toy_decoder.LENGTH), strict=True):
    np.testing.assert_array_equal(tokens, expected)


def test_sharded_parameters_generate_the_same():
  """Over as many devices as there are."""
  decoder, params = toy_decoder.build('plain')
  mesh = jax.make_mesh(
    (jax.device_count(),),
    ('tensor',),
    axis_types=(jax.sharding.AxisType.Auto,),
  )

  def place(leaf):
    dims = [None] * leaf.ndim
    if leaf.shape[-1] % jax.device_count() == 0:
      dims[-1] = 'tensor'
    spec = jax.sharding.PartitionSpec(*dims)
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

  def run(params):
    state = decoder.start(
      params, toy_decoder.random_rows(toy_decoder.PROMPT_LENGTHS), max_tokens=6
    )
    state = decoder.decode(params, state, sampling.Sampler(0.0), 1)
    state = decoder.decode(params, state, sampling.Sampler(0.0), 6)
    return np.asarray(state.tokens)

  np.testing.assert_array_equal(run(jax.tree.map(place, params)), run(params))


def test_prefill_leaves_no_trace_of_padding():
  """Cache slots behind a prompt stay as they were made: zero."""
  decoder, params = toy_decoder.build('local')
  state = decoder.start(params, toy_decoder.random_rows((2, 13)), max_tokens=1)
  key = np.asarray(state.cache.self_attention.key)
  for i, length in enumerate((2, 13, *[0] * (toy_decoder.NUM_ROWS - 2))):
    assert np.abs(key[:, i, :, :length]).sum() > 0 or length == 0
    assert not key[:, i, :, length:].any()
    assert jnp.all(state.done[i]) == (length == 0)


def inserted(name, schedule, num_looks=4):
  """A state into whose rows prompts came while others were being written.

  `schedule` is (look, row, index of a prompt); a row that is in use is
  released first. Each look writes two tokens.
  """
  decoder, params = toy_decoder.build(name)
  values = toy_decoder.arguments(name)
  state = decoder.start(params, [], max_tokens=1)
  used = set()
  for look in range(num_looks):
    for row, index in ((r, i) for at, r, i in schedule if at == look):
      if row in used:
        state = decoder.release(state, row)
        assert int(state.lengths[row]) == 0 and bool(state.done[row])
      used.add(row)
      state = decoder.insert(
        params,
        state,
        row,
        values['prompts'][index],
        inputs=values['inputs'] and values['inputs'][index],
        latent=values['latents'][index] if 'latents' in values else None,
        sample=index,
        max_tokens=toy_decoder.LENGTH,
        seed=4,
      )
    state = decoder.decode(params, state, sampling.Sampler(1.0), 2)
  return jax.device_get(
    (state.tokens, state.logprobs, state.lengths, state.cache)
  )


def written_row(found, row):
  """What a row is, with its part of the cache."""
  *rows, cache = found
  return [leaf[row] for leaf in rows] + [
    leaf[:, row] for leaf in jax.tree.leaves(cache)
  ]


@pytest.mark.parametrize('name', ['local', 'encoder_latent'])
def test_a_row_is_inserted_while_the_others_go_on(name):
  """To the last bit, rows are what they are alone; nothing compiles again."""
  # Row 5 is used twice.
  schedule = [(0, 0, 0), (0, 5, 1), (1, 3, 2), (2, 5, 2), (3, 7, 1)]
  functions = (
    decoding_state.insert,
    decoding_state.release,
    decoding.Decoder.prefill,
    decoding.Decoder.decode_loop,
  )
  together = inserted(name, schedule)
  before = [function._cache_size() for function in functions]
  for event in (schedule[0], *schedule[2:]):
    alone = inserted(name, [event])
    for value, expected in zip(
      written_row(together, event[1]), written_row(alone, event[1]), strict=True
    ):
      np.testing.assert_array_equal(value, expected)
    lengths = together[2]
    prompt = toy_decoder.arguments(name)['prompts'][event[2]]
    assert lengths[event[1]] > len(prompt), 'a row must grow'
  assert [function._cache_size() for function in functions] == before
  assert set(np.flatnonzero(together[2])) == {0, 3, 5, 7}


def test_an_inserted_row_is_what_a_batch_makes_of_it():
  decoder, params = toy_decoder.build('local')
  (prompt,) = toy_decoder.random_rows((7,))
  options = {'max_tokens': 9, 'seed': 4}
  start = decoder.start(params, [prompt], samples=[2], **options)
  empty = decoder.start(params, [], max_tokens=1)
  put = decoder.insert(params, empty, 0, prompt, sample=2, **options)
  states = [
    decoder.decode(params, state, sampling.Sampler(1.0), 9)
    for state in (start, put)
  ]
  np.testing.assert_array_equal(states[0].tokens, states[1].tokens)
  np.testing.assert_allclose(states[0].logprobs, states[1].logprobs, atol=1e-5)


@pytest.mark.parametrize('name', ['local', 'encoder'])
def test_fewer_slots_write_the_same(name):
  decoder, params = toy_decoder.build(name)
  values = toy_decoder.arguments(name)
  texts = []
  for num_slots in (None, 16):
    own = dataclasses.replace(decoder, num_slots=num_slots)
    state = own.start(params, **values, max_tokens=5)
    assert state.cache.self_attention.num_slots == (num_slots or 20)
    state = own.decode(params, state, sampling.Sampler(1.0), 5)
    texts.append(jax.device_get((state.tokens[:, :16], state.logprobs[:, :16])))
  np.testing.assert_array_equal(texts[0][0], texts[1][0])
  np.testing.assert_allclose(texts[0][1], texts[1][1], atol=1e-5)


def test_the_cache_lies_on_the_mesh_as_the_rules_say():
  """Rows over data and fsdp, heads over tensor; what does not divide, whole."""
  decoder, params = toy_decoder.build('encoder')
  cases = [(toy_decoder.build('plain'), (2, 2))]
  cases.append(((dataclasses.replace(decoder, batch_size=6), params), (6, 1)))
  mesh = mesh_lib.make_mesh(config_lib.Parallel(data=2, fsdp=2, tensor=2))
  for (own, own_params), (rows, heads) in cases:
    name = 'encoder' if own.encodes else 'plain'
    values = toy_decoder.arguments(name)

    def write(own=own, own_params=own_params, values=values):
      state = own.start(own_params, **values, max_tokens=4)
      return own.decode(own_params, state, sampling.Sampler(0.0), 4)

    with sharding.use(mesh):
      state = write()
    for leaf in jax.tree.leaves(state.cache):
      shape = leaf.sharding.shard_shape(leaf.shape)
      assert shape == (leaf.shape[0], rows, heads, *leaf.shape[3:])
    np.testing.assert_array_equal(state.tokens, write().tokens)
