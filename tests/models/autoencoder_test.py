"""The autoencoder: shapes, extents, gradients.

B pictures, H height, W width, C channels, N tokens, Z numbers in z.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import autoencoder
from gemini_jax.objectives import media_losses

KEY = jax.random.key(0)
Z = 3


@functools.partial(jax.jit, static_argnames=('module', 'method', 'grid'))
def apply(module, params, *args, method='__call__', grid=None, **kwargs):
  if grid is not None:
    kwargs['grid'] = grid
  return module.apply({'params': params}, *args, method=method, **kwargs)


def build(patch, channels=1, width=16, **fields):
  config = config_lib.Autoencoder(dim=Z, width=width, **fields)
  module = autoencoder.Autoencoder(config, patch, channels)
  picture = jnp.zeros((1, *patch, channels))
  return module, toy.random_params(module, picture, KEY, scale=0.5)


@pytest.mark.parametrize(
  ('patch', 'height', 'width', 'channels'),
  [((7, 7), 14, 21, 1), ((6, 1), 12, 3, 3), ((4, 12), 20, 12, 1)],
)
def test_any_patch_gives_a_normal_each_and_a_picture(
  patch, height, width, channels
):
  module, params = build(patch, channels)
  x = toy.normal((2, height, width, channels))
  decoded, posterior = apply(module, params, x, KEY)
  tokens = height // patch[0] * (width // patch[1])
  assert posterior.mean.shape == posterior.log_var.shape == (2, tokens, Z)
  assert decoded.shape == x.shape
  assert decoded.dtype == posterior.mean.dtype == jnp.float32


def test_parameters_are_the_same_on_all_devices():
  """No mesh must divide its few channels."""
  model = autoencoder.Autoencoder(config_lib.Autoencoder(dim=2), (6, 6), 3)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, 12, 12, 3)), jax.random.key(0)
  )
  names = jax.tree.leaves(
    nn.get_partition_spec(variables), is_leaf=lambda x: isinstance(x, tuple)
  )
  assert len(names) > 20
  assert not any(any(own) for own in names)


def test_tokens_are_row_by_row():
  """A pixel changes the z of its own patch most."""
  module, params = build((4, 4))
  x = toy.normal((1, 8, 12, 1))
  plain = apply(module, params, x, method='encode').mean
  moved = apply(
    module, params, x.at[0, 5:7, 9:11].add(1.0), method='encode'
  ).mean
  gap_N = np.abs(np.asarray(moved - plain))[0].sum(axis=-1)
  assert gap_N.argmax() == 5
  z_1NZ = toy.normal((1, 6, Z))
  decode = functools.partial(apply, module, params, method='decode')
  gap = decode(z_1NZ.at[0, 5].add(1.0), grid=(2, 3)) - decode(
    z_1NZ, grid=(2, 3)
  )
  parts = np.abs(np.asarray(gap))[0, ..., 0].reshape(2, 4, 3, 4)
  assert parts.sum(axis=(1, 3)).reshape(6).argmax() == 5


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_canvas_around_a_picture_changes_nothing(dtype):
  """The same z, picture and losses as on a canvas of its own tokens."""
  patch = (4, 4)
  module, params = build(patch, channels=3)
  module = module.clone(dtype=dtype)
  sizes = jnp.array([[7, 4], [0, 0]])
  large = toy.normal((2, 12, 16, 3))
  small = large[:1, :8, :4]
  got = apply(module, params, large, sizes_B2=sizes, method='encode')
  want = apply(module, params, small, sizes_B2=sizes[:1], method='encode')
  tolerance = {'rtol': 1e-4, 'atol': 1e-5 if dtype == jnp.float32 else 2e-2}
  np.testing.assert_allclose(
    got.mean.reshape(2, 3, 4, Z)[0, :2, :1].reshape(2, Z),
    want.mean[0],
    **tolerance,
  )
  decode = functools.partial(apply, module, params, method='decode')
  drawn = decode(got.mean, sizes_B2=sizes, grid=(3, 4))
  alone = decode(want.mean, sizes_B2=sizes[:1], grid=(2, 1))
  np.testing.assert_allclose(drawn[0, :8, :4], alone[0], **tolerance)
  whole = decode(want.mean, grid=(2, 1))
  np.testing.assert_allclose(whole, alone, **tolerance)
  np.testing.assert_array_equal(drawn.at[0, :8, :4].set(0), 0)
  if dtype == jnp.float32:
    terms = media_losses.autoencoder_losses(large, drawn, got, patch, sizes)
    others = media_losses.autoencoder_losses(
      small, alone, want, patch, sizes[:1]
    )
    for name, value in terms.items():
      np.testing.assert_allclose(value, others[name], rtol=1e-4, err_msg=name)


def test_nothing_beyond_the_extent_has_a_gradient():
  module, params = build((4, 4))
  sizes = jnp.array([[5, 3], [8, 8]])

  def total(x):
    decoded, posterior = module.apply({'params': params}, x, KEY, sizes)
    terms = media_losses.autoencoder_losses(
      x, decoded, posterior, (4, 4), sizes
    )
    return sum(terms.values())

  grads = np.asarray(jax.jit(jax.grad(total))(toy.normal((2, 8, 8, 1))))
  assert (grads[0, :5, :3] != 0).all() and (grads[1] != 0).all()
  assert not grads[0, 5:].any() and not grads[0, :, 3:].any()


def test_it_overfits_one_picture():
  """All parameters learn, and the decoder tells the pixels apart."""
  module, _ = build((4, 4), width=32)
  x = toy.normal((1, 8, 8, 1), 5, 0.5)
  params = module.init(jax.random.key(3), x, KEY)['params']
  optimizer = optax.adam(1e-2)

  def loss(params, key):
    decoded, posterior = module.apply({'params': params}, x, key)
    terms = media_losses.autoencoder_losses(x, decoded, posterior, (4, 4))
    return jnp.mean(jnp.square(decoded - x)) + 1e-4 * terms['kl']

  @jax.jit
  def train(params):
    def step(carry, key):
      params, state = carry
      value, grads = jax.value_and_grad(loss)(params, key)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), (value, grads)

    keys = jax.random.split(KEY, 400)
    carry = params, optimizer.init(params)
    (params, _), (values, grads) = jax.lax.scan(step, carry, keys)
    return params, values, jax.tree.map(lambda leaf: leaf[5], grads)

  params, values, grads = train(params)
  assert values[-1] < 0.02 < 0.2 < values[0]
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(leaf).sum() > 0, jax.tree_util.keystr(path)


def test_no_picture_at_all_costs_nothing_and_has_finite_gradients():
  module, params = build((4, 4))

  def total(params):
    x, sizes = toy.normal((2, 8, 8, 1)), jnp.zeros((2, 2), jnp.int32)
    decoded, posterior = module.apply({'params': params}, x, KEY, sizes)
    terms = media_losses.autoencoder_losses(
      x, decoded, posterior, (4, 4), sizes
    )
    return sum(terms.values()), terms

  (_, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
  assert all(value == 0 for value in terms.values())
  assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_log_variances_are_bounded_whatever_comes_in():
  module, params = build((4, 4))
  x = 1e4 * toy.normal((2, 8, 8, 1))
  posterior = apply(module, params, x, method='encode')
  assert (np.abs(posterior.log_var + 4) <= 6).all()


def test_one_program_serves_all_extents():
  module, params = build((4, 4))
  counts = []

  @jax.jit
  def run(x, key, sizes):
    counts.append(1)
    return module.apply({'params': params}, x, key, sizes)

  x = toy.normal((2, 8, 8, 1))
  for side in (3, 8):
    run(x, KEY, jnp.full((2, 2), side))
  assert len(counts) == 1
