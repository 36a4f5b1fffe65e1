"""Means over rectangles of a picture's tokens, against loops.

B media, N tokens, K rectangles, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.models import patch_positions

H, W, SIDE = 12, 16, 4
# The whole canvas; a part of it; parts of patches; nothing.
SIZES = np.array([[12, 16], [8, 12], [5, 6], [0, 0]], np.int32)


@pytest.mark.parametrize(
  ('num', 'split'), [(1, (1, 1)), (4, (2, 2)), (6, (2, 3)), (3, (1, 3))]
)
def test_means_over_rectangles(num, split):
  """Against loops: rectangle i of n covers from floor to ceil of its share."""
  positions = patch_positions.of_sizes(
    jnp.asarray(SIZES), (SIDE, SIDE), (H // SIDE, W // SIDE)
  )
  x_BND = toy.normal((4, 12, 5))
  mean_BKD = jax.jit(patch_positions.pool_rectangles, static_argnums=2)(
    x_BND, positions, num
  )
  for row, (rows, columns) in enumerate([(3, 4), (2, 3), (2, 2)]):
    x = np.asarray(x_BND)[row, : rows * columns].reshape(rows, columns, 5)
    share = lambda i, of, n: slice(int(i * n / of), -(-(i + 1) * n // of))
    expected = [
      x[share(i, split[0], rows), share(j, split[1], columns)].mean((0, 1))
      for i in range(split[0])
      for j in range(split[1])
    ]
    np.testing.assert_allclose(mean_BKD[row], expected, rtol=1e-5, atol=1e-6)
  assert not np.any(mean_BKD[3])
