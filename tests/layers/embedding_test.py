"""Tokens as vectors and back; rotations know only distances.

B batch, T length, D width, V vocabulary, N heads, H head width, F rotary
frequencies (H / 2).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import embedding

V, D, H = 11, 6, 8


def rotated(x_BTNH, positions, base=100.0, **kwargs):
  positions_BT = jnp.asarray(positions, jnp.int32)
  frequencies_F = embedding.rotary_frequencies(x_BTNH.shape[-1], base, **kwargs)
  return np.asarray(rotate(x_BTNH, positions_BT, frequencies_F))


@jax.jit
def rotate(x_BTNH, positions_BT, frequencies_F):
  angles = embedding.rotary_angles(positions_BT, frequencies_F)
  return embedding.rotate(x_BTNH, angles)


def test_lookup_and_attend_share_the_table():
  table_VD = toy.normal((V, D))
  params = {'params': {'embedding': table_VD}}
  module = embedding.Embedding(V, D)
  ids_BT = jnp.array([[0, 5, 10], [3, 3, 1]])
  np.testing.assert_array_equal(
    module.apply(params, ids_BT), np.asarray(table_VD)[np.asarray(ids_BT)]
  )
  x_BTD = toy.normal((2, 3, D), 1)
  np.testing.assert_allclose(
    module.apply(params, x_BTD, method='attend'),
    np.asarray(x_BTD) @ np.asarray(table_VD).T,
    rtol=1e-5,
    atol=1e-6,
  )


def test_gradient_of_a_lookup_counts_every_use():
  table_VD, out_BTD = toy.normal((V, D)), toy.normal((2, 3, D), 1)
  ids_BT = np.array([[0, 5, 10], [3, 3, 5]])
  module = embedding.Embedding(V, D)
  grad_VD = jax.grad(
    lambda table: jnp.sum(
      module.apply({'params': {'embedding': table}}, ids_BT) * out_BTD
    )
  )(table_VD)
  expected_VD = np.zeros((V, D))
  np.add.at(expected_VD, ids_BT, out_BTD)
  np.testing.assert_allclose(grad_VD, expected_VD, rtol=1e-5, atol=1e-6)


def test_types_names_and_spread_of_the_table():
  module = embedding.Embedding(
    500, 64, dtype=jnp.bfloat16, param_dtype=jnp.float32, init_scale=0.3
  )
  ids_BT = jnp.array([[1, 2]])
  variables = jax.jit(module.init)(jax.random.key(0), ids_BT)
  table = variables['params']['embedding']
  assert table.names == ('vocab', 'embed')
  assert table.value.dtype == jnp.float32
  assert np.std(table.value) == pytest.approx(0.3, rel=0.02)
  x_BTD = module.apply(variables, ids_BT)
  assert x_BTD.dtype == jnp.bfloat16
  scores_BTV = module.apply(variables, x_BTD, method='attend')
  assert scores_BTV.dtype == jnp.float32 and scores_BTV.shape == (1, 2, 500)


def test_frequencies_are_the_formula():
  frequencies_F = embedding.rotary_frequencies(H, 10_000.0)
  assert frequencies_F.dtype == np.float32
  np.testing.assert_allclose(frequencies_F, [1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_linear_scaling_divides_positions():
  x_BTNH = toy.normal((1, 3, 2, H))
  np.testing.assert_allclose(
    rotated(x_BTNH, [[8, 16, 24]], scale=8.0),
    rotated(x_BTNH, [[1, 2, 3]]),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ('context', 'factors'),
  [(8192, (8.0, 1.0, 4.0)), (256, (32.0, 1.0, 4.0)), (64, (4.0, 2.0, 3.0))],
)
def test_llama3_scaling_is_its_formula(context, factors):
  """Llama 3.1's three cases, by wavelength, one frequency at a time."""
  factor, low, high = factors
  base, head_dim = 500_000.0, 64
  expected = []
  cases = set()
  for pair in range(head_dim // 2):
    frequency = base ** (-2 * pair / head_dim)
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
      cases.add('kept')
      expected.append(frequency)
    elif wavelength > context / low:
      cases.add('stretched')
      expected.append(frequency / factor)
    else:
      cases.add('between')
      smooth = (context / wavelength - low) / (high - low)
      expected.append((1 - smooth) * frequency / factor + smooth * frequency)
  assert cases == {'kept', 'between', 'stretched'}
  actual = embedding.rotary_frequencies(
    head_dim, base, llama3_context=context, llama3_factors=factors
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_rotation_turns_pairs_by_position_times_frequency():
  """(x[i], x[i + H/2]) is a complex number times exp(i angle)."""
  x_BTNH = toy.normal((2, 3, 2, H))
  positions_BT = np.array([[0, 1, 2], [7, 3, 3]])
  actual = rotated(x_BTNH, positions_BT)
  frequencies_F = 100.0 ** (-np.arange(0, H, 2) / H)
  left, right = np.split(np.asarray(x_BTNH, float), 2, axis=-1)
  angles_BT1F = positions_BT[:, :, None, None] * frequencies_F
  turned = (left + 1j * right) * np.exp(1j * angles_BT1F)
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_scores_depend_only_on_distance():
  q_BTNH, k_BTNH = toy.normal((1, 1, 2, H)), toy.normal((1, 1, 2, H), 1)
  score = lambda t, s: np.sum(rotated(q_BTNH, [[t]]) * rotated(k_BTNH, [[s]]))
  assert score(9, 4) == pytest.approx(score(105, 100), rel=1e-4)
  assert abs(score(9, 4) - score(9, 5)) > 1e-2
  # The past is not the future.
  assert abs(score(9, 4) - score(4, 9)) > 1e-2


def test_rotation_keeps_norms_and_position_zero():
  x_BTNH = toy.normal((2, 5, 3, H))
  positions_BT = np.arange(10).reshape(2, 5)
  out = rotated(x_BTNH, positions_BT)
  np.testing.assert_allclose(
    np.linalg.norm(out, axis=-1), np.linalg.norm(x_BTNH, axis=-1), rtol=1e-5
  )
  np.testing.assert_array_equal(out[0, 0], x_BTNH[0, 0])
  assert np.abs(out[1] - x_BTNH[1]).max() > 0.1


def test_angles_stay_float32_for_bfloat16_heads():
  """Position 1000 has no exact bfloat16 neighbour; the angle must not care."""
  x_BTNH = toy.normal((1, 1, 1, H)).astype(jnp.bfloat16)
  low = rotated(x_BTNH, [[1001]])
  assert low.dtype == jnp.bfloat16
  high = rotated(x_BTNH.astype(jnp.float32), [[1001]])
  np.testing.assert_allclose(np.asarray(low, float), high, atol=0.02)


@jax.jit
def at_places(x_H, places_SA):
  """A vector turned by each place (row, column)."""
  angles = embedding.place_angles(places_SA[None], len(x_H) // 2, 100.0)
  x_BSNH = jnp.broadcast_to(x_H, (1, len(places_SA), 1, len(x_H)))
  return embedding.rotate(x_BSNH, embedding.rotation(angles))[0, :, 0]


def spatial_scores(q_H, k_H, query, keys):
  """Scores of one query and of keys at places (row, column)."""
  turned_SH = np.asarray(at_places(k_H, np.array(keys)))
  return turned_SH @ np.asarray(at_places(q_H, np.array([query])))[0]


def test_scores_depend_only_on_rows_and_columns_between():
  q_H, k_H = toy.normal((2 * H,)), toy.normal((2 * H,), 1)
  keys = np.array([[0, 0], [3, 1], [2, 5], [5, 2]])
  scores = spatial_scores(q_H, k_H, (1, 2), keys)
  moved = spatial_scores(q_H, k_H, (8, 5), keys + np.array([[7, 3]]))
  np.testing.assert_allclose(scores, moved, rtol=1e-4, atol=1e-4)
  # Rows and columns are each seen, and are not the same.
  assert np.ptp(spatial_scores(q_H, k_H, (0, 0), [(0, 0), (2, 0)])) > 1e-2
  assert np.ptp(spatial_scores(q_H, k_H, (0, 0), [(0, 0), (0, 2)])) > 1e-2
  assert np.ptp(spatial_scores(q_H, k_H, (0, 0), [(2, 0), (0, 2)])) > 1e-2


def test_half_of_the_pairs_turn_with_the_row():
  angles_TF = embedding.place_angles(jnp.array([[[2, 0], [0, 3]]]), 4, 100.0)[0]
  np.testing.assert_allclose(
    angles_TF, [[2, 0.2, 0, 0], [0, 0, 3, 0.3]], rtol=1e-6
  )


def test_angles_of_one_coordinate_are_those_of_positions():
  positions_BT = np.array([[0, 3, 17]])
  plain = embedding.rotary_angles(
    positions_BT, embedding.rotary_frequencies(H, 100.0)
  )
  placed = embedding.rotation(
    embedding.place_angles(positions_BT[..., None], H // 2, 100.0)
  )
  for one, other in zip(plain, placed, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('width', [16, 18, 7])
def test_sinusoids_tell_places_apart(width):
  places = np.stack(np.meshgrid(np.arange(9), np.arange(9)), axis=-1)
  waves_BTD = embedding.sinusoids(places.reshape(1, -1, 2), width, 100.0)
  assert waves_BTD.shape == (1, 81, width)
  waves_TD = np.asarray(waves_BTD)[0]
  gaps = np.linalg.norm(waves_TD[:, None] - waves_TD[None], axis=-1)
  assert np.min(gaps + 9 * np.eye(81)) > 0.05
  if width % 2 == 0:
    np.testing.assert_allclose(np.mean(waves_TD**2, axis=-1), 0.5, rtol=1e-5)
