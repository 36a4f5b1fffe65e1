"""The highest of many numbers, found by counting alone.

A sort of an array that is split over devices would gather it on each of them.
Here a threshold is found bit by bit: 32 times, numbers above a candidate are
counted where they lie, and the counts alone are added up over devices. Counts
are integers, so that the choice is exact and the same on every mesh.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Odd, so that products with different numbers are different.
_SCATTER = 0x9E3779B1


def highest(
  scores: jax.Array, count: jax.typing.ArrayLike, dims: Sequence[int]
) -> jax.Array:
  """Bools: the `count` highest numbers along some dims.

  Of equal ones some are chosen, always the same, so that there are `count`.

  Args:
    scores: numbers of any sign.
    count: how many along `dims`; one number, or one for each choice in an array
      where `dims` have length 1.
    dims: along which numbers compete; for each index of the others there is a
      choice of its own.
  """
  total = lambda bools: jnp.sum(
    bools[0], axis=tuple(dims), keepdims=True, dtype=jnp.uint32
  )
  return _select([scores], count, total)[0]


def highest_overall(
  scores: Sequence[jax.Array], count: jax.typing.ArrayLike
) -> list[jax.Array]:
  """Bools: the `count` highest numbers of all arrays together.

  The arrays have less than 2^32 numbers.
  """
  total = lambda bools: sum(
    (jnp.sum(one, dtype=jnp.uint32) for one in bools), start=jnp.uint32(0)
  )
  return _select(scores, count, total)


def _select(
  scores: Sequence[jax.Array],
  count: jax.typing.ArrayLike,
  total: Callable[[list[jax.Array]], jax.Array],
) -> list[jax.Array]:
  """See above; `total` counts what is true, with dims that compete as 1."""
  keys = [_ordered(one) for one in scores]
  offsets = [math.prod(one.shape) for one in scores]
  places = [
    _places(one.shape, sum(offsets[:i])) for i, one in enumerate(scores)
  ]
  wanted = jnp.broadcast_to(
    jnp.asarray(count, jnp.uint32), jax.eval_shape(total, keys).shape
  )
  threshold = _largest(lambda t: total([key >= t for key in keys]), wanted)
  above = [key > threshold for key in keys]
  equal = [key == threshold for key in keys]
  lowest = _largest(
    lambda t: total(
      [e & (place >= t) for e, place in zip(equal, places, strict=True)]
    ),
    wanted - total(above),
  )
  return [
    a | (e & (place >= lowest))
    for a, e, place in zip(above, equal, places, strict=True)
  ]


def _largest(
  count_from: Callable[[jax.Array], jax.Array], wanted: jax.Array
) -> jax.Array:
  """The largest uint32 from which on there are `wanted` numbers or more."""

  def add_bit(i, threshold):
    candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(count_from(candidate) >= wanted, candidate, threshold)

  return jax.lax.fori_loop(0, 32, add_bit, jnp.zeros_like(wanted))


def _ordered(scores: jax.Array) -> jax.Array:
  """uint32 in the order of float32 numbers."""
  scores = scores.astype(jnp.float32)
  # Zeros of either sign are equal.
  scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)
  bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _places(shape: tuple[int, ...], offset: int) -> jax.Array:
  """A uint32 of its own for each place, in no order that means anything."""
  place = jnp.zeros(shape, jnp.uint32)
  for dim, size in enumerate(shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
    place = place * jnp.uint32(size % 2**32) + index
  return (place + jnp.uint32(offset % 2**32)) * jnp.uint32(_SCATTER)
