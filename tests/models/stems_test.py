"""Vectors of patches and of frames, against loops and convolutions.

B media, N tokens, D width.
"""

import jax
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import stems

H, W, SIDE = 12, 16, 4
# The whole canvas; a part of it; parts of patches; nothing.
SIZES = np.array([[12, 16], [8, 12], [5, 6], [0, 0]], np.int32)
HOP, FRAMES, BANDS = 80, 24, 6
SAMPLES = np.array([[24 * HOP]], np.int32)


@pytest.mark.parametrize('channels', [1, 3])
def test_patches_come_row_by_row_of_their_picture(channels):
  """Against loops over rows and columns; outside is grey."""
  D = 5
  module = stems.ImageStem(SIDE, D)
  rng = np.random.default_rng(0)
  values = rng.integers(0, 256, (4, H, W, channels)).astype(np.uint8)
  params = toy.random_params(module, values, SIZES)
  x_BND, positions = jax.jit(module.apply)({'params': params}, values, SIZES)
  kernel, bias = params['patch']['kernel'], params['patch']['bias']
  for row, (height, width) in enumerate(SIZES):
    pixels = np.zeros((H, W, channels))
    pixels[:height, :width] = values[row, :height, :width] / 127.5 - 1
    expected = [
      pixels[y : y + SIDE, x : x + SIDE].reshape(-1) @ kernel + bias
      for y in range(0, height, SIDE)
      for x in range(0, width, SIDE)
    ]
    assert positions.count_B[row] == len(expected)
    if expected:
      np.testing.assert_allclose(
        x_BND[row, : len(expected)], expected, rtol=1e-4, atol=1e-4
      )


def test_convolutions_see_beyond_a_patch_and_alike_everywhere():
  """What moves by a patch are the same tokens, moved; some of neighbours."""
  module = stems.ImageStem(SIDE, 16, num_blocks=1)
  # A patch's worth in the middle of nothing, far from where the canvas ends.
  values = np.full((2, 7 * SIDE, 8 * SIDE, 1), 127.5)
  thing = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1))
  values[0, 3 * SIDE : 4 * SIDE, 3 * SIDE : 4 * SIDE] = thing
  values[1, 3 * SIDE : 4 * SIDE, 4 * SIDE : 5 * SIDE] = thing
  sizes = np.array([values.shape[1:3]] * 2, np.int32)
  params = toy.random_params(module, values, sizes)
  x_BND, _ = jax.jit(module.apply)({'params': params}, values, sizes)
  x_BHWD = np.asarray(x_BND).reshape(2, 7, 8, 16)
  np.testing.assert_allclose(
    x_BHWD[0, 2:5, 2:5], x_BHWD[1, 2:5, 3:6], rtol=1e-4, atol=1e-5
  )
  differs = np.abs(x_BHWD[0] - x_BHWD[1]).max(axis=-1) > 1e-3
  assert differs[3, 2:6].all()
  assert differs[2, 3:5].all()


@pytest.mark.parametrize('patch', [1, 3, 4, 8])
def test_frames_are_convolved(patch):
  """Against XLA's convolutions, of one sound of the full length."""
  D = 5
  module = stems.AudioStem(patch, HOP, D)
  values = toy.normal((1, FRAMES, BANDS), 1)
  params = toy.random_params(module, values, SAMPLES[:1])
  x_1ND, positions = jax.jit(module.apply)(
    {'params': params}, values, SAMPLES[:1]
  )
  assert x_1ND.shape[1] == FRAMES // patch == positions.count_B[0]

  def convolve(x, layer, stride):
    y = jax.lax.conv_general_dilated(
      x,
      layer['kernel'],
      (stride,),
      [(1, 1)],
      dimension_numbers=('NWC', 'WIO', 'NWC'),
    )
    return y + layer['bias'][None, None]

  first = 1 if patch % 2 else 2
  hidden = jax.nn.gelu(convolve(values, params['frames'], first))
  expected = convolve(hidden, params['tokens'], patch // first)
  np.testing.assert_allclose(x_1ND, expected, rtol=1e-4, atol=1e-4)


def test_a_canvas_is_of_whole_patches():
  module = stems.ImageStem(SIDE, 5)
  with pytest.raises(config_lib.ConfigError, match='12 x 18 pixels'):
    module.init(jax.random.key(0), np.zeros((1, 12, 18, 1)), SIZES[:1])
  module = stems.AudioStem(4, HOP, 5)
  with pytest.raises(config_lib.ConfigError, match='the 23 frames'):
    module.init(jax.random.key(0), np.zeros((1, 23, BANDS)), SAMPLES[:1])
