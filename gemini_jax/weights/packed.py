"""Pruned matrices as files hold them: a bit for each number, and the rest.

For 2 of 4 that is as small as two indices of two bits. It is the form of a
checkpoint alone: a model that is opened has `unpack` made of it, since no
product is faster by zeros in any place.

N numbers of a matrix, K of them that can be kept.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.layers import matmul
from gemini_jax.weights import float8, int4, int8


@flax.struct.dataclass
class Packed(matmul.Weight):
  """The numbers of an array, or the codes of a weight, without zeros.

  Attributes:
    mask: uint8[*lead, ceil(N / 8)], the bits of what is not zero.
    numbers: [*lead, K], what is not zero, then zeros; codes of 4 bits are two
      a byte.
    rest: the weight without its codes; None: of an array.
    dims: of the array, or of the codes.
    num_lead: how many dims `lead` has.
  """

  mask: jax.Array
  numbers: jax.Array
  rest: Any
  dims: tuple[int, ...] = flax.struct.field(pytree_node=False)
  num_lead: int = flax.struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    return tuple(jax.eval_shape(lambda: unpack(self)).shape)

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return self.numbers.dtype if self.rest is None else self.rest.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`."""
    return matmul.to_array(unpack(self), dtype)


def pack(leaf: Any, num_lead: int, num_kept: int) -> Packed:
  """A pruned array, Int8, Int4 or Float8 without its zeros.

  Args:
    leaf: what is packed.
    num_lead: how many dims of layers and experts it has.
    num_kept: K; no more numbers of a matrix may be other than zero.
  """
  numbers, rest = _taken_apart(leaf)
  lead = numbers.shape[:num_lead]
  size = math.prod(numbers.shape[num_lead:])

  def one(numbers_N):
    is_kept_N = _is_kept(leaf, numbers_N)
    (places_K,) = jnp.nonzero(is_kept_N, size=num_kept, fill_value=size)
    kept_K = jnp.take(numbers_N, places_K, mode='fill', fill_value=0)
    return jnp.packbits(is_kept_N), kept_K

  mask, kept = jax.lax.map(one, numbers.reshape(-1, size))
  if isinstance(leaf, int4.Int4):
    kept = int4.packed(kept)
  stack = lambda array: array.reshape(*lead, array.shape[-1])
  return Packed(stack(mask), stack(kept), rest, numbers.shape, num_lead)


def num_kept(leaf: Any, num_lead: int) -> jax.Array:
  """The K of `pack` that is enough, an int."""
  is_kept = _is_kept(leaf, _taken_apart(leaf)[0])
  dims = tuple(range(num_lead, is_kept.ndim))
  return jnp.maximum(jnp.max(jnp.sum(is_kept, axis=dims)), 1)


def _is_kept(leaf: Any, numbers: jax.Array) -> jax.Array:
  """Which numbers of a leaf are other than zero, whose sign is lost."""
  is_float8 = isinstance(leaf, float8.Float8)
  return (numbers & 0x7F if is_float8 else numbers) != 0


def unpack(packed: Packed) -> Any:
  """What was packed."""
  size = math.prod(packed.dims[packed.num_lead :])
  kept = packed.numbers
  if isinstance(packed.rest, int4.Int4):
    kept = int4.unpacked(kept, 2 * kept.shape[-1])

  def one(parts):
    mask, kept_K = parts
    is_kept_N = jnp.unpackbits(mask)[:size].astype(bool)
    places_N = jnp.cumsum(is_kept_N, dtype=jnp.int32) - 1
    numbers_N = jnp.take(kept_K, places_N, mode='clip')
    return jnp.where(is_kept_N, numbers_N, 0).astype(kept_K.dtype)

  flat = lambda array: array.reshape(-1, array.shape[-1])
  numbers = jax.lax.map(one, (flat(packed.mask), flat(kept)))
  return _put_together(packed.rest, numbers.reshape(packed.dims))


def _taken_apart(leaf: Any) -> tuple[jax.Array, Any]:
  """The numbers of a leaf, one an element, and what else it has."""
  if isinstance(leaf, int8.Int8):
    return leaf.values, dataclasses.replace(leaf, values=None)
  if isinstance(leaf, int4.Int4):
    size = math.prod(leaf.inputs)
    return int4.unpacked(leaf.codes, size), dataclasses.replace(
      leaf, codes=None
    )
  if isinstance(leaf, float8.Float8):
    return leaf.codes, dataclasses.replace(leaf, codes=None)
  return leaf, None


def _put_together(rest: Any, numbers: jax.Array) -> Any:
  if isinstance(rest, int8.Int8):
    return dataclasses.replace(rest, values=numbers)
  if isinstance(rest, int4.Int4):
    return dataclasses.replace(rest, codes=int4.packed(numbers))
  if isinstance(rest, float8.Float8):
    return dataclasses.replace(rest, codes=numbers)
  return numbers
