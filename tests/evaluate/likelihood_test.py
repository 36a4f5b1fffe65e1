"""Likelihoods against exact ones, and what a latent tells against theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.evaluate import likelihood
from gemini_jax.models import latent
from gemini_jax.objectives import language


def measured(model, params, batches, num_samples=4, most=100):
  return likelihood.measure(
    model, params, batches, num_samples=num_samples, num_sequences=most
  )


@pytest.mark.parametrize('architecture', ['decoder', 'encoder_decoder'])
def test_without_a_latent_it_is_exact_and_stops_at_most(architecture):
  model = toy.model(architecture=architecture)
  params = toy.model_params(model)
  inputs = None
  if architecture == 'encoder_decoder':
    inputs = toy.sequence(2, toy.S, seed=9)
  batches = [toy.batch(rows=2, seed=seed, encoder=inputs) for seed in range(3)]
  batches[0] = batches[0].replace(
    weights=np.where([[0], [1]], batches[0].weights, 0).astype(np.float32)
  )
  rows = []
  for batch in batches:
    logits, _ = jax.jit(lambda b: model.apply({'params': params}, b))(batch)
    chosen = np.take_along_axis(
      jax.nn.log_softmax(logits), batch.targets[..., None], axis=-1
    )[..., 0]
    rows += list(-(chosen * batch.weights).sum(axis=1))
  # The first row has no weight, and only two of the others are wanted.
  found = measured(model, params, batches, most=2)
  assert found == {'nll': pytest.approx(np.mean(rows[1:3]), rel=1e-5)}


def linear_gaussian(count, dim, noise, seed=0):
  """Of x = z + noise: posteriors, a draw of each, and I(x; z) in nats."""
  rng = np.random.default_rng(seed)
  z_NZ = rng.normal(size=(count, dim))
  x_NZ = z_NZ + noise * rng.normal(size=(count, dim))
  share = 1 / (1 + noise**2)
  log_var = np.full((count, dim), np.log(share * noise**2), np.float32)
  posterior = latent.Normal(jnp.float32(share * x_NZ), jnp.asarray(log_var))
  drawn = posterior.sample(jax.random.key(seed))
  return posterior, drawn, dim * 0.5 * np.log(1 + noise**-2)


@pytest.mark.parametrize(('dim', 'noise'), [(1, 1.0), (3, 0.7), (2, 5.0)])
def test_mutual_information_of_a_channel_that_is_known(dim, noise):
  posterior, drawn, expected = linear_gaussian(1500, dim, noise)
  found = likelihood.mutual_information(posterior, drawn)
  assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize('prior', ['normal', 'mixture'])
def test_more_draws_come_nearer_from_above(prior):
  """And the rate is no more than mi allows for; a collapsed z tells nothing."""
  model = toy.model(latent=config_lib.Latent(dim=3, prior=prior))
  params = toy.model_params(model, scale=0.3)
  batches = [toy.batch(rows=4, seed=seed) for seed in range(3)]
  few = measured(model, params, batches, num_samples=1)
  many = measured(model, params, batches, num_samples=200)
  assert many['nll'] < few['nll']
  assert few['active_units'] == many['active_units'] <= 3
  assert 0 < many['mi'] <= np.log(12) + 1e-3
  collapsed = params | {
    'latent': params['latent']
    | {'posterior': jax.tree.map(jnp.zeros_like, params['latent']['posterior'])}
  }
  found = measured(model, collapsed, batches)
  assert found['active_units'] == 0
  if prior == 'normal':
    assert found['kl'] == pytest.approx(0, abs=1e-6)
  assert found['mi'] == pytest.approx(0, abs=1e-4)


def test_what_z_does_not_say_costs_nothing():
  """A decoder that ignores z: the bound is the exact likelihood."""
  model = toy.model(latent=config_lib.Latent(dim=3, memory=0))
  params = toy.model_params(model)
  blind = params | {
    'latent_embedding': jax.tree.map(
      jnp.zeros_like, params['latent_embedding']
    ),
    'latent': params['latent']
    | {
      'posterior': jax.tree.map(jnp.zeros_like, params['latent']['posterior'])
    },
  }
  batch = toy.batch(rows=3)
  exact = jax.jit(
    lambda b: language.log_likelihood(model, blind, b, jnp.ones((3, 3)))
  )(batch)
  found = measured(model, blind, [batch], num_samples=3)
  assert found['nll'] == pytest.approx(-float(exact.mean()), rel=1e-5)


class Letters:
  """A token for each letter."""

  pad_id, bos_id, eos_id = 0, 1, 2
  adds_bos = True

  def encode(self, text):
    return np.array([3 + ord(letter) - ord('a') for letter in text], np.int32)


@pytest.mark.parametrize('max_length', [12, 4])
def test_texts_are_read_alone_and_exactly(max_length):
  """Each text by itself without padding gives the same; long ones are cut."""
  model = toy.model(max_length=max_length)
  params = toy.model_params(model)
  texts = ['', 'abc', 'dbbacg', 'cgf', 'gfedca']
  nats_N, tokens_N = likelihood.of_texts(model, params, Letters(), texts)
  for text, nats, tokens in zip(texts, nats_N, tokens_N, strict=True):
    ids = np.array([1, *Letters().encode(text), 2])[: max_length + 1]
    sequence = batch_lib.plain_sequence(
      ids[None, :-1], np.array([len(ids) - 1])
    )
    logits = toy.apply(model, params, sequence, method='decode')[0]
    logprobs = np.asarray(jax.nn.log_softmax(logits))[0]
    expected = -logprobs[np.arange(len(ids) - 1), ids[1:]].sum()
    assert tokens == len(ids) - 1
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_many_texts_are_read_part_by_part(monkeypatch):
  model = toy.model()
  params = toy.model_params(model)
  random = np.random.default_rng(0)
  texts = [
    ''.join(random.choice(list('abcdefgh'), random.integers(0, 10)))
    for _ in range(11)
  ]
  whole = likelihood.of_texts(model, params, Letters(), texts)
  monkeypatch.setattr(likelihood, '_MAX_ROWS', 4)
  parts = likelihood.of_texts(model, params, Letters(), texts)
  np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
  np.testing.assert_array_equal(whole[1], parts[1])
