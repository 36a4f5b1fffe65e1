"""Decoders with a wish: what they write, and what they leave as it was.

B rows, N texts, T length, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import toy
from gemini_jax import batch as batch_lib
from gemini_jax.infer import beam, decoding, sampling
from gemini_jax.steer import (
  attribute_classifier,
  guided_decoding,
  latent_steering,
)

PAD, BOS, EOS = 0, 1, 2
# Three words of each tone; the others have none.
TONES = {'negative': (3, 4, 5), 'positive': (6, 7, 8)}
NEUTRAL = range(9, 16)
VOCAB_SIZE, LENGTH, NUM_ROWS = 16, 12, 64


def texts(count, seed=0):
  """Rows of ids, three of ten positive, and their labels."""
  rng = np.random.default_rng(seed)
  rows, labels = [], []
  for _ in range(count):
    tone = 'positive' if rng.random() < 0.3 else 'negative'
    body = rng.choice(NEUTRAL, 6)
    body[[2, 4]] = rng.choice(TONES[tone], 2)
    rows.append(np.array([BOS, *body, EOS], np.int32))
    labels.append({'tone': tone})
  return rows, labels


def tone_of(ids):
  """By the words; None where they are of both, or there is none."""
  found = {t for t, words in TONES.items() if set(words) & set(ids)}
  return found.pop() if len(found) == 1 else None


@functools.cache
def trained():
  """(model, params) that writes such texts."""
  model = toy.model(
    vocab_size=VOCAB_SIZE, max_length=LENGTH, width=32, mlp_dim=64
  )
  rows = np.stack(texts(2000, seed=1)[0])
  ones_NT = np.ones_like(rows[:, :-1])
  positions_NT = np.broadcast_to(np.arange(ones_NT.shape[1]), ones_NT.shape)

  def loss(params, rows_BT):
    num = len(rows_BT)
    sequence = batch_lib.Sequence(
      rows_BT[:, :-1], positions_NT[:num], ones_NT[:num]
    )
    logits_BTV = model.apply({'params': params}, sequence, method='decode')[0]
    return optax.softmax_cross_entropy_with_integer_labels(
      logits_BTV, rows_BT[:, 1:]
    ).mean()

  optimizer = optax.adam(1e-2)

  @jax.jit
  def train(params):
    def step(carry, rows_BT):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params, rows_BT), state)
      return (optax.apply_updates(params, updates), state), None

    batches = jnp.tile(rows.reshape(-1, 50, rows.shape[1]), (5, 1, 1))
    return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

  return model, train(toy.model_params(model))


@functools.cache
def learned():
  """What tells the tone of a prefix, from 300 texts."""
  model, params = trained()
  rows, labels = texts(300, seed=2)
  features, _ = guided_decoding.text_features(model, params, rows, None)
  return attribute_classifier.fit(
    features, labels, ['tone'], features.moments()
  )['tone']


def wish(weight=1.0, value='positive'):
  place = learned().values.index(value)
  return latent_steering.AttributeTarget(
    (learned(),), (place,), jnp.full(1, weight)
  )


def plain():
  return decoding.Decoder(
    trained()[0], NUM_ROWS, PAD, EOS, forbidden=(PAD, BOS), prefill_chunk=4
  )


def write(decoder, params, prompts=None, temperature=1.0, seed=3):
  """Ids that each row got."""
  prompts = prompts or [np.array([BOS], np.int32)] * NUM_ROWS
  state = decoder.start(
    params, prompts, max_tokens=10, seed=seed, samples=range(len(prompts))
  )
  state = decoder.decode(params, state, sampling.Sampler(temperature), 10)
  return [
    np.asarray(tokens_T[start:length])
    for tokens_T, start, length in zip(
      np.asarray(state.tokens),
      np.asarray(state.starts),
      np.asarray(state.lengths),
      strict=True,
    )
  ][: len(prompts)]


def share(rows):
  return np.mean([tone_of(row) == 'positive' for row in rows])


def guided(method, weight=1.0):
  decoder = guided_decoding.METHODS[method].of(plain())
  return decoder, guided_decoding.Params(trained()[1], wish(weight))


def test_the_model_writes_texts_of_both_tones():
  rows = write(plain(), trained()[1])
  assert 0.1 < share(rows) < 0.4
  assert np.mean([tone_of(row) is not None for row in rows]) > 0.9
  assert learned().accuracy > 0.7


# PPLM over ten models, five of each of two releases of jax, 256 texts of each:
# the wish is granted in 52 to 56 % (without it in 23 to 27 %), one tone alone
# is named in 69 to 86 %, and the length is kept in 64 to 82 %.
@pytest.mark.parametrize(
  ('method', 'least', 'whole'), [('fudge', 0.9, 0.9), ('pplm', 0.5, 0.6)]
)
def test_a_wish_is_granted_and_the_text_stays_whole(method, least, whole):
  guide = guided(method)
  rows = [row for seed in range(4) for row in write(*guide, seed=seed)]
  assert share(rows) > least
  assert np.mean([tone_of(row) is not None for row in rows]) > whole
  assert np.mean([len(row) == 7 for row in rows]) > whole


@pytest.mark.parametrize('method', guided_decoding.METHODS)
def test_no_weight_writes_what_the_model_writes(method):
  expected = write(plain(), trained()[1])
  for found, row in zip(write(*guided(method, 0.0)), expected, strict=True):
    np.testing.assert_array_equal(found, row)


def rescored(rows):
  """Log-probability of each token after bos by one plain forward pass."""
  tokens_NT = np.full((NUM_ROWS, LENGTH), PAD, np.int32)
  lengths_N = np.zeros(NUM_ROWS, int)
  for i, row in enumerate(rows):
    tokens_NT[i, : len(row)], lengths_N[i] = row, len(row)
  sequence = batch_lib.plain_sequence(tokens_NT, lengths_N)
  logits_NTV = toy.apply(*trained(), sequence, method='decode')[0]
  logprobs_NTV = np.asarray(jax.nn.log_softmax(logits_NTV))
  return [
    logprobs_NTV[i, np.arange(len(row) - 1), row[1:]]
    for i, row in enumerate(rows)
  ]


@pytest.mark.parametrize('beams', [1, 4])
@pytest.mark.parametrize('method', [None, *guided_decoding.METHODS])
def test_log_probabilities_are_the_models_own(method, beams):
  """Whatever chose the tokens: a wish, a temperature, filters or beams."""
  decoder, params = guided(method, 2.0) if method else (plain(), trained()[1])
  prompts = [np.array([BOS], np.int32)] * (NUM_ROWS // beams)
  if beams > 1:
    found = [
      own
      for hypotheses in beam.search(
        decoder, params, prompts[:2], beam_size=beams, max_tokens=10
      )
      for own in hypotheses
    ]
    tokens = [own.tokens for own in found]
    logprobs = [own.logprobs for own in found]
    chosen = [own.score * ((5 + len(own.tokens)) / 6) ** 0.6 for own in found]
  else:
    state = decoder.start(
      params, prompts, max_tokens=10, samples=range(len(prompts))
    )
    sampler = sampling.Sampler(0.7, top_k=6)
    state = jax.device_get(decoder.decode(params, state, sampler, 10))
    spans = [slice(1, length) for length in state.lengths]
    tokens = [own[span] for own, span in zip(state.tokens, spans, strict=True)]
    logprobs = [
      own[span] for own, span in zip(state.logprobs, spans, strict=True)
    ]
  expected = rescored([np.concatenate([[BOS], own]) for own in tokens])
  for own, right in zip(logprobs, expected, strict=True):
    np.testing.assert_allclose(own, right, atol=1e-4)
  if beams > 1:
    # What ranks hypotheses is what they were chosen by.
    sums = [own.sum() for own in logprobs]
    assert np.allclose(chosen, sums, atol=1e-3) == (method is None)


@pytest.mark.parametrize('method', guided_decoding.METHODS)
def test_rows_do_not_see_one_another(method):
  """And prompts of any length run in the program that is there."""
  rng = np.random.default_rng(4)
  prompts = [
    np.array([BOS, *rng.choice(NEUTRAL, n)], np.int32) for n in (2, 0, 1)
  ]
  decoder, params = guided(method)
  together = write(decoder, params, prompts)
  compiled = decoding.Decoder.decode_loop._cache_size()
  one = write(decoder, params, prompts[:1])
  assert decoding.Decoder.decode_loop._cache_size() == compiled
  np.testing.assert_array_equal(together[0], one[0])


@functools.partial(jax.jit, static_argnums=0)
def decode_step(decoder, params, state):
  return decoder.decode_step(params, state)


def test_a_step_leaves_the_cache_as_the_model_writes_it():
  rows = [np.array([BOS, 9, 10, 11], np.int32)]
  decoder, params = guided('pplm')
  state = decoder.start(params, rows, max_tokens=2)
  logits_BV, own_BV, after = decode_step(decoder, params, state)
  expected_BV, _, expected = decode_step(plain(), params.model, state)
  np.testing.assert_allclose(own_BV[0], expected_BV[0], atol=1e-5)
  moved = jax.nn.log_softmax(logits_BV[0]) - jax.nn.log_softmax(expected_BV[0])
  assert np.abs(moved).max() > 0.1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[:, :1], b[:, :1], atol=1e-6),
    after.cache,
    expected.cache,
  )


def test_weighted_decoding_is_bayes_rule():
  rows = [np.array([BOS, 9, 10], np.int32)]
  decoder, params = guided('fudge', 2.0)
  state = decoder.start(params, rows, max_tokens=2)
  logits_BV, own_BV, _ = decode_step(decoder, params, state)
  plain_BV, _, _ = decode_step(plain(), params.model, state)
  np.testing.assert_allclose(own_BV[0], plain_BV[0], atol=1e-5)
  x_BTD = toy.apply(
    decoder.model,
    params.model,
    batch_lib.plain_sequence(rows[0][None], np.array([3])),
    method='decode_hidden',
  )[0]
  vectors_VD = params.model['token']['embedding']
  read = lambda vector_D: wish(2.0).log_prob(
    guided_decoding.features(x_BTD[0, -1], vector_D)
  )
  expected_V = plain_BV[0] + jax.vmap(read)(vectors_VD)
  # Those that are never generated take the least.
  np.testing.assert_allclose(logits_BV[0, EOS:], expected_V[EOS:], atol=1e-4)


def test_texts_are_read_as_they_are_written():
  """Features at the last token: what is said before eos, and eos."""
  model, params = trained()
  rows = [np.array([BOS, 9, 6, 10, EOS]), np.array([BOS, 12, EOS])] * 40
  # A negative seed is as good as any.
  features, ends_NF = guided_decoding.text_features(
    model, params, rows, None, seed=-1
  )
  assert features.counts_N.tolist() == [4, 2] * 40
  sequence = batch_lib.plain_sequence(rows[0][None, :-1], np.array([4]))
  x_BTD = toy.apply(model, params, sequence, method='decode_hidden')[0]
  expected_F = guided_decoding.features(
    x_BTD[0, -1], params['token']['embedding'][EOS]
  )
  np.testing.assert_allclose(ends_NF[-2], expected_F, atol=1e-5)
  places_SF = features.mean_NSF[0, :4]
  assert np.abs(places_SF - ends_NF[0]).sum(axis=1).min() < 1e-4


def counting(method, counts):
  """The decoder, whose passes are counted when they run."""
  kind = guided_decoding.METHODS[method]

  def went(name, _):
    counts[name] += 1

  @jax.custom_vjp
  def passed(x):
    jax.debug.callback(functools.partial(went, 'forward'), x[0, 0])
    return x

  def backward(_, cotangent):
    jax.debug.callback(functools.partial(went, 'backward'), cotangent[0, 0])
    return (cotangent,)

  passed.defvjp(lambda x: (passed(x), None), backward)

  class Counting(kind):
    def read(self, params, state, cache):
      x_BD, logits_BV, cache = super().read(params, state, cache)
      return x_BD, passed(logits_BV), cache

  return Counting


@pytest.mark.parametrize('method', guided_decoding.METHODS)
def test_the_cost_is_that_of_the_passes_made(method):
  counts = {'forward': 0, 'backward': 0}
  decoder = counting(method, counts).of(plain())
  params = guided_decoding.Params(trained()[1], wish())
  state = decoder.start(params, [np.array([BOS, 9], np.int32)], max_tokens=1)
  jax.block_until_ready(decoder.decode_step(params, state)[0])
  jax.effects_barrier()
  cost = guided_decoding.cost(method, VOCAB_SIZE)
  assert counts == {
    'forward': cost.decoder_forward,
    'backward': cost.decoder_backward,
  }
  assert dataclasses.astuple(cost)[:2] == (VOCAB_SIZE, 0)
