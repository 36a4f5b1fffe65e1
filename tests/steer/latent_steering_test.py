"""Steered z have what is wished for and stay where the prior is.

N samples, Z numbers in z, C components of the prior.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax.models import latent
from gemini_jax.steer import attribute_classifier, latent_steering

N, Z = 256, 16
STANDARD = latent.Mixture(
  jnp.zeros(1), latent.Normal(jnp.zeros((1, Z)), jnp.zeros((1, Z)))
)


def keys(count=N, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def draws(count=N, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(count, Z)), jnp.float32)


def rules():
  """Two linear rules on z: 30 % are positive, a sixth is of each topic."""
  rng = np.random.default_rng(5)
  tone_Z = rng.normal(size=Z)
  tone_Z /= np.linalg.norm(tone_Z)
  topics_TZ = rng.normal(size=(6, Z))

  def label(z_Z):
    positive = tone_Z @ z_Z > 0.5244  # The 70th percentile of a normal.
    return {
      'tone': 'positive' if positive else 'negative',
      'topic': f't{np.argmax(topics_TZ @ z_Z)}',
    }

  return label


@functools.cache
def learned():
  """Both attributes from 400 texts, whose posteriors are not points."""
  mean_NZ = np.asarray(draws(400, seed=2))
  labels = [rules()(z_Z) for z_Z in mean_NZ]
  features = attribute_classifier.Features(
    mean_NZ[:, None], np.full((400, 1, Z), 0.3), np.ones(400, int)
  )
  moments = np.zeros(Z), np.ones(Z)
  return attribute_classifier.fit(features, labels, ['tone', 'topic'], moments)


def wish(weight=1.0, **wanted):
  models = [learned()[name] for name in wanted]
  places = zip(models, wanted.values(), strict=True)
  return latent_steering.AttributeTarget(
    tuple(models),
    tuple(model.values.index(value) for model, value in places),
    jnp.full(len(models), weight),
  )


def share(z_NZ, **wanted):
  """How many have all of it, by the rules themselves."""
  labels = [rules()(z_Z) for z_Z in np.asarray(z_NZ)]
  return np.mean([wanted.items() <= label.items() for label in labels])


def shell(z_NZ):
  return np.mean(np.square(z_NZ))


def test_the_flow_grants_a_wish_and_stays_in_the_shell():
  start_NZ = draws()
  assert share(start_NZ, tone='positive') < 0.35
  found_NZ = latent_steering.ode(
    wish(tone='positive'), STANDARD, start_NZ, keys()
  )
  assert share(found_NZ, tone='positive') >= 0.9
  assert 0.7 < shell(found_NZ) < 1.4
  # What was not wished for is as it was.
  topics = [rules()(z_Z)['topic'] for z_Z in np.asarray(found_NZ)]
  assert len(set(topics)) == 6


def test_wishes_compose():
  both = {'tone': 'positive', 'topic': 't2'}
  start_NZ = draws()
  assert share(start_NZ, **both) < 0.1
  found_NZ = latent_steering.ode(wish(**both), STANDARD, start_NZ, keys())
  assert share(found_NZ, **both) > 0.7
  assert 0.7 < shell(found_NZ) < 1.5


def test_a_large_weight_does_not_leave_the_shell_far():
  """Plain ascent of the same strength does."""
  strong = wish(weight=8.0, tone='positive')
  found_NZ = latent_steering.ode(strong, STANDARD, draws(), keys())
  assert share(found_NZ, tone='positive') > 0.98
  assert shell(found_NZ) < 2
  far_NZ = latent_steering.gradient(strong, STANDARD, draws(), 8.0)
  assert shell(far_NZ) > 5


def test_no_weight_changes_no_distribution():
  none = wish(weight=0.0, tone='positive')
  start_NZ = draws(2000)
  alone_NZ = latent_steering.ode(
    none, STANDARD, start_NZ, keys(2000), correct=False
  )
  np.testing.assert_array_equal(alone_NZ, start_NZ)
  moved_NZ = np.asarray(
    latent_steering.ode(none, STANDARD, start_NZ, keys(2000))
  )
  assert np.abs(moved_NZ - start_NZ).mean() > 0.1
  np.testing.assert_allclose(moved_NZ.mean(axis=0), 0, atol=0.1)
  np.testing.assert_allclose(moved_NZ.var(axis=0), 1, atol=0.15)
  still_NZ = latent_steering.gradient(none, STANDARD, start_NZ, 0.0)
  np.testing.assert_array_equal(still_NZ, start_NZ)


def test_an_attribute_that_z_does_not_tell_moves_nothing():
  """As of a collapsed posterior."""
  rng = np.random.default_rng(7)
  labels = [{'tone': 'ab'[rng.random() < 0.3]} for _ in range(400)]
  features = attribute_classifier.Features(
    np.zeros((400, 1, Z)), np.ones((400, 1, Z)), np.ones(400, int)
  )
  moments = np.zeros(Z), np.ones(Z)
  model = attribute_classifier.fit(features, labels, ['tone'], moments)['tone']
  told = latent_steering.AttributeTarget((model,), (1,), jnp.ones(1))
  start_NZ = draws()
  for found_NZ in (
    latent_steering.ode(told, STANDARD, start_NZ, keys(), correct=False),
    latent_steering.gradient(told, STANDARD, start_NZ, 1.0),
  ):
    np.testing.assert_array_equal(found_NZ, start_NZ)


def mixture():
  """Two narrow normals, of a quarter and three quarters."""
  mean_CZ = jnp.stack([jnp.full(Z, -2.0), jnp.full(Z, 2.0)])
  log_var_CZ = jnp.full((2, Z), jnp.log(0.25))
  return latent.Mixture(
    jnp.log(jnp.array([0.25, 0.75])), latent.Normal(mean_CZ, log_var_CZ)
  )


def test_moments_of_a_mixture():
  prior = mixture()
  mean_Z, std_Z = prior.moments()
  z_NZ = prior.sample(jax.random.key(0), 4000)
  np.testing.assert_allclose(mean_Z, z_NZ.mean(axis=0), atol=0.15)
  np.testing.assert_allclose(std_Z, z_NZ.std(axis=0), atol=0.15)


def test_the_correction_pulls_towards_the_nearest_part_of_a_mixture():
  """And leaves draws of it as they are distributed."""
  prior = mixture()
  scale_Z = jnp.full(Z, 0.5)
  move = jax.vmap(
    lambda z_Z, key: latent_steering.langevin(prior.log_prob, z_Z, key, scale_Z)
  )
  start_NZ = prior.sample(jax.random.key(1), 2000)
  found_NZ = np.asarray(move(start_NZ, keys(2000)))
  high_N = found_NZ.mean(axis=1) > 0
  np.testing.assert_array_equal(high_N, np.asarray(start_NZ).mean(axis=1) > 0)
  np.testing.assert_allclose(found_NZ[high_N].mean(), 2, atol=0.05)
  np.testing.assert_allclose(found_NZ[high_N].std(), 0.5, atol=0.03)
  far_NZ = jnp.full((N, Z), 3.5)
  nearer_NZ = np.asarray(move(far_NZ, keys()))
  assert nearer_NZ.mean() < 3.1


class Counted:
  """Log p = -|z - 1|^2, with a count of passes of single z."""

  def __init__(self):
    self.forward = self.backward = 0
    count = self

    @jax.custom_vjp
    def log_prob(z_Z):
      jax.debug.callback(functools.partial(count.went, 'forward'), z_Z[0])
      return -jnp.sum(jnp.square(z_Z - 1))

    def forward(z_Z):
      jax.debug.callback(functools.partial(count.went, 'forward'), z_Z[0])
      return -jnp.sum(jnp.square(z_Z - 1)), z_Z

    def backward(z_Z, cotangent):
      jax.debug.callback(functools.partial(count.went, 'backward'), z_Z[0])
      return (-2 * cotangent * (z_Z - 1),)

    log_prob.defvjp(forward, backward)
    self.log_prob = log_prob

  def went(self, name, of):
    """`of` a z, so that a batch counts as many times as it has rows."""
    del of
    setattr(self, name, getattr(self, name) + 1)


RUNS = {
  'ode': lambda wish, z_NZ: latent_steering.ode.__wrapped__(
    wish, STANDARD, z_NZ, keys(len(z_NZ))
  ),
  'uncorrected': lambda wish, z_NZ: latent_steering.ode.__wrapped__(
    wish, STANDARD, z_NZ, keys(len(z_NZ)), correct=False
  ),
  'gradient': lambda wish, z_NZ: latent_steering.gradient.__wrapped__(
    wish, STANDARD, z_NZ, 1.0
  ),
  'best_of': lambda wish, z_NZ: latent_steering.best_of.__wrapped__(
    wish, jnp.stack([z_NZ] * latent_steering.BEST_OF, axis=1)
  ),
}


@pytest.mark.parametrize('name', RUNS)
def test_the_cost_is_that_of_the_passes_made(name):
  counted = Counted()
  count = 3
  jax.block_until_ready(RUNS[name](counted, draws(count)))
  jax.effects_barrier()
  cost = latent_steering.cost(
    'ode' if name == 'uncorrected' else name, name == 'ode'
  )
  found = counted.forward / count, counted.backward / count
  assert found == (cost.attribute_forward, cost.attribute_backward)


def test_the_best_of_some_draws_is_taken():
  told = wish(tone='positive')
  z_NKZ = draws(64 * 8).reshape(64, 8, Z)
  found_NZ = np.asarray(latent_steering.best_of(told, z_NKZ))
  scores_NK = jax.vmap(jax.vmap(told.log_prob))(z_NKZ)
  for i in range(64):
    np.testing.assert_array_equal(found_NZ[i], z_NKZ[i, scores_NK[i].argmax()])
  assert share(found_NZ, tone='positive') > 0.8
