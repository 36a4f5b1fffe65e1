"""Filters against numpy, and frequencies against the softmax.

B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.infer import sampling

VOCAB_SIZE = 23


def random_logits(seed, rows=6, vocab_size=VOCAB_SIZE):
  return (
    np.random.default_rng(seed)
    .normal(0, 2, (rows, vocab_size))
    .astype(np.float32)
  )


def softmax(logits_V):
  exp_V = np.exp(logits_V - logits_V.max())
  return exp_V / exp_V.sum()


def kept_by_reference(logits_V, temperature, top_k, top_p, min_p):
  """bool[V], straight from the definitions, one token at a time."""
  probs_V = softmax(logits_V.astype(np.float64) / temperature)
  order = [int(i) for i in np.argsort(-probs_V)]
  floor = min_p * probs_V.max()
  if top_k:
    order = order[:top_k]
  total = probs_V[order].sum()
  kept, mass = [], 0.0
  for i in order:
    if mass >= top_p and top_p < 1:
      break
    kept.append(i)
    mass += probs_V[i] / total
  kept_V = np.zeros(len(logits_V), bool)
  kept_V[[i for i in kept if probs_V[i] >= floor]] = True
  return kept_V


@pytest.mark.parametrize(
  'values',
  [
    (1.0, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 1000, 1.0, 0.0),
    (1.0, 0, 0.5, 0.0),
    (0.8, 0, 0.95, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.5, 0, 1.0, 1.0),
    (1.1, 7, 0.8, 0.05),
  ],
)
def test_filters_equal_the_reference(values):
  logits_BV = random_logits(0)
  filtered_BV = sampling.filter_logits(
    jnp.asarray(logits_BV), sampling.Sampler(*values)
  )
  expected_BV = np.stack(
    [kept_by_reference(row_V, *values) for row_V in logits_BV]
  )
  np.testing.assert_array_equal(np.isfinite(filtered_BV), expected_BV)
  for row_V, kept_V, logits_V in zip(
    np.asarray(filtered_BV), expected_BV, logits_BV, strict=True
  ):
    np.testing.assert_allclose(
      softmax(row_V[kept_V]), softmax(logits_V[kept_V] / values[0]), rtol=1e-5
    )


def test_every_row_may_have_its_own_values():
  logits_BV = jnp.asarray(random_logits(1, rows=3))
  mixed = sampling.Sampler(
    np.array([0.5, 1.0, 2.0]),
    np.array([0, 4, 0]),
    np.array([1.0, 1.0, 0.6]),
    0.0,
  )
  filtered_BV = np.asarray(sampling.filter_logits(logits_BV, mixed))
  for i, values in enumerate(
    [
      (0.5, 0, 1.0),
      (1.0, 4, 1.0),
      (2.0, 0, 0.6),
    ]
  ):
    alone_BV = sampling.filter_logits(
      logits_BV[i : i + 1], sampling.Sampler(*values)
    )
    np.testing.assert_allclose(filtered_BV[i], alone_BV[0], rtol=1e-6)


@pytest.mark.parametrize(
  'values', [(1.0, 0, 1.0, 0.0), (0.6, 0, 1.0, 0.0), (1.5, 6, 0.9, 0.02)]
)
def test_frequencies_are_those_of_the_softmax(values):
  """Pearson's chi-squared stays within 5 standard deviations."""
  count = 20_000
  logits_V = random_logits(2, rows=1)[0]
  drawn_B = sampling.sample(
    jax.random.split(jax.random.key(3), count),
    jnp.broadcast_to(logits_V, (count, VOCAB_SIZE)),
    sampling.Sampler(*values),
  )
  kept_V = kept_by_reference(logits_V, *values)
  expected_V = count * softmax(logits_V[kept_V] / values[0])
  counts_V = np.bincount(drawn_B, minlength=VOCAB_SIZE)
  assert counts_V[~kept_V].sum() == 0
  chi2 = ((counts_V[kept_V] - expected_V) ** 2 / expected_V).sum()
  freedom = kept_V.sum() - 1
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_draws_of_a_large_vocabulary_are_as_likely_as_their_weights():
  """Over several groups, with weights that are 0 and far from a sum of 1."""
  count, size = 10_000, 3 * sampling._GROUP + 5
  weights_V = np.random.default_rng(0).gamma(0.1, 7, size).astype(np.float32)
  weights_V[::3] = 0
  weights_V[sampling._GROUP : 2 * sampling._GROUP] = 0
  drawn_B = sampling.draw(
    jax.random.split(jax.random.key(1), count),
    jnp.broadcast_to(weights_V, (count, size)),
  )
  counts_V = np.bincount(drawn_B, minlength=size)
  assert not counts_V[weights_V == 0].any()
  expected_V = count * weights_V / weights_V.sum()
  large_V = expected_V > 5
  found_V, expected_V = (
    np.append(values_V[large_V], values_V[~large_V].sum())
    for values_V in (counts_V, expected_V)
  )
  chi2 = ((found_V - expected_V) ** 2 / expected_V).sum()
  freedom = large_V.sum()
  assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_the_least_and_the_largest_number_draw_a_token_of_some_weight():
  weights_BN = np.random.default_rng(0).gamma(0.05, 1, (200, 256))
  weights_BN[:, ::2] = weights_BN[:, -9:] = 0
  for number in (0.0, 1 - 2.0**-23):
    place_B = sampling._place(
      jnp.asarray(weights_BN, jnp.float32), jnp.full(200, number)
    )
    assert (weights_BN[np.arange(200), place_B] > 0).all()


@pytest.mark.parametrize('temperature', [0.0, 1e-30, 1.0, 50.0])
def test_forbidden_tokens_are_never_sampled(temperature):
  count = 2_000
  logits_V = random_logits(4, rows=1)[0]
  forbidden_V = np.zeros(VOCAB_SIZE, bool)
  forbidden_V[[int(logits_V.argmax()), 0]] = True
  drawn_B = sampling.sample(
    jax.random.split(jax.random.key(5), count),
    jnp.broadcast_to(logits_V, (count, VOCAB_SIZE)),
    sampling.Sampler(temperature),
    forbidden_V,
  )
  assert not forbidden_V[np.asarray(drawn_B)].any()
  if temperature < 1:
    best = np.where(forbidden_V, -np.inf, logits_V).argmax()
    assert set(np.asarray(drawn_B).tolist()) == {best}


def test_other_values_do_not_compile_again():
  sample = jax.jit(
    lambda key_B, logits_BV, sampler: sampling.sample(key_B, logits_BV, sampler)
  )
  logits_BV = jnp.asarray(random_logits(6))
  key_B = jax.random.split(jax.random.key(0), 6)
  results = []
  for generate in (
    config_lib.Generate(temperature=0.0),
    config_lib.Generate(temperature=2.0),
    config_lib.Generate(temperature=2.0, top_k=2),
    config_lib.Generate(temperature=2.0, top_p=0.1, min_p=0.3),
  ):
    sampler = sampling.Sampler.from_config(generate)
    results.append(np.asarray(sample(key_B, logits_BV, sampler)))
  assert sample._cache_size() == 1
  np.testing.assert_array_equal(results[0], np.argmax(logits_BV, axis=-1))
  assert (results[0] != results[1]).any()


def test_a_row_depends_on_its_key_alone():
  logits_BV = jnp.asarray(random_logits(7))
  key_B = jax.random.split(jax.random.key(1), 6)
  sampler = sampling.Sampler(1.0, 0, 0.9, 0.0)
  order = np.array([3, 0, 5])
  together = sampling.sample(key_B, logits_BV, sampler)
  some = sampling.sample(key_B[order], logits_BV[order], sampler)
  np.testing.assert_array_equal(together[order], some)
