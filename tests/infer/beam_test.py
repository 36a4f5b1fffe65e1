"""Beam search against greedy and exhaustive search.

B rows, T length, V vocabulary, n new tokens.
"""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer
from gemini_jax.infer import beam, decoding, generation, sampling
from gemini_jax.models import gemini

PAD, BOS, EOS = 0, 1, 2
# Two words and the end: 31 hypotheses of at most 4 tokens.
VOCAB_SIZE = 5
WIDTH = 32
NUM_ROWS = 2 * WIDTH
LENGTH = 10
MOST = 4


def random_params(model, seed):
  """Drawn by numpy: compiling the initialisers would take longer."""
  rng = np.random.default_rng(seed)
  boxed = jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0)))

  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype),
    nn.unbox(boxed),
  )


@functools.cache
def build(architecture):
  model = gemini.Gemini(
    config_lib.Model(
      architecture=architecture,
      vocab_size=VOCAB_SIZE,
      max_length=LENGTH,
      width=32,
      mlp_dim=48,
      num_layers=2,
      num_kv_heads=2,
    )
  )
  decoder = decoding.Decoder(
    model,
    NUM_ROWS,
    pad_id=PAD,
    eos_id=EOS,
    forbidden=(PAD, BOS),
    prefill_chunk=4,
    memory_length=6 if architecture == 'encoder_decoder' else 0,
  )
  return decoder, random_params(model, 3)


def arguments(architecture):
  texts = [np.array([BOS, 4, 3], np.int32), np.array([BOS, 4], np.int32)]
  if architecture == 'decoder':
    return {'prompts': texts}
  return {'prompts': [np.array([BOS], np.int32)] * 2, 'inputs': texts}


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
  return jax.nn.log_softmax(model.apply({'params': params}, batch)[0])


def exhaustive(decoder, params, prompt, inputs, most, length_penalty):
  """Every hypothesis with its score, best first, by one forward pass."""
  words = range(EOS + 1, VOCAB_SIZE)
  found = [
    (*words_n, EOS)
    for n in range(most)
    for words_n in itertools.product(words, repeat=n)
  ]
  found += list(itertools.product(words, repeat=most))
  tokens_BT = np.full((len(found), LENGTH), PAD, np.int32)
  tokens_BT[:, : len(prompt)] = prompt
  for i, tokens in enumerate(found):
    tokens_BT[i, len(prompt) : len(prompt) + len(tokens)] = tokens
  encoder = None
  if inputs is not None:
    encoder = batch_lib.plain_sequence(
      np.broadcast_to(inputs, (len(found), len(inputs))),
      np.full(len(found), len(inputs)),
    )
  batch = batch_lib.Batch(
    decoder=batch_lib.plain_sequence(tokens_BT, np.full(len(found), LENGTH)),
    targets=tokens_BT,
    weights=tokens_BT.astype(np.float32),
    encoder=encoder,
  )
  logprobs_BTV = np.asarray(forward(decoder.model, params, batch))
  scores = []
  for i, tokens in enumerate(found):
    total = sum(
      logprobs_BTV[i, len(prompt) - 1 + j, token]
      for j, token in enumerate(tokens)
    )
    scores.append(total / ((5 + len(tokens)) / 6) ** length_penalty)
  order = np.argsort(-np.array(scores), kind='stable')
  return [(found[i], scores[i]) for i in order]


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
@pytest.mark.parametrize('length_penalty', [0.0, 1.5, -1.0])
def test_a_wide_beam_is_exhaustive_search(architecture, length_penalty):
  decoder, params = build(architecture)
  values = arguments(architecture)
  found = beam.search(
    decoder,
    params,
    **values,
    beam_size=WIDTH,
    max_tokens=MOST,
    length_penalty=length_penalty,
  )
  for i, hypotheses in enumerate(found):
    expected = exhaustive(
      decoder,
      params,
      values['prompts'][i],
      values['inputs'][i] if 'inputs' in values else None,
      MOST,
      length_penalty,
    )
    assert len(hypotheses) == len(expected) == 15 + 16
    np.testing.assert_allclose(
      [h.score for h in hypotheses], [s for _, s in expected], atol=1e-4
    )
    best = dict(expected)
    for h in hypotheses:
      assert abs(best[tuple(h.tokens.tolist())] - h.score) < 1e-4
    gaps = [a[1] - b[1] for a, b in itertools.pairwise(expected[:4])]
    assert min(gaps) > 1e-4
    assert [tuple(h.tokens.tolist()) for h in hypotheses[:3]] == [
      tokens for tokens, _ in expected[:3]
    ]


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
def test_one_beam_is_greedy(architecture):
  """Token for token."""
  decoder, params = build(architecture)
  values = arguments(architecture)
  ended = set()
  state = decoder.start(params, **values, max_tokens=LENGTH)
  state = decoder.decode(params, state, sampling.Sampler(0.0), LENGTH)
  found = beam.search(decoder, params, **values, beam_size=1, max_tokens=LENGTH)
  for i, prompt in enumerate(values['prompts']):
    span = slice(len(prompt), int(state.lengths[i]))
    best = found[i][0]
    np.testing.assert_array_equal(best.tokens, state.tokens[i, span])
    np.testing.assert_allclose(
      best.logprobs, state.logprobs[i, span], atol=1e-5
    )
    ended.add(bool(best.tokens[-1] == EOS))
  if architecture == 'decoder':
    assert ended == {True, False}, 'rows that end and rows that are cut'


def test_the_length_penalty_favours_longer_texts():
  decoder, params = build('decoder')
  values = arguments('decoder')
  lengths = []
  for length_penalty in (-4.0, 0.0, 8.0):
    found = beam.search(
      decoder,
      params,
      values['prompts'][:1],
      beam_size=4,
      max_tokens=7,
      length_penalty=length_penalty,
    )[0]
    lengths.append(len(found[0].tokens))
    for h in found:
      penalty = ((5 + len(h.tokens)) / 6) ** length_penalty
      assert h.score == pytest.approx(float(h.logprobs.sum()) / penalty, 1e-4)
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
  assert lengths == sorted(lengths)
  assert lengths[0] < lengths[2]


def test_a_hypothesis_ends_with_its_only_eos():
  decoder, params = build('decoder')
  found = beam.search(
    decoder, params, **arguments('decoder'), beam_size=4, max_tokens=6
  )
  ends = set()
  for hypotheses in found:
    assert len(hypotheses) == 4
    assert len({tuple(h.tokens.tolist()) for h in hypotheses}) == 4
    for h in hypotheses:
      assert EOS not in h.tokens[:-1]
      assert h.tokens[-1] == EOS or len(h.tokens) == 6
      assert {PAD, BOS}.isdisjoint(h.tokens.tolist())
      ends.add(bool(h.tokens[-1] == EOS))
  assert True in ends


def test_prompts_of_a_batch_do_not_meet():
  decoder, params = build('decoder')
  prompts = arguments('decoder')['prompts']
  search = functools.partial(
    beam.search, decoder, params, beam_size=4, max_tokens=6
  )
  before = beam.search_loop._cache_size()
  together = search(prompts)
  alone = [search([prompt])[0] for prompt in prompts]
  assert beam.search_loop._cache_size() <= before + 1
  for a, b in zip(together, alone, strict=True):
    assert [h.tokens.tolist() for h in a] == [h.tokens.tolist() for h in b]


class Letters(tokenizer.Tokenizer):
  def __init__(self):
    super().__init__([b'', b'', b'', b'a', b'b'], PAD, BOS, EOS)

  def encode(self, text):
    return np.array([ord(c) - ord('a') + 3 for c in text], np.int32)


def test_generate_searches_with_more_than_one_beam():
  decoder, params = build('decoder')
  config = config_lib.Config(
    model=decoder.model.config,
    data=config_lib.Data(sequence_length=LENGTH),
    generate=config_lib.Generate(
      beam_size=4, count=2, max_tokens=6, prefill_chunk=4
    ),
  )
  heard = []
  samples = generation.generate(
    config,
    decoder.model,
    params,
    Letters(),
    ['ba'],
    lambda index, piece: heard.append((index, piece)),
  )
  expected = beam.search(
    decoder,
    params,
    arguments('decoder')['prompts'][:1],
    beam_size=4,
    max_tokens=6,
  )[0]
  assert [list(s.tokens) for s in samples] == [
    h.tokens.tolist() for h in expected[:2]
  ]
  assert heard == [(i, s.text) for i, s in enumerate(samples) if s.text]
  too_many = dataclasses.replace(
    config, generate=dataclasses.replace(config.generate, count=5)
  )
  with pytest.raises(config_lib.ConfigError, match=r'generate.count=5'):
    generation.generate(
      too_many, decoder.model, params, Letters(), ['ba'], None
    )
