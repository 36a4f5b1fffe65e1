"""Drafted tokens change the speed and nothing else.

B rows, K drafted tokens, V vocabulary, n new tokens.
"""

import dataclasses

import jax
import numpy as np
import pytest

import frequencies
import toy
import toy_decoder
from gemini_jax import config as config_lib
from gemini_jax.infer import decoding, sampling, speculative
from gemini_jax.models import gemini

NUM = 3
# Ends a text, as eos does.
END = 30
# Differences from the large model that make a good and a bad draft of it.
NOISE = {'same': 0.0, 'near': 0.05, 'far': 3.0}


def drafted(name, noise, num=NUM):
  """(plain decoder, its parameters, speculative decoder, its parameters)."""
  decoder, params = toy_decoder.build(name)
  decoder = dataclasses.replace(decoder, end_ids=(END,))
  draft = jax.tree.map(
    lambda leaf: leaf + noise * toy.normal(leaf.shape, leaf.size), params
  )
  fast = speculative.Speculative.of(
    decoder, speculative.Draft(decoder.model, draft, num)
  )
  return decoder, params, fast, speculative.Params(params, draft)


def write(decoder, params, sampler, max_tokens=12, steps=99, **kwargs):
  """All rows, written to their ends, `steps` tokens at a time."""
  state = decoder.start(params, max_tokens=max_tokens, **kwargs)
  while not np.asarray(state.done).all():
    state = decoder.decode(params, state, sampler, steps)
  return state


def rows(state):
  return [
    row[:length].tolist()
    for row, length in zip(
      np.asarray(state.tokens), np.asarray(state.lengths), strict=True
    )
  ]


@pytest.mark.parametrize('noise', NOISE)
@pytest.mark.parametrize('name', ['plain', 'local', 'learned', 'prefix'])
def test_greedy_tokens_are_those_of_the_model_alone(name, noise):
  plain, params, fast, both = drafted(name, NOISE[noise])
  values = {'prompts': toy_decoder.arguments(name)['prompts']}
  greedy = sampling.Sampler(0.0)
  expected = write(plain, params, greedy, **values)
  state = write(fast, both, greedy, **values)
  assert rows(state) == rows(expected)
  np.testing.assert_array_equal(state.done, expected.done)
  np.testing.assert_allclose(state.logprobs, expected.logprobs, atol=1e-5)
  new_B = np.asarray(state.lengths - state.starts)[:3]
  passes_B = np.asarray(state.passes)[:3]
  assert (new_B > NUM).any()
  if noise == 'same':
    np.testing.assert_array_equal(passes_B, -(-new_B // (NUM + 1)))
  if noise == 'far':
    assert passes_B.sum() > 0.7 * new_B.sum()
  assert (np.asarray(state.passes)[3:] == 0).all(), 'rows without a prompt'


def test_rows_accept_different_numbers():
  """Each row goes on from its own length; the others do not matter."""
  _, _, fast, both = drafted('plain', 0.15)
  prompts = toy_decoder.random_rows((5, 2, 9, 7), seed=3)
  greedy = sampling.Sampler(0.0)
  together = write(fast, both, greedy, prompts=prompts, max_tokens=11)
  shares = np.asarray(together.accepted)[:4] / np.asarray(together.passes)[:4]
  assert len(set(shares.round(3))) > 1
  for row, prompt in enumerate(prompts):
    alone = write(fast, both, greedy, prompts=[prompt], max_tokens=11)
    assert rows(alone)[0] == rows(together)[row]


@pytest.mark.parametrize('end', [toy_decoder.EOS, END])
def test_an_end_within_a_draft_ends_the_row(end):
  plain, params, fast, _ = drafted('plain', 0.0)
  prompts = toy_decoder.random_rows((4, 6), seed=5)
  greedy = sampling.Sampler(0.0)
  free = rows(write(plain, params, greedy, prompts=prompts))
  # What was the third new token of a row now ends it.
  table_VD = params['token']['embedding']
  table_VD = table_VD.at[end].set(1.1 * table_VD[free[0][6]])
  params = params | {'token': {'embedding': table_VD}}
  expected = rows(write(plain, params, greedy, prompts=prompts))
  assert len(expected[0]) == 7 and expected[0][-1] == end
  state = write(
    fast, speculative.Params(params, params), greedy, prompts=prompts
  )
  assert rows(state) == expected
  assert state.passes[0] == 1 and state.accepted[0] == 3


def test_pieces_do_not_matter():
  """Streaming asks for a few tokens at a time: the same draws."""
  _, _, fast, both = drafted('plain', 0.15)
  values = {
    'prompts': toy_decoder.arguments('plain')['prompts'],
    'samples': [0, 1, 2],
    'seed': 4,
  }
  sampler = sampling.Sampler(1.0)
  whole = write(fast, both, sampler, **values)
  pieces = write(fast, both, sampler, steps=NUM + 1, **values)
  assert rows(pieces) == rows(whole)
  other = write(fast, both, sampler, **values | {'seed': 5})
  assert rows(other) != rows(whole)


def test_rows_come_and_go():
  plain, params, fast, both = drafted('plain', 0.15)
  one, two, three = toy_decoder.random_rows((4, 6, 3), seed=8)
  greedy = sampling.Sampler(0.0)
  state = fast.start(both, [one, two], max_tokens=9)
  state = fast.decode(both, state, greedy, NUM + 1)
  state = fast.release(state, 0)
  state = fast.insert(both, state, 0, three, max_tokens=9)
  state = fast.decode(both, state, greedy, 99)
  expected = rows(
    write(plain, params, greedy, prompts=[three, two], max_tokens=9)
  )
  assert rows(state)[:2] == expected[:2]


VOCAB_SIZE, ROWS = 8, 4096


@pytest.mark.parametrize(
  'sampler',
  [
    sampling.Sampler(1.0),
    sampling.Sampler(0.7, 5),
    sampling.Sampler(1.3, 0, 0.9),
  ],
  ids=['plain', 'top_k', 'top_p'],
)
def test_samples_have_the_distribution_of_the_model(sampler):
  """Of pairs of tokens, which one pass writes or two; not that of the draft."""
  model = toy.model(vocab_size=VOCAB_SIZE, num_layers=1)
  target, draft = (toy.model_params(model, seed, 0.3) for seed in (0, 1))
  plain = decoding.Decoder(model, ROWS, pad_id=0, eos_id=0, prefill_chunk=4)
  fast = speculative.Speculative.of(plain, speculative.Draft(model, None, 2))
  prompt = np.array([1, 5], np.int32)
  state = fast.start(
    speculative.Params(target, draft),
    [prompt] * ROWS,
    max_tokens=2,
    samples=range(ROWS),
  )
  state = fast.decode(speculative.Params(target, draft), state, sampler, 9)
  accepted = np.asarray(state.accepted)
  assert min((accepted == 2).mean(), (accepted == 0).mean()) > 0.03
  first, second = np.asarray(state.tokens)[:, 2:4].T
  second = np.where(np.asarray(state.lengths) > 3, second, 0)

  def exact(params):
    """Probabilities of all pairs; after the end there is nothing."""
    texts = np.array([[1, 5, i] for i in range(VOCAB_SIZE)], np.int32)
    sequence = toy.sequence(VOCAB_SIZE, 3).replace(tokens=texts)
    logits_BTV = gemini.apply(model, params, sequence, method='decode')[0]
    probs = lambda logits_BV: np.asarray(
      sampling.distribution(logits_BV, sampler), np.float64
    )
    after_VV = probs(logits_BTV[:, 2])
    after_VV[0] = np.eye(VOCAB_SIZE)[0]
    return probs(logits_BTV[:1, 1]).T * after_VV

  pairs = first * VOCAB_SIZE + second
  counts = np.bincount(pairs, minlength=VOCAB_SIZE**2)
  wanted, drafted_by = (exact(params).ravel() for params in (target, draft))
  assert counts[wanted == 0].sum() == 0
  # Cells that few draws fall into are one with the largest.
  large = wanted * ROWS > 8

  def merged(values):
    values = np.where(large, values, 0) + (wanted == wanted.max()) * np.sum(
      values[~large]
    )
    return values[large]

  value, limit = frequencies.chi_square(merged(counts), merged(wanted))
  assert value < limit
  floor = np.maximum(merged(drafted_by), 8 / ROWS)
  assert (
    frequencies.chi_square(merged(counts), floor / floor.sum())[0] > 10 * limit
  )


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('encoder', {}, "the model has model.architecture='encoder_decoder'"),
    ('latent', {}, r'the model has .* model\.latent\.dim=5; only decoders'),
    (
      *('plain', {'position': 'learned', 'max_length': 19}),
      r'the draft model has model\.max_length=19 .*; 20 are needed',
    ),
  ],
)
def test_what_cannot_be_drafted_for_is_refused(name, fields, message):
  decoder, params = toy_decoder.build(name)
  config = dataclasses.replace(
    toy_decoder.build('plain')[0].model.config, **fields
  )
  draft = speculative.Draft(gemini.Gemini(config), params, 2)
  with pytest.raises(config_lib.ConfigError, match=message):
    speculative.Speculative.of(decoder, draft)
