"""Several tuned runs over one base, in one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import low_rank
import toy
from gemini_jax import config as config_lib
from gemini_jax.infer import decoding, sampling
from gemini_jax.models import gemini
from gemini_jax.weights import bottleneck, by_row

MODEL = toy.model(tie_embeddings=True)


def apply(params, batch):
  return gemini.apply(MODEL, params, batch)[0]


def test_rows_compute_as_their_own_run_does():
  """Of different ranks, with gains or not, the tied table too; and the base."""
  base = toy.model_params(MODEL)
  tuned = [low_rank.put(base, rank)[0] for rank in (2, 3)]
  tuned[1] = jax.tree.map(
    lambda leaf: leaf.replace(a=-leaf.a) if low_rank.is_weight(leaf) else leaf,
    tuned[1],
    is_leaf=low_rank.is_weight,
  )
  batch = toy.batch(rows=4)
  run = jax.jit(apply)
  alone = [run(params, batch) for params in (*tuned, base)]
  for first, second in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(alone[first] - alone[second]).max() > 0.1
  together = jax.jit(lambda params, batch: apply(params, batch))
  for ids in ([0, 1, -1, 1], [1, 0, 0, -1]):
    found = together(by_row.select(tuned, ids), batch)
    for row, index in enumerate(ids):
      toy.assert_near(found[row], alone[index][row], 1e-4)
  assert together._cache_size() == 1


def test_texts_of_one_batch_are_those_of_each_alone():
  """Also of a token at a time, by greedy decoding."""
  base = toy.model_params(MODEL)
  tuned = [low_rank.put(base, 2)[0], base]
  prompts = [np.asarray([1, 5, 2]), np.asarray([1, 7])]

  def decode(params, prompts):
    decoder = decoding.Decoder(MODEL, len(prompts), pad_id=0, eos_id=22)
    state = decoder.start(params, prompts, max_tokens=6)
    greedy = sampling.Sampler(temperature=0.0)
    state = decoder.decode(params, state, greedy, 6)
    return np.asarray(state.tokens), np.asarray(state.logprobs)

  together = decode(by_row.select(tuned, [0, -1]), prompts)
  for row, params in enumerate(tuned):
    alone = decode(params, prompts)
    np.testing.assert_array_equal(together[0][row], alone[0][row])
    np.testing.assert_allclose(together[1][row], alone[1][row], atol=1e-4)
  assert not np.array_equal(decode(tuned[0], prompts)[0], alone[0])


def test_a_batch_of_other_rows_is_refused():
  tuned, _ = low_rank.put(toy.model_params(MODEL))
  params = by_row.select([tuned, tuned], [0, 1])
  with pytest.raises(ValueError, match='updates of 2 rows in a batch of 4'):
    jax.eval_shape(apply, params, toy.batch(rows=4))


def test_only_updates_can_be_chosen():
  kernel = jnp.ones((3, 4))
  leaf = bottleneck.Bottleneck(kernel, jnp.ones((4, 2)), jnp.ones((2, 4)))
  with pytest.raises(config_lib.ConfigError, match='by row'):
    by_row.select([{'kernel': leaf}], [0])
