"""Where the soft tokens of media come from, and means and rows by place.

B media, N tokens of the canvas or of the longest sound, A coordinates of a
place, D width, K tokens of a frame.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Places:
  """Where each soft token comes from, the real ones first.

  Attributes:
    places_BNA: int32; (row, column) | (time,). 0 past the real ones.
    count_B: int32, the real ones.
    extent_BA: int32, how many there are along each coordinate.
  """

  places_BNA: jax.Array
  count_B: jax.Array
  extent_BA: jax.Array

  @property
  def real(self) -> jax.Array:
    """Which slots hold a token, bool[B, N]."""
    slots_N = jnp.arange(self.places_BNA.shape[1])
    return slots_N[None] < self.count_B[:, None]


def places_of(
  sizes_BA: jax.Array, steps: tuple[int, ...], grid: tuple[int, ...]
) -> Places:
  """Places of media, row by row of their own extent.

  Args:
    sizes_BA: real extents, in pixels or samples; 0 where there is no medium.
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
  return Places(jnp.stack(coordinates[::-1], axis=-1), count_B, extent_BA)


def pooled(x_BND: jax.Array, places: Places, num: int) -> jax.Array:
  """Means over `num` rectangles of the real tokens, [B, K, D].

  The rectangles make a grid, as square as can be, with no more rows than
  columns; they overlap where they do not divide the tokens.
  """
  num_rows = max(n for n in range(1, int(num**0.5) + 1) if num % n == 0)
  split = (num_rows, num // num_rows)
  weights_BKN = places.real[:, None].astype(jnp.float32)
  num_axes = places.places_BNA.shape[-1]
  split = split if num_axes == 2 else (num,)
  for axis in range(num_axes):
    parts_K = np.indices(split)[axis].reshape(1, -1)
    extent_B1 = places.extent_BA[:, axis, None]
    start_BK = parts_K * extent_B1 // split[axis]
    stop_BK = -(-(parts_K + 1) * extent_B1 // split[axis])
    place_B1N = places.places_BNA[:, None, :, axis]
    weights_BKN *= (place_B1N >= start_BK[..., None]) & (
      place_B1N < stop_BK[..., None]
    )
  total_BK1 = jnp.sum(weights_BKN, axis=-1, keepdims=True)
  weights_BKN = weights_BKN / jnp.maximum(total_BK1, 1)
  mean_BKD = jnp.einsum('BKN,BND->BKD', weights_BKN, x_BND.astype(jnp.float32))
  return mean_BKD.astype(x_BND.dtype)


def gather(x_BNP: jax.Array, at_BN: jax.Array) -> jax.Array:
  """Rows of each medium."""
  return jax.vmap(lambda x_NP, at_N: jnp.take(x_NP, at_N, axis=0))(x_BNP, at_BN)
