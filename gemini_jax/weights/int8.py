"""Matrices as int8 with a scale for each output: smaller, and faster to decode.

`quantize` puts an `Int8` in the place of matrices and tables in a tree of
parameters. On CPUs a product multiplies integers: each row of the input becomes
two rows of int8, the nearest multiples of a step and what is left in steps 254
times smaller, as exact as 15 bits. XLA for CPUs has no fast product of one row
of integers, and two rows take little longer than one would; few rows may also
be multiplied by a kernel of ours, see weights/native_products.py. Elsewhere the
matrix is brought to the type of the computation within the product. The
gradient by the input is that of the numbers which the integers stand for; there
is none by the matrix.

R rows, D dims in, F dims out, all of them in one dim each, L layers.
"""

import functools
import logging
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.kernels import native
from gemini_jax.models import parameter_groups
from gemini_jax.weights import native_products

# All matrices of layers, the table of tokens, and the head if it has its own.
PATTERN = '@(matrix|embedding)$'

_LARGEST = 127
# Steps of the second row in one of the first: it rounds by half at most.
_FINER = 2 * _LARGEST


@flax.struct.dataclass
class Int8(native_products.NativeWeight):
  """A matrix of integers and a scale for each output.

  The outputs come before the inputs, which XLA for CPUs multiplies fastest.

  Attributes:
    values: int8, [*lead, F, D].
    scale: float32, [*lead, F].
    inputs: dims of the array that make D.
    outputs: dims of the array that make F.
    is_table: whether the outputs come first in the array, as in a table of
      vectors, and not last.
    kernel: of products on CPUs, 'xla' or 'native'.
    layer: int32, whose matrix in a stack this is, see `of_layer`; None: the
      arrays are of this weight alone.
  """

  values: jax.Array
  scale: jax.Array
  inputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  outputs: tuple[int, ...] = flax.struct.field(pytree_node=False)
  is_table: bool = flax.struct.field(pytree_node=False, default=False)
  kernel: str = flax.struct.field(pytree_node=False, default='xla')
  layer: jax.Array | None = None

  @classmethod
  def from_array(
    cls, array: jax.Array, num_lead: int, num_in: int, is_table: bool = False
  ) -> 'Int8':
    """The nearest int8 matrix.

    Args:
      array: [*lead, *inputs, *outputs], or of a table [*lead, F, D].
      num_lead: how many dims `lead` has, of layers and experts.
      num_in: how many dims `inputs` has.
      is_table: as of the class.
    """
    shape = array.shape[num_lead:]
    inputs, outputs = shape[:num_in], shape[num_in:]
    if is_table:
      inputs, outputs = shape[-num_in:], shape[:-num_in]
    lead, (F, D) = array.shape[:num_lead], map(math.prod, (outputs, inputs))
    if is_table:
      matrix = array.reshape(*lead, F, D)
    else:
      matrix = array.reshape(*lead, D, F).swapaxes(-1, -2)
    values, step = rounded(matrix.astype(jnp.float32))
    return cls(values, step[..., 0], inputs, outputs, is_table)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array that this stands for."""
    parts = (self.inputs, self.outputs)
    first, last = parts[::-1] if self.is_table else parts
    return (*self.lead, *first, *last)

  @property
  def dtype(self) -> Any:
    """Of the array that this stands for."""
    return self.scale.dtype

  def to_array(self, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.to_array`."""
    values, scale = self.arrays()
    matrix = (values * scale[..., None]).astype(dtype)
    if not self.is_table:
      matrix = matrix.swapaxes(-1, -2)
    return matrix.reshape(self.shape)

  def dot(
    self,
    x: jax.Array,
    num_contracted: int,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot`."""
    if self.is_table or num_contracted != len(self.inputs):
      return super().dot(x, num_contracted, dtype=dtype, out_dtype=out_dtype)
    return self._product(x, num_contracted, dtype, out_dtype)

  def dot_transposed(
    self,
    x: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None = None,
  ) -> jax.Array:
    """See `matmul.dot_transposed`."""
    if not self.is_table:
      return super().dot_transposed(x, dtype=dtype, out_dtype=out_dtype)
    return self._product(x, 1, dtype, out_dtype)

  def rows(self, ids: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """See `matmul.rows`."""
    if not self.is_table:
      return super().rows(ids, dtype)
    values, scale = (jnp.take(a, ids, axis=0) for a in self.arrays())
    return (values * scale[..., None]).astype(dtype)

  @property
  def stacked(self) -> tuple[jax.Array, jax.Array]:
    """See `native_products.NativeWeight`."""
    return self.values, self.scale

  def _product(
    self,
    x: jax.Array,
    num_in: int,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None,
  ) -> jax.Array:
    lead = x.shape[: x.ndim - num_in]
    x_RD = x.reshape(-1, self.values.shape[-1])
    is_native = self.is_native(x_RD, native.MOST_ROWS)
    y_RF = native_products.product(
      native.int8_product if is_native else _integer_product,
      functools.partial(_plain_product, jnp.dtype(dtype)),
      x_RD.astype(jnp.float32),
      *(self.stack() if is_native else self.arrays()),
    )
    return y_RF.reshape(*lead, *self.outputs).astype(out_dtype or dtype)


def quantize(params: Any, pattern: str = PATTERN) -> Any:
  """Parameters with an `Int8` in place of each array that a pattern chooses.

  Args:
    params: of a model, arrays.
    pattern: of paths and kinds, see `models/parameter_groups.py`; of matrices
      and tables only.

  Raises:
    ConfigError: the pattern matches nothing.
  """
  choice = parameter_groups.Selection('int8', pattern)
  parameter_groups.check([choice], params)
  quantise = jax.jit(Int8.from_array, static_argnums=(1, 2, 3))
  before = after = 0

  def one(path: Any, is_chosen: bool, leaf: jax.Array) -> Any:
    nonlocal before, after
    if not is_chosen:
      return leaf
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if parameter_groups.kind(name) in ('embedding', 'positions'):
      weight = quantise(leaf, leaf.ndim - 2, 1, True)
    else:
      dims = parameter_groups.matrix_dims(name, leaf.ndim)
      weight = quantise(leaf, len(dims.stack), len(dims.inputs), False)
    before += leaf.nbytes
    after += weight.values.nbytes + weight.scale.nbytes
    return weight

  quantised = jax.tree_util.tree_map_with_path(
    one, parameter_groups.matching(pattern, params), params
  )
  logging.info(
    'int8: %.1f MB in place of %.1f MB; %s',
    after / 1e6,
    before / 1e6,
    'for CPUs each row of an input becomes two of int8'
    if jax.default_backend() == 'cpu'
    else 'inputs keep their type',
  )
  return quantised


def rounded(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The nearest int8, and the step of each row, of which they are multiples."""
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
  step = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / _LARGEST
  return jnp.round(x / step).astype(jnp.int8), step


def _plain_product(
  dtype: Any,
  x_RD: jax.Array,
  values_FD: jax.Array,
  scale_F: jax.Array,
  layer: jax.Array | None = None,
) -> jax.Array:
  if layer is not None:
    values_FD, scale_F = values_FD[layer], scale_F[layer]
  y_RF = _contract(x_RD.astype(dtype), values_FD.astype(dtype), jnp.float32)
  return y_RF * scale_F[None]


def _integer_product(
  x_RD: jax.Array, values_FD: jax.Array, scale_F: jax.Array
) -> jax.Array:
  coarse_RD, step_R1 = rounded(x_RD)
  left_RD = x_RD / step_R1 - coarse_RD
  fine_RD = jnp.round(left_RD * _FINER).astype(jnp.int8)
  both = jnp.concatenate([coarse_RD, fine_RD])
  sums = _contract(both, values_FD, jnp.int32).astype(jnp.float32)
  coarse_RF, fine_RF = jnp.split(sums, 2)
  return (coarse_RF + fine_RF / _FINER) * step_R1 * scale_F[None]


def _contract(x_RD: jax.Array, values_FD: jax.Array, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(
    x_RD, values_FD, (((1,), (1,)), ((), ())), preferred_element_type=dtype
  )
