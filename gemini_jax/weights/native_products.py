"""Weights whose products of few rows a kernel of ours can do on CPUs.

The kernel (kernels/native.py) reads the matrix of a layer where it is in the
stack; XLA would copy it out first. R rows, D dims in, F dims out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from gemini_jax.kernels import native
from gemini_jax.layers import matmul


class NativeWeight(matmul.Weight):
  """A matrix that may lie in a stack with those of other layers.

  It is stored in two arrays: codes and scales, or blocks and their places. A
  subclass is a dataclass with these attributes.

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
  def stacked(self) -> tuple[jax.Array, jax.Array]:
    """Both arrays as they are stored."""
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

  def arrays(self) -> tuple[jax.Array, jax.Array]:
    """Both arrays of this weight alone."""
    if self.layer is None:
      return self.stacked
    codes, scale = self.stacked
    return codes[self.layer], scale[self.layer]

  def stack(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both arrays of a stack, and the layer that this weight is."""
    codes, scale = self.stacked
    if self.layer is None:
      return codes[None], scale[None], jnp.int32(0)
    return codes, scale, self.layer

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
    *weight: its two arrays, and of a stack the layer.
  """
  return jax.lax.platform_dependent(x_RD, *weight, cpu=on_cpu, default=plain)


@product.defjvp
def _product_jvp(on_cpu: Any, plain: Any, primals: Any, tangents: Any) -> Any:
  _, *weight = primals
  return product(on_cpu, plain, *primals), plain(tangents[0], *weight)


def with_kernel(params: Any, name: str) -> Any:
  """Parameters whose weights of integers or blocks use a kernel on CPUs.

  Args:
    params: of a model; without such weights they stay as they are.
    name: as `generate.int8_kernel`.

  Raises:
    ConfigError: see `kernels/native.choose`.
  """
  is_weight = lambda leaf: isinstance(leaf, matmul.Weight)
  is_native = lambda leaf: isinstance(leaf, NativeWeight)
  if not any(map(is_native, jax.tree.leaves(params, is_leaf=is_weight))):
    return params
  kernel = native.choose(name)
  choose = lambda leaf: (
    dataclasses.replace(leaf, kernel=kernel) if is_native(leaf) else leaf
  )
  return jax.tree.map(choose, params, is_leaf=is_weight)
