"""A fixed number of tokens from any number.

B media, N soft tokens, K tokens of a resampler, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.models import fusion

B, N, K, D = 3, 6, 4, 16
REAL = np.arange(N)[None] < np.array([[6], [4], [0]])


@functools.cache
def built(**fields):
  config = toy.model(**fields).config
  module = fusion.Resampler(config, K)
  x_BND = toy.normal((B, N, D), 1)
  return module, toy.random_params(module, x_BND, REAL)


@functools.cache
def resample_fn(**fields):
  module, params = built(**fields)
  return jax.jit(
    lambda x_BND, real_BN=REAL: module.apply({'params': params}, x_BND, real_BN)
  )


def test_any_number_of_tokens_becomes_so_many():
  x_BND = toy.normal((B, N, D), 1)
  x_BKD = resample_fn()(x_BND)
  assert x_BKD.shape == (B, K, D)
  assert np.isfinite(x_BKD).all()
  # Media and queries differ.
  assert np.abs(x_BKD[0] - x_BKD[1]).max() > 0.1
  assert np.abs(x_BKD[:, 0] - x_BKD[:, 1]).max() > 0.1


def test_only_real_tokens_are_read():
  """The gradient is zero at the others, and there alone."""
  grad_BND = jax.grad(
    lambda x_BND: jnp.sum(resample_fn()(x_BND) * toy.normal((B, K, D), 5))
  )(toy.normal((B, N, D), 1))
  np.testing.assert_array_equal(np.any(grad_BND != 0, axis=-1), REAL)


def test_the_order_of_tokens_is_not_seen():
  x_BND = np.asarray(toy.normal((B, N, D), 1))
  order = np.random.default_rng(0).permutation(N)
  resample = resample_fn()
  np.testing.assert_allclose(
    resample(x_BND), resample(x_BND[:, order], REAL[:, order]), atol=1e-5
  )
  # The control: of the same places, other tokens.
  other = resample(x_BND[:, order], REAL)
  assert np.abs(resample(x_BND) - other).max() > 0.1


def test_layers_are_dense_and_see_no_latent():
  """Whatever the trunk is made of."""
  fields = {
    'num_experts': 3,
    'shared_expert_dim': 8,
    'attention_pattern': ('local',),
    'window': 1,
  }
  config = fusion.dense(toy.model(**fields).config)
  assert (config.num_experts, config.attention_pattern) == (0, ('global',))
  plain, params = built()
  module = fusion.Resampler(toy.model(**fields).config, K)
  x_BND = toy.normal((B, N, D), 1)
  np.testing.assert_array_equal(
    jax.jit(plain.apply)({'params': params}, x_BND, REAL),
    jax.jit(module.apply)({'params': params}, x_BND, REAL),
  )


def test_dropout_is_asked_for():
  module, params = built(dropout=0.5)
  x_BND = toy.normal((B, N, D), 1)

  @functools.partial(jax.jit, static_argnums=1)
  def draw(seed, deterministic):
    return module.apply(
      {'params': params},
      x_BND,
      REAL,
      deterministic,
      rngs={'dropout': jax.random.key(seed)},
    )

  np.testing.assert_array_equal(draw(0, True), draw(1, True))
  assert np.abs(draw(0, False) - draw(1, False)).max() > 0.1


@pytest.mark.parametrize(
  ('fields', 'size'),
  [
    ({}, 1 / 4),
    ({'scale_embeddings': True}, 1.0),
    ({'init_scale': 0.02}, 0.02),
    ({'init_scale': 0.02, 'scale_embeddings': True}, 0.08),
  ],
)
def test_soft_scale_is_that_of_tokens(fields, size):
  model = toy.model(vocab_size=500, **fields)
  assert fusion.soft_scale(model.config) == pytest.approx(size)
  sequence = toy.sequence(8, 12)
  embed = lambda key: model.init_with_output(
    key, sequence, True, method='embed'
  )[0]
  x_BTD = jax.jit(embed)(jax.random.key(0))
  assert np.sqrt(np.mean(x_BTD**2)) == pytest.approx(size, rel=0.2)
