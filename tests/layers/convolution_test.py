"""Residual convolutions and strides against plain definitions.

B pictures, H height, W width, C channels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import convolution, linear

B, H, W, C = 2, 6, 5, 4


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, *args):
  return module.apply({'params': params}, *args)


def test_a_block_is_a_convolution_of_each_channel_and_a_residual_mlp():
  block, x = convolution.Block(), toy.normal((B, H, W, C), 1)
  real = convolution.Extent((B, H, W), jnp.array([[6, 5], [3, 4]])).mask
  params = toy.random_params(block, x, real)
  mixed = jax.lax.conv_general_dilated(
    x * real,
    params['neighbours'].reshape(3, 3, 1, C),
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=C,
  )
  mixed = linear.rms_norm(mixed, params['norm']['scale'], 1e-6)
  up, down = params['mlp']['up'], params['mlp']['down']
  hidden = jax.nn.gelu(
    jnp.einsum('BHWC,CF->BHWF', mixed, up['kernel']) + bias(up)
  )
  update = jnp.einsum('BHWF,FC->BHWC', hidden, down['kernel']) + bias(down)
  np.testing.assert_allclose(
    apply(block, params, x, real), x + update, rtol=1e-4, atol=1e-5
  )


def bias(params):
  return params['bias'].reshape(1, 1, 1, -1)


@pytest.mark.parametrize('stride', [(2, 3), (1, 5), (6, 1)])
def test_spread_undoes_gather(stride):
  x = toy.normal((B, 6, 15, C))
  rows, columns = stride
  gathered = convolution.gather(x, stride)
  corner = x[1, rows : 2 * rows, :columns] if rows < 6 else x[1, :, :columns]
  np.testing.assert_array_equal(
    gathered[1, 1 if rows < 6 else 0, 0].reshape(rows, columns, C), corner
  )
  np.testing.assert_array_equal(convolution.spread(gathered, stride), x)


def test_a_cell_is_real_if_something_in_it_is():
  sizes = jnp.array([[6, 5], [4, 0], [3, 2]])
  extent = convolution.Extent((3, 6, 6), sizes)
  after = extent.after((3, 2))
  np.testing.assert_array_equal(after.sizes_B2, [[2, 3], [2, 0], [1, 1]])
  want = convolution.gather(extent.mask, (3, 2)).max(axis=(-2, -1))
  np.testing.assert_array_equal(after.mask[..., 0], want)
  before = after.before((3, 2))
  np.testing.assert_array_equal(before.sizes_B2, [[6, 6], [6, 0], [3, 2]])
  assert before.shape == extent.shape


def test_a_pyramid_sees_nothing_beyond_a_picture():
  """Not where a patch is only in part real either."""
  pyramid = convolution.Pyramid((4, 4), 16, 1)
  sizes = jnp.array([[5, 6], [3, 8]])
  real = convolution.Extent((2, 8, 8), sizes).mask
  x, other = toy.normal((2, 8, 8, 3)), toy.normal((2, 8, 8, 3), 1)
  params = toy.random_params(pyramid, x, sizes)
  ours, same, moved = (
    apply(pyramid, params, values, sizes)
    for values in (x, jnp.where(real, x, other), jnp.where(real, other, x))
  )
  patches = convolution.Extent((2, 2, 2), jnp.array([[2, 2], [1, 2]])).mask
  np.testing.assert_allclose(ours * patches, same * patches, atol=1e-5)
  assert np.abs((ours - moved) * patches).max() > 0.1


def test_strides_multiply_to_the_patch_and_channels_to_the_width():
  assert convolution.strides((7, 7)) == ((7, 7),)
  assert convolution.strides((8, 8)) == ((2, 2),) * 3
  assert convolution.strides((4, 30)) == ((2, 5), (2, 3), (1, 2))
  assert convolution.strides((1, 1)) == ()
  assert convolution.channels(64, ((2, 2),) * 3) == [8, 16, 32, 64]
  assert convolution.channels(4, ((7, 7),)) == [4, 4]
