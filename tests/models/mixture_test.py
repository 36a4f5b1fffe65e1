"""The mixture head, and draws of what it says, guided and plain.

B rows, T length, D width, Z numbers in z, C components, N draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.models import latent, mixture

B, T, D, Z, C = 2, 3, 8, 4, 5


@functools.partial(jax.jit, static_argnums=0)
def apply(head, params, x_BTD):
  return head.apply({'params': params}, x_BTD)


guided = jax.jit(mixture.guided, static_argnames='candidates')
sample = jax.jit(mixture.sample)
log_prob = jax.jit(latent.Mixture.log_prob)


def head_and_params(seed=0):
  head = mixture.MixtureHead(num_components=C, dim=Z)
  return head, toy.random_params(head, jnp.zeros((B, T, D)), seed=seed)


def random_mixture(seed, *lead, scale=1.0):
  normals = latent.Normal(
    toy.normal((*lead, C, Z), seed, scale), toy.normal((*lead, C, Z), seed + 1)
  )
  return latent.Mixture(toy.normal((*lead, C), seed + 2), normals)


def repeated(one, count):
  """A mixture of [1, ...] as `count` rows, so that a draw has as many."""
  return jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), one
  )


def test_density_of_the_head_is_the_formula():
  """In numpy, in double precision, component by component."""
  head, params = head_and_params()
  x_BTD, z_BTZ = toy.normal((B, T, D), 3), toy.normal((B, T, Z), 4)
  outputs = apply(head, params, x_BTD)
  linear = params['mixture']
  kernel = np.asarray(linear['kernel'], np.float64)
  raw = np.einsum('BTD,DCP->BTCP', np.asarray(x_BTD, np.float64), kernel)
  raw = raw + np.asarray(linear['bias'])
  weights = np.exp(raw[..., 0])
  weights /= weights.sum(axis=-1, keepdims=True)
  std = np.exp(-1 + 3 * np.tanh((raw[..., 1 + Z :] + 1) / 3))
  gap = (np.asarray(z_BTZ)[..., None, :] - raw[..., 1 : 1 + Z]) / std
  each = np.exp(-0.5 * gap**2) / (std * np.sqrt(2 * np.pi))
  want = np.log((weights * each.prod(axis=-1)).sum(axis=-1))
  found = log_prob(outputs, z_BTZ)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
  assert found.dtype == jnp.float32


def test_a_bfloat16_input_is_computed_in_float32():
  head, params = head_and_params()
  outputs = apply(head, params, toy.normal((B, T, D)).astype(jnp.bfloat16))
  assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {
    np.dtype('float32')
  }


def test_draws_have_the_moments_of_the_mixture():
  one = random_mixture(5, 1)
  many = repeated(one, 100_000)
  z_NZ = sample(many, jax.random.key(0), 1.0)
  mean_Z, std_Z = jax.tree.map(lambda leaf: leaf[0], one).moments()
  np.testing.assert_allclose(z_NZ.mean(axis=0), mean_Z, atol=0.03)
  np.testing.assert_allclose(z_NZ.std(axis=0), std_Z, rtol=0.03)


def test_temperature_narrows_components_and_keeps_their_weights():
  one = random_mixture(6, 1, scale=9.0)
  z_NZ = sample(repeated(one, 20_000), jax.random.key(0), 0.1)
  means = np.asarray(one.normals.mean[0])
  gaps_NCZ = np.asarray(z_NZ)[:, None] - means
  which_N = np.square(gaps_NCZ).sum(axis=-1).argmin(axis=1)
  shares = np.bincount(which_N, minlength=C) / len(which_N)
  np.testing.assert_allclose(shares, jax.nn.softmax(one.logits[0]), atol=0.02)
  most = int(shares.argmax())
  spread = gaps_NCZ[which_N == most, most].std(axis=0)
  want = 0.1 * np.exp(0.5 * one.normals.log_var[0, most])
  np.testing.assert_allclose(spread, want, rtol=0.1)


def test_temperature_0_is_the_mean_of_the_likeliest():
  several = random_mixture(7, B, T)
  z_BTZ = sample(several, jax.random.key(0), 0.0)
  best = np.asarray(several.logits).argmax(axis=-1)
  want = np.take_along_axis(
    np.asarray(several.normals.mean), best[..., None, None], axis=-2
  )
  np.testing.assert_array_equal(z_BTZ, want[..., 0, :])


def normal(mean, std):
  """A mixture of [1] with one component, of one number."""
  shape = (1, 1, 1)
  return latent.Mixture(
    jnp.zeros((1, 1)),
    latent.Normal(
      jnp.full(shape, float(mean)), jnp.full(shape, 2 * float(np.log(std)))
    ),
  )


@pytest.mark.parametrize('weight', [0.0, 0.5, 1.0])
def test_guided_draws_follow_the_normal_that_the_target_is(weight):
  """Of normals p and q, p^(1 + w) / q^w is a normal: by hand."""
  p, q = normal(0.5, 0.7), normal(0.0, 1.0)
  precision = (1 + weight) / 0.7**2 - weight
  mean = (1 + weight) * 0.5 / 0.7**2 / precision
  z_NZ = guided(
    repeated(p, 20_000),
    repeated(q, 20_000),
    jax.random.key(1),
    weight=weight,
    candidates=128,
  )
  np.testing.assert_allclose(z_NZ.mean(), mean, atol=0.02)
  np.testing.assert_allclose(z_NZ.std(), precision**-0.5, rtol=0.03)


def test_guidance_raises_the_ratio_and_stays_where_p_is():
  p, q = random_mixture(8, 1), random_mixture(11, 1)
  ratios, likelihoods = [], []
  for weight in (0.0, 1.0, 4.0):
    z_NZ = guided(
      repeated(p, 2000), repeated(q, 2000), jax.random.key(2), weight=weight
    )
    likelihoods.append(np.asarray(log_prob(p, z_NZ)))
    ratios.append(float(np.mean(likelihoods[-1] - log_prob(q, z_NZ))))
  assert ratios[0] + 0.5 < ratios[1] < ratios[2]
  assert likelihoods[2].mean() > np.quantile(likelihoods[0], 0.02)


def test_guidance_at_temperature_0_chooses_the_component_by_both():
  means = jnp.array([[[-2.0], [2.0]]])
  normals = latent.Normal(means, jnp.full((1, 2, 1), -2.0))
  p = latent.Mixture(jnp.log(jnp.array([[0.55, 0.45]])), normals)
  q = latent.Mixture(jnp.log(jnp.array([[0.9, 0.1]])), normals)
  for weight, want in ((0.0, -2.0), (1.0, 2.0)):
    z_1Z = guided(p, q, jax.random.key(0), 0.0, weight=weight)
    np.testing.assert_array_equal(z_1Z, [[want]])


def test_a_dead_dim_and_huge_inputs_have_finite_gradients():
  head, params = head_and_params()

  def loss(params, x_BTD):
    # Dims of z that never change, and one far away.
    z_BTZ = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1e4]), (B, T, Z))
    return -jnp.mean(head.apply({'params': params}, x_BTD).log_prob(z_BTZ))

  for scale in (1.0, 1e4):
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(
      params, scale * toy.normal((B, T, D), 5)
    )
    leaves = jax.tree.leaves(grads)
    assert np.isfinite(value) and all(
      np.isfinite(leaf).all() for leaf in leaves
    )


def test_densities_of_dead_dims_are_bounded():
  head, params = head_and_params()
  params = jax.tree.map(lambda leaf: 0 * leaf, params)
  bias = params['mixture']['bias'].at[:, 1 + Z :].set(-1e6)
  params['mixture']['bias'] = bias
  outputs = apply(head, params, jnp.zeros((B, T, D)))
  most = Z * (4 - 0.5 * np.log(2 * np.pi))
  np.testing.assert_allclose(outputs.log_prob(jnp.zeros((B, T, Z))), most, 1e-5)


def test_one_program_serves_all_temperatures_and_weights():
  counts = []

  @jax.jit
  def draw(p, q, key, temperature, weight):
    counts.append(1)
    return mixture.guided(p, q, key, temperature, weight=weight)

  p, q = random_mixture(1, B, T), random_mixture(4, B, T)
  for seed, (temperature, weight) in enumerate([(1.0, 0.0), (0.0, 2.0)]):
    z = draw(p, q, jax.random.key(seed), temperature, weight)
    assert z.shape == (B, T, Z) and z.dtype == jnp.float32
  assert len(counts) == 1
