"""The one place where a model reads its matrices.

A matrix among the parameters is an array, or a `Weight`: a pytree that stands
where the array would stand and is stored in another way (quantised, low-rank
beside plain, block-sparse). A new kind is one subclass of `Weight`; layers call
the functions below and don't know which kind they have.

R rows, D dims in, F dims out, E groups.
"""

import math
from typing import Any, Self

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp


class Weight:
  """A matrix that is not stored as one array.

  A subclass is a `flax.struct.dataclass` of arrays. In a stack of layers each
  of its arrays has the leading dim of layers, so that a slice of all of them
  is the weight of one layer; `shape` must follow from the arrays. Only
  `shape`, `dtype` and `to_array` must be written; a subclass replaces the rest
  where it knows a better way than to make the array.
  """

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    raise NotImplementedError

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    raise NotImplementedError

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See the function `to_array`."""
    raise NotImplementedError

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See the function `dot`."""
    array = self.to_array(dtype)
    return dot(x, array, num_contracted, dtype=dtype, out_dtype=out_dtype)

  def dot_transposed(
    self,
    x: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See the function `dot_transposed`."""
    array = self.to_array(dtype)
    return dot_transposed(x, array, dtype=dtype, out_dtype=out_dtype)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See the function `rows`."""
    return rows(self.to_array(dtype), ids, dtype)

  def grouped_dot(self, x_RD: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """See the function `grouped_dot`."""
    return grouped_dot(x_RD, self.to_array(x_RD.dtype), sizes_E)

  def names(self, names: tuple[str | None, ...]) -> Self | None:
    """Logical names of the dims of each array, in place of the array.

    By them the arrays are split over devices, in a stack with the name of its
    dim of layers. What runs on each device by itself (experts) gets them in
    these parts. A dim may bear a name only where it is as long as the dim of
    that name in `shape`. None: the arrays are whole on each device, and experts
    get a part of what `to_array` gives.

    Args:
      names: of the dims of `shape`.
    """
    del names

  @property
  def stays_in_stack(self) -> bool:
    """Whether a layer is read by `of_layer`, and not from a slice.

    A weight without gradient may say so; without it its arrays are sliced,
    which is a copy on CPUs.
    """
    return False

  def of_layer(self, index: jax.Array) -> Self:
    """The weight of one layer, whose arrays are those of the stack."""
    raise NotImplementedError


Leaf = jax.Array | Weight


def param(
  module: nn.Module,
  name: str,
  init: Any,
  names: tuple[str | None, ...],
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike,
) -> Any:
  """A matrix among the parameters of a module: made once, then read.

  Linen's own `param` would compare the arrays inside a `Weight` with what the
  initializer makes.

  Args:
    module: whose parameter it is.
    name: of the parameter.
    init: makes the first values.
    names: logical name of each dim, for sharding.
    shape: of the matrix.
    dtype: of the first values.

  Raises:
    ScopeParamShapeError: the parameter stands for an array of another shape.
  """
  if not module.has_variable('params', name):
    init = nn.with_logical_partitioning(init, names)
    return module.param(name, init, shape, dtype)
  leaf: Any = nn.meta.unbox(module.get_variable('params', name))
  if tuple(leaf.shape) != shape:
    raise flax.errors.ScopeParamShapeError(
      name, '/'.join(module.path), leaf.shape, shape
    )
  return leaf


def to_array(leaf: Any, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The matrix as one array."""
  if isinstance(leaf, Weight):
    return leaf.to_array(dtype)
  return leaf.astype(dtype)


def dot(
  x: jax.Array,
  leaf: Any,
  num_contracted: int,
  *,
  dtype: jax.typing.DTypeLike,
  out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """The last dims of `x` contracted with the first dims of the matrix.

  Args:
    x: [..., *in].
    leaf: [*in, *out].
    num_contracted: how many dims `in` has.
    dtype: of the factors.
    out_dtype: of the sums and the output; None: as XLA likes, and `dtype`.

  Returns:
    [..., *out].
  """
  if isinstance(leaf, Weight):
    return leaf.dot(x, num_contracted, dtype=dtype, out_dtype=out_dtype)
  x, kernel = x.astype(dtype), leaf.astype(dtype)
  if not on_one_device():
    return jnp.tensordot(
      x, kernel, num_contracted, preferred_element_type=out_dtype
    )
  fan_in = math.prod(kernel.shape[:num_contracted])
  x_RD, num_rows = _enough_rows(x.reshape(-1, fan_in))
  y_RF = jnp.dot(
    x_RD, kernel.reshape(fan_in, -1), preferred_element_type=out_dtype
  )
  lead = x.shape[: x.ndim - num_contracted]
  return y_RF[:num_rows].reshape(*lead, *kernel.shape[num_contracted:])


def dot_transposed(
  x: jax.Array,
  leaf: Any,
  *,
  dtype: jax.typing.DTypeLike,
  out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """The last dim of `x` contracted with the last dim of the matrix.

  Args:
    x: [..., D].
    leaf: [F, D].
    dtype: of the factors.
    out_dtype: as of `dot`.

  Returns:
    [..., F].
  """
  if isinstance(leaf, Weight):
    return leaf.dot_transposed(x, dtype=dtype, out_dtype=out_dtype)
  x, kernel_FD = x.astype(dtype), leaf.astype(dtype)
  lead = x.shape[:-1]
  num_rows = None
  if on_one_device():
    x, num_rows = _enough_rows(x.reshape(-1, x.shape[-1]))
  y = jax.lax.dot_general(
    x,
    kernel_FD,
    (((x.ndim - 1,), (1,)), ((), ())),
    preferred_element_type=out_dtype,
  )
  return y[:num_rows].reshape(*lead, -1)


def rows(leaf: Any, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The rows `ids` of a table [F, D], [..., D]."""
  if isinstance(leaf, Weight):
    return leaf.rows(ids, dtype)
  return jnp.take(leaf, ids, axis=0).astype(dtype)


def grouped_dot(x_RD: jax.Array, leaf: Any, sizes_E: jax.Array) -> jax.Array:
  """The product of each row with its group's matrix, [R, F].

  The first rows belong to group 0, the next to group 1, and so on. Rows beyond
  all groups give zeros and have no gradient. Backends may leave there what was
  in memory, so both sides are masked.

  Args:
    x_RD: the rows, in the type of the computation.
    leaf: [E, D, F].
    sizes_E: int32, rows of each group.
  """
  if isinstance(leaf, Weight):
    return leaf.grouped_dot(x_RD, sizes_E)
  grouped_R1 = (jnp.arange(x_RD.shape[0]) < jnp.sum(sizes_E))[:, None]
  y_RF = jax.lax.ragged_dot(
    jnp.where(grouped_R1, x_RD, 0), leaf.astype(x_RD.dtype), sizes_E
  )
  return jnp.where(grouped_R1, y_RF, 0)


def on_one_device() -> bool:
  """Whether one device runs the program that is traced.

  There, dims may be merged: XLA for CPU is faster at a product of two plain
  matrices. On several, a merge of a dim that is split over devices with
  another dim would make all devices compute all of it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def split_stack(params: Any) -> tuple[Any, Any]:
  """The parameters of a stack that stay in it, and those that are sliced.

  Both are trees like `params` with None in the place of the other's leaves.
  """
  is_weight = lambda leaf: isinstance(leaf, Weight)
  stays = lambda leaf: is_weight(leaf) and leaf.stays_in_stack
  choose = lambda wanted: jax.tree.map(
    lambda leaf: leaf if stays(leaf) is wanted else None,
    params,
    is_leaf=is_weight,
  )
  return choose(True), choose(False)


def join_layer(stack: Any, sliced: Any, index: jax.Array) -> Any:
  """The parameters of a layer from the two parts of `split_stack`."""
  return jax.tree.map(
    lambda whole, part: part if whole is None else whole.of_layer(index),
    stack,
    sliced,
    is_leaf=lambda leaf: leaf is None or isinstance(leaf, Weight),
  )


def for_devices(
  leaf: Any, names: tuple[str | None, ...], dtype: jax.typing.DTypeLike
) -> tuple[Any, Any]:
  """A matrix as an argument of `sharding.per_device`, and the names of it.

  An array is brought to the type of the computation, so that no more bytes
  than needed go from device to device.
  """
  if isinstance(leaf, Weight):
    arrays = leaf.names(names)
    if arrays is not None:
      return leaf, arrays
  return to_array(leaf, dtype), names


def _enough_rows(x_RD: jax.Array) -> tuple[jax.Array, int]:
  """The rows that are multiplied, and how many of them were asked for.

  XLA for CPUs brings a bfloat16 matrix to float32 for a single row, and reads
  it as it is for two, so a row of zeros is added.
  """
  num_rows = x_RD.shape[0]
  is_slow = num_rows == 1 and x_RD.dtype == jnp.bfloat16
  if is_slow and jax.default_backend() == 'cpu':
    return jnp.pad(x_RD, ((0, 1), (0, 0))), num_rows
  return x_RD, num_rows
