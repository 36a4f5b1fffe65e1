"""Cached decoding against full forward passes, and what it must not depend on.

B rows, T length, V vocabulary, n new tokens.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.infer import decoding, generation, sampling
from gemini_jax.models import gemini

PAD, BOS, EOS = 0, 1, 2
VOCAB_SIZE = 40
LENGTH = 20
# One shorter and one longer than a chunk of prefill, none a multiple of it.
PROMPT_LENGTHS = (1, 7, 11)
CHUNK = 5
# Rows of every batch; most tests leave some empty.
NUM_ROWS = 8

MODELS = {
  'plain': {},
  'local': {
    'attention_pattern': ('local', 'global'),
    'window': 3,
    'num_kv_heads': 2,
    'num_layers': 3,
    'qk_norm': True,
    'rope_base_local': 100.0,
  },
  'learned': {
    'position': 'learned',
    'num_kv_heads': 1,
    'norm': 'pre_post',
    'tie_embeddings': False,
    'scan_layers': False,
  },
  'encoder': {
    'architecture': 'encoder_decoder',
    'position': 'learned',
    'num_kv_heads': 1,
    'qk_norm': True,
  },
  'encoder_local': {
    'architecture': 'encoder_decoder',
    'attention_pattern': ('local', 'global'),
    'window': 3,
    'num_kv_heads': 2,
    'norm': 'pre_post',
  },
  'experts': {
    'num_experts': 5,
    'experts_per_token': 2,
    'expert_dim': 24,
    'shared_expert_dim': 16,
  },
  'encoder_experts': {
    'architecture': 'encoder_decoder',
    'num_experts': 3,
    'experts_per_token': 1,
  },
  'prefix': {'attention_pattern': ('local', 'global'), 'window': 6},
  'latent': {
    'latent': config_lib.Latent(dim=5, memory=2),
    'num_kv_heads': 2,
    'qk_norm': True,
  },
  'encoder_latent': {
    'architecture': 'encoder_decoder',
    'latent': config_lib.Latent(dim=5),
  },
}


class Toy:
  """A tokenizer whose last two ids are the halves of one character."""

  pad_id, bos_id, eos_id = PAD, BOS, EOS
  pieces = (
    [b'', b'', b'']
    + [bytes([ord('A') + i]) for i in range(VOCAB_SIZE - 5)]
    + [b'\xc3', b'\xa9']
  )

  def encode(self, text):
    return np.array([self.pieces.index(c.encode()) for c in text], np.int32)

  def decode(self, ids):
    return b''.join(self.pieces[i] for i in ids).decode('utf-8', 'replace')


def random_params(model, seed):
  """Drawn by numpy: compiling the initialisers would take longer."""
  rng = np.random.default_rng(seed)
  boxed = jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0)))

  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype),
    nn.unbox(boxed),
  )


@functools.cache
def build(name):
  """(decoder, params) of a random model that is far from uniform."""
  model = gemini.Gemini(
    config_lib.Model(
      vocab_size=VOCAB_SIZE,
      max_length=LENGTH,
      width=32,
      mlp_dim=48,
      **({'num_layers': 2} | MODELS[name]),
    )
  )
  decoder = decoding.Decoder(
    model,
    NUM_ROWS,
    pad_id=PAD,
    eos_id=EOS,
    forbidden=(PAD, BOS),
    prefill_chunk=CHUNK,
    memory_length=9 if name.startswith('encoder') else 0,
    prefix=name == 'prefix',
  )
  return decoder, random_params(model, 1)


def random_rows(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [
    np.array([BOS, *rng.integers(3, VOCAB_SIZE, n - 1)], np.int32)
    for n in lengths
  ]


def full_logits(decoder, params, tokens, prompt_length, inputs, latent=None):
  """float32[T, V] of one row by one forward pass, nothing cached."""
  tokens_1T = np.full((1, LENGTH), PAD, np.int32)
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
    prefix=(np.arange(LENGTH) < prompt_length)[None] * decoder.prefix > 0,
    encoder=encoder,
  )
  latent_1Z = None if latent is None else latent[None]
  return np.asarray(forward(decoder.model, params, batch, latent_1Z))[0]


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch, latent_1Z):
  apply = functools.partial(model.apply, {'params': params})
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


def arguments(name):
  """Prompts of different lengths, and inputs where there is an encoder."""
  if name.startswith('encoder'):
    prompts = [np.array([BOS], np.int32)] * 3
    values = {'prompts': prompts, 'inputs': random_rows((3, 9, 6), seed=1)}
  else:
    values = {'prompts': random_rows(PROMPT_LENGTHS, seed=7), 'inputs': None}
  if 'latent' in name:
    values['latents'] = np.random.default_rng(5).normal(size=(3, 5))
  return values


@pytest.mark.parametrize('name', MODELS)
def test_cached_decoding_equals_the_full_forward_pass(name):
  decoder, params = build(name)
  values = arguments(name)
  new_nB = np.random.default_rng(2).integers(3, VOCAB_SIZE, (8, NUM_ROWS))
  state = decoder.start(params, **values, max_tokens=LENGTH)
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


@pytest.mark.parametrize('name', ['plain', 'encoder', 'prefix'])
def test_greedy_is_the_argmax_of_full_forward_passes(name):
  """Until eos, with each token's log-probability under the model."""
  decoder, params = build(name)
  values = arguments(name)
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
  decoder, params = build('prefix')
  causal = dataclasses.replace(decoder, prefix=False)
  prompts = random_rows((6, 6, 6))
  new_nB = np.full((8, NUM_ROWS), 3, np.int32)
  first = [
    forced_logits(d, params, d.start(params, prompts, max_tokens=4), new_nB)[0]
    for d in (decoder, causal)
  ]
  assert np.abs(first[0] - first[1]).max() > 0.1


def test_tokens_do_not_depend_on_how_many_are_asked_at_a_time():
  decoder, params = build('plain')
  sampler = sampling.Sampler(1.0, 0, 0.9, 0.0)

  def run(num_tokens):
    state = decoder.start(
      params,
      random_rows(PROMPT_LENGTHS),
      max_tokens=LENGTH,
      seed=3,
      samples=(0, 1, 2),
    )
    while not np.all(state.done):
      state = decoder.decode(params, state, sampler, num_tokens)
    return jax.device_get((state.tokens, state.logprobs))

  for tokens, expected in zip(run(1), run(LENGTH), strict=True):
    np.testing.assert_array_equal(tokens, expected)


def full_config(name='plain', **generate):
  decoder, params = build(name)
  objective = {'encoder': 'seq2seq', 'prefix': 'prefix'}.get(name, 'causal')
  config = config_lib.Config(
    model=decoder.model.config,
    data=config_lib.Data(
      objective=objective, sequence_length=LENGTH, inputs_length=9
    ),
    generate=config_lib.Generate(prefill_chunk=CHUNK, **generate),
  )
  return config, decoder.model, params, Toy()


@pytest.mark.parametrize('name', ['plain', 'encoder'])
def test_samples_do_not_depend_on_the_batch(name):
  setup = full_config(name, count=2, max_tokens=10, temperature=1.0, seed=7)
  prompts = ['ABC', 'HELLO', '', 'QWERTY', 'E']
  together = generation.generate(*setup, prompts)
  assert [sample.prompt for sample in together[::2]] == prompts
  backwards = generation.generate(*setup, prompts[::-1])
  tokens = lambda samples: [sample.tokens for sample in samples]
  assert tokens(together) == tokens(generation.generate(*setup, prompts))
  if name == 'plain':
    alone = generation.generate(*setup, ['HELLO'])
    assert tokens(together)[2:4] == tokens(alone)
  assert tokens(together)[2:4] == tokens(backwards)[6:8]
  assert len(set(tokens(together))) > 5, 'samples must differ'
  assert {PAD, BOS}.isdisjoint(set().union(*tokens(together)))
  other = full_config(name, count=2, max_tokens=10, temperature=1.0, seed=8)
  assert tokens(together) != tokens(generation.generate(*other, prompts))


def test_nothing_compiles_twice():
  setup = full_config('encoder', max_tokens=5)
  functions = (
    decoding.Decoder.encode,
    decoding.Decoder.prefill,
    decoding.Decoder.decode_loop,
  )
  generation.generate(*setup, ['AB', 'C'] * 3)
  before = [function._cache_size() for function in functions]
  for generate in (
    {'temperature': 0.0, 'max_tokens': 9},
    {'top_k': 3, 'seed': 4},
    {'top_p': 0.5, 'min_p': 0.1, 'max_tokens': 1},
  ):
    prompts = ['HELLO', 'A', 'XY', '', 'B']
    generation.generate(*full_config('encoder', **generate), prompts)
  assert [function._cache_size() for function in functions] == before

  decoder, params = build('plain')
  sizes = set()
  for lengths in ((1, 2, 3), (19, 5), (11,)):
    state = decoder.start(params, random_rows(lengths), max_tokens=9)
    for num_tokens in (1, 3, LENGTH):
      state = decoder.decode(params, state, sampling.Sampler(), num_tokens)
      sizes.add(tuple(function._cache_size() for function in functions))
  assert len(sizes) == 1


def test_sharded_parameters_generate_the_same():
  """Over as many devices as there are."""
  decoder, params = build('plain')
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
    state = decoder.start(params, random_rows(PROMPT_LENGTHS), max_tokens=6)
    state = decoder.decode(params, state, sampling.Sampler(0.0), 1)
    state = decoder.decode(params, state, sampling.Sampler(0.0), 6)
    return np.asarray(state.tokens)

  np.testing.assert_array_equal(run(jax.tree.map(place, params)), run(params))


@pytest.mark.parametrize('name', ['plain', 'encoder', 'prefix'])
def test_streamed_pieces_make_the_text(name):
  setup = full_config(name, count=3, max_tokens=17, temperature=1.0)
  pieces = {}

  def on_text(index, piece):
    assert piece
    pieces.setdefault(index, []).append(piece)

  prompts = ['AB', 'C']
  streamed = generation.generate(*setup, prompts, on_text)
  assert streamed == generation.generate(*setup, prompts)
  for i, sample in enumerate(streamed):
    assert ''.join(pieces.get(i, [])) == sample.text
    assert len(sample.logprobs) == len(sample.tokens)
  assert max(map(len, pieces.values())) > 1


def test_half_a_character_is_not_streamed():
  setup = full_config('plain', max_tokens=17, temperature=0.0)
  config, model, params, toy = setup
  # Every other token is half of a character.
  written = generation.generate(*setup, ['A'] * 5)[0].tokens
  toy.pieces = list(toy.pieces)
  for i in range(3, VOCAB_SIZE):
    toy.pieces[i] = b'\xc3\xa9' if i != written[7] else b'\xc3'
  toy.pieces[3] = b'A'
  pieces = []
  sample = generation.generate(
    config,
    model,
    params,
    toy,
    ['A'] * 5,
    lambda index, piece: None if index else pieces.append(piece),
  )[0]
  assert ''.join(pieces) == sample.text
  assert '\ufffd' not in pieces[0]


def test_a_prompt_that_is_too_long_is_refused():
  setup = full_config('plain', max_tokens=4)
  with pytest.raises(
    config_lib.ConfigError,
    match=r'generate.prompt has 20 tokens; with model.max_length=20 at most 19',
  ):
    generation.generate(*setup, ['B', 'A' * 19])
  # One that just fits leaves room for one token.
  assert len(generation.generate(*setup, ['A' * 18] * 5)[0].tokens) == 1
  with pytest.raises(
    config_lib.ConfigError,
    match=r'has 10 tokens; with data.inputs_length=9 at most 9 fit',
  ):
    generation.generate(*full_config('encoder'), ['A' * 9])


def test_prefill_leaves_no_trace_of_padding():
  """Cache slots behind a prompt stay as they were made: zero."""
  decoder, params = build('local')
  state = decoder.start(params, random_rows((2, 13)), max_tokens=1)
  key = np.asarray(state.cache.self_attention.key)
  for i, length in enumerate((2, 13, *[0] * (NUM_ROWS - 2))):
    assert np.abs(key[:, i, :, :length]).sum() > 0 or length == 0
    assert not key[:, i, :, length:].any()
    assert jnp.all(state.done[i]) == (length == 0)
