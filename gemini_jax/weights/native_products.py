"""Weights whose products of few rows a kernel of ours can do on CPUs.

The kernel (kernels/native.py) reads the matrix of a layer where it is in the
stack; XLA would copy it out first. `with_kernel` gives it to the parameters of
a model that decodes: to weights of integers or blocks, and to plain matrices,
which become `Dense`.

R rows, D dims in, F dims out.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.kernels import native
from gemini_jax.layers import matmul
from gemini_jax.models import parameter_groups

# Smaller models stay in a processor's caches, where XLA is as fast.
_LEAST_BYTES = 2**26


class NativeWeight(matmul.Weight):
  """A matrix that may lie in a stack with those of other layers.

  It is stored in one array, or two: codes and scales, or blocks and their
  places. A subclass is a dataclass with these attributes.

  Attributes:
    NUM_DIMS: of the first array, without layers and experts.
    kernel: of products on CPUs, 'xla' or 'native'.
    layer: int32, whose matrix in a stack this is, see `of_layer`; None: the
      arrays are of this weight alone.
  """

  NUM_DIMS = 2
  kernel: str
  layer: jax.Array | None

  @property
  def stacked(self) -> tuple[jax.Array, ...]:
    """The arrays as they are stored."""
    raise NotImplementedError

  @property
  def stays_in_stack(self) -> bool:
    """See `matmul.Weight`."""
    return self.kernel == 'native' and (
      self.stacked[0].ndim == self.NUM_DIMS + 1
    )

  def of_layer(self, index: jax.Array) -> Self:
    """See `matmul.Weight`."""
    return self.replace(layer=index)  # pyright: ignore

  @property
  def lead(self) -> tuple[int, ...]:
    """The dims of layers and experts, of this weight alone."""
    lead = self.stacked[0].shape[: -self.NUM_DIMS]
    return lead if self.layer is None else lead[1:]

  def arrays(self) -> tuple[jax.Array, ...]:
    """The arrays of this weight alone."""
    if self.layer is None:
      return self.stacked
    return tuple(array[self.layer] for array in self.stacked)

  def stack(self) -> tuple[jax.Array, ...]:
    """The arrays of a stack, and the layer that this weight is."""
    if self.layer is None:
      return *(array[None] for array in self.stacked), jnp.int32(0)
    return *self.stacked, self.layer

  def is_native(self, x_RD: jax.Array, most_rows: int) -> bool:
    """Whether the kernel multiplies these rows."""
    num_rows, num_in = x_RD.shape
    return (
      self.kernel == 'native'
      and num_rows <= most_rows
      and num_in <= native.LARGEST_INPUT
      and matmul.on_one_device()
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def product(
  on_cpu: Callable[..., jax.Array],
  plain: Callable[..., jax.Array],
  x_RD: jax.Array,
  *weight: jax.Array,
) -> jax.Array:
  """float32[R, F], by a way of CPUs there, and by a plain one elsewhere.

  The gradient by the input is that of the plain way; there is none by the
  weight.

  Args:
    on_cpu: of `x_RD` and the weight's arrays.
    plain: likewise, differentiable by `x_RD`.
    x_RD: rows.
    *weight: its arrays, and of a stack the layer.
  """
  return jax.lax.platform_dependent(x_RD, *weight, cpu=on_cpu, default=plain)


@product.defjvp
def _product_jvp(on_cpu: Any, plain: Any, primals: Any, tangents: Any) -> Any:
  _, *weight = primals
  return product(on_cpu, plain, *primals), plain(tangents[0], *weight)


@flax.struct.dataclass
class Dense(NativeWeight):
  """A matrix of floats as it is.

  Attributes:
    array: [*lead, *inputs, *outputs], or of a table [F, D].
    num_lead: how many dims `lead` has, of layers.
    num_in: how many dims `inputs` has.
    is_table: whether the outputs come first.
    kernel: of products of few rows on CPUs, 'xla' or 'native'.
    layer: as of `NativeWeight`.
  """

  array: Any
  num_lead: int = flax.struct.field(pytree_node=False)
  num_in: int = flax.struct.field(pytree_node=False)
  is_table: bool = flax.struct.field(pytree_node=False, default=False)
  kernel: str = flax.struct.field(pytree_node=False, default='xla')
  layer: jax.Array | None = None

  @property
  def NUM_DIMS(self) -> int:  # pyright: ignore
    """See `NativeWeight`."""
    return self.array.ndim - self.num_lead

  @property
  def stacked(self) -> tuple[jax.Array, ...]:
    """See `NativeWeight`."""
    return (self.array,)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    return self.array.shape[0 if self.layer is None else 1 :]

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return self.array.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`."""
    return self.arrays()[0].astype(dtype)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot`."""
    lead, outputs = x.shape[:-num_contracted], self.shape[num_contracted:]
    x_RD = x.astype(dtype).reshape(math.prod(lead), -1)
    is_whole = not self.is_table and num_contracted == self.num_in
    if not is_whole or not self._reads(x_RD):
      return super().dot(x, num_contracted, dtype=dtype, out_dtype=out_dtype)
    y_RF = self._product(x_RD).astype(out_dtype or dtype)
    return y_RF.reshape(*lead, *outputs)

  def dot_transposed(
    self,
    x: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot_transposed`."""
    x_RD = x.astype(dtype).reshape(-1, x.shape[-1])
    if not self.is_table or not self._reads(x_RD):
      return super().dot_transposed(x, dtype=dtype, out_dtype=out_dtype)
    y_RF = self._product(x_RD).astype(out_dtype or dtype)
    return y_RF.reshape(*x.shape[:-1], -1)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.rows`."""
    return matmul.rows(self.arrays()[0], ids, dtype)

  def _reads(self, x_RD: jax.Array) -> bool:
    """Whether the kernel does; it computes in the type of the matrix."""
    most_rows = native.MOST_FLOAT_ROWS.get(self.dtype.name, 0)
    return x_RD.dtype == self.dtype and self.is_native(x_RD, most_rows)

  def _product(self, x_RD: jax.Array) -> jax.Array:
    ways = (_native_product, _plain_product)
    on_cpu, plain = (functools.partial(way, self.is_table) for way in ways)
    return product(on_cpu, plain, x_RD.astype(jnp.float32), *self.stack())


def _native_product(
  is_table: bool, x_RD: jax.Array, stack: jax.Array, layer: jax.Array
) -> jax.Array:
  L, D = stack.shape[0], x_RD.shape[1]
  matrices = stack.reshape(L, *((-1, D) if is_table else (D, -1)))
  return native.float_product(is_table, x_RD, matrices, layer)


def _plain_product(
  is_table: bool, x_RD: jax.Array, stack: jax.Array, layer: jax.Array
) -> jax.Array:
  matrix, D = stack[layer].astype(x_RD.dtype), x_RD.shape[1]
  return x_RD @ (matrix.reshape(-1, D).T if is_table else matrix.reshape(D, -1))


def with_kernel(params: Any, name: str) -> Any:
  """Parameters whose products of few rows a kernel does on CPUs.

  Args:
    params: of a model.
    name: as `generate.cpu_kernel`.

  Raises:
    ConfigError: see `kernels/native.choose`.
  """
  is_weight = lambda leaf: isinstance(leaf, matmul.Weight)
  flat, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
  plain = [leaf for _, leaf in flat]
  leaves = [_dense(path, leaf) for path, leaf in flat]
  size = sum(leaf.array.nbytes for leaf in leaves if isinstance(leaf, Dense))
  is_worth = jax.default_backend() == 'cpu' and size >= _LEAST_BYTES
  if name == 'xla' or not (is_worth or name == 'native'):
    leaves = plain
  if not any(isinstance(leaf, NativeWeight) for leaf in leaves):
    return params
  kernel = native.choose(name)
  if kernel == 'xla':
    leaves = plain
  given = [
    leaf.replace(kernel=kernel)  # pyright: ignore
    if isinstance(leaf, NativeWeight)
    else leaf
    for leaf in leaves
  ]
  return jax.tree.unflatten(tree, given)


def _dense(path: Any, leaf: Any) -> Any:
  """A matrix or table of floats on one device as `Dense`, or what it is."""
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  is_table = parameter_groups.matches(parameter_groups.TABLES, name)
  is_read = is_table or parameter_groups.matches(
    parameter_groups.LAYER_MATRICES, name
  )
  if (
    not is_read
    or not isinstance(leaf, jax.Array)
    or leaf.dtype not in (jnp.float32, jnp.bfloat16)
    or len(leaf.devices()) > 1
  ):
    return leaf
  if parameter_groups.kind(name) == 'embedding':
    return Dense(leaf, 0, 1, is_table=True)
  dims = parameter_groups.matrix_dims(name, leaf.ndim)
  return Dense(leaf, len(dims.stack), len(dims.inputs))
