"""Positions of soft tokens in their picture or sound, and means over them.

B media, N tokens of the canvas or of the longest sound, A coordinates of a
position, D width, K tokens of a frame.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Positions:
  """Positions of the soft tokens of media, the real tokens first.

  Attributes:
    coordinates_BNA: int32, (row, column) or (time,); 0 after the real tokens.
    count_B: int32, number of real tokens.
    extent_BA: int32, number of real tokens along each coordinate.
  """

  coordinates_BNA: jax.Array
  count_B: jax.Array
  extent_BA: jax.Array

  @property
  def real(self) -> jax.Array:
    """Which tokens are real, bool[B, N]."""
    slots_N = jnp.arange(self.coordinates_BNA.shape[1])
    return slots_N[None] < self.count_B[:, None]


def of_sizes(
  sizes_BA: jax.Array, steps: tuple[int, ...], grid: tuple[int, ...]
) -> Positions:
  """Positions of the tokens of media, row by row.

  Args:
    sizes_BA: height and width in pixels, or samples; 0: there is no medium.
    steps: pixels or samples from one token to the next.
    grid: tokens along each coordinate of the canvas.
  """
  steps_1A, grid_1A = np.array(steps)[None], np.array(grid)[None]
  extent_BA = jnp.minimum(-(-sizes_BA // steps_1A), grid_1A)
  count_B = jnp.prod(extent_BA, axis=-1)
  rest_BN = jnp.broadcast_to(
    jnp.arange(np.prod(grid)), (count_B.shape[0], np.prod(grid))
  )
  rest_BN = jnp.where(rest_BN < count_B[:, None], rest_BN, 0)
  coordinates = []
  for extent_B in jnp.maximum(extent_BA, 1).T[::-1]:
    coordinates.append(rest_BN % extent_B[:, None])
    rest_BN = rest_BN // extent_B[:, None]
  return Positions(jnp.stack(coordinates[::-1], axis=-1), count_B, extent_BA)


def pool_rectangles(
  x_BND: jax.Array, positions: Positions, num: int
) -> jax.Array:
  """Means over `num` rectangles of the real tokens, [B, K, D].

  The rectangles are a grid as square as possible, with no more rows than
  columns. They overlap where their number does not divide the tokens.
  """
  num_rows = max(n for n in range(1, int(num**0.5) + 1) if num % n == 0)
  split = (num_rows, num // num_rows)
  weights_BKN = positions.real[:, None].astype(jnp.float32)
  num_axes = positions.coordinates_BNA.shape[-1]
  split = split if num_axes == 2 else (num,)
  for axis in range(num_axes):
    parts_K = np.indices(split)[axis].reshape(1, -1)
    extent_B1 = positions.extent_BA[:, axis, None]
    start_BK = parts_K * extent_B1 // split[axis]
    stop_BK = -(-(parts_K + 1) * extent_B1 // split[axis])
    coordinate_B1N = positions.coordinates_BNA[:, None, :, axis]
    weights_BKN *= (coordinate_B1N >= start_BK[..., None]) & (
      coordinate_B1N < stop_BK[..., None]
    )
  total_BK1 = jnp.sum(weights_BKN, axis=-1, keepdims=True)
  weights_BKN = weights_BKN / jnp.maximum(total_BK1, 1)
  mean_BKD = jnp.einsum('BKN,BND->BKD', weights_BKN, x_BND.astype(jnp.float32))
  return mean_BKD.astype(x_BND.dtype)


def take_rows(x_BNP: jax.Array, at_BN: jax.Array) -> jax.Array:
  """The rows `at_BN` of each medium, [B, N, P]."""
  return jax.vmap(lambda x_NP, at_N: jnp.take(x_NP, at_N, axis=0))(x_BNP, at_BN)
