"""The inputs of every product of a layer, and of the layer after it.

Calls of modules are intercepted, so no model knows of it: a stack gives what
it was called with, and each linear map of a layer what it multiplies.

B rows, T length, D inputs of a product.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax.layers import linear
from gemini_jax.models import gemini, stack, transformer


@flax.struct.dataclass
class StackInputs:
  """What a stack is called with.

  Attributes:
    x_BTD: the residual stream before its first layer.
    context: of its layers.
  """

  x_BTD: jax.Array
  context: transformer.Context


def stacks(
  model: gemini.Gemini, params: Any, batch: batch_lib.Batch
) -> dict[str, stack.Stack]:
  """The stacks of a model by path, in the order in which they run."""
  found: dict[str, stack.Stack] = {}

  def note(module, args):
    del args
    fields = (module.config, module.num_layers, module.decodes)
    found.setdefault('/'.join(module.path), stack.Stack(*fields, parent=None))

  jax.eval_shape(functools.partial(_forward, model, note), params, batch)
  return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def inputs_of(
  model: gemini.Gemini, path: str, params: Any, batch: batch_lib.Batch
) -> StackInputs:
  """What the stack at a path is called with, the first time."""
  found: list[StackInputs] = []

  def note(module, args):
    if '/'.join(module.path) == path and not found:
      found.append(StackInputs(*args[:2]))

  _forward(model, note, params, batch)
  return found[0]


def _forward(
  model: gemini.Gemini, note: Any, params: Any, batch: batch_lib.Batch
):
  def intercept(next_function, args, kwargs, context):
    if (
      isinstance(context.module, stack.Stack)
      and context.method_name == '__call__'
    ):
      note(context.module, args)
    return next_function(*args, **kwargs)

  with nn.intercept_methods(intercept):
    gemini.apply(model, params, batch, True, method='forward')


def block_of(of: stack.Stack) -> tuple[transformer.Block, tuple[str, ...]]:
  """A layer of a stack, and the kind of each layer."""
  pattern = of.config.attention_pattern
  kinds = (pattern * (of.num_layers // len(pattern) + 1))[: of.num_layers]
  return transformer.Block(of.config, of.decodes, parent=None), kinds


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def advance(
  block: transformer.Block,
  kind: str,
  params: Any,
  index: jax.Array,
  inputs: StackInputs,
) -> StackInputs:
  """What the next layer reads.

  Args:
    block: a layer.
    kind: of it.
    params: of it.
    index: of it in its stack.
    inputs: what it reads.
  """
  x_BTD = _run(block, kind, params, index, inputs)
  return dataclasses.replace(inputs, x_BTD=x_BTD)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def add_hessians(
  block: transformer.Block,
  kind: str,
  paths: tuple[str, ...],
  params: Any,
  index: jax.Array,
  inputs: StackInputs,
  sums: dict[str, jax.Array],
) -> dict[str, jax.Array]:
  """The Hessians of the layer's products with those of a batch in them.

  Args:
    block: as `advance`, as kind, params, index and inputs.
    kind: see there.
    paths: of the kernels in the layer, such as 'attention/query/kernel'.
    params: see there.
    index: see there.
    inputs: see there.
    sums: float32[D, D] by path, or [D], of which the diagonal is made.
  """
  found: dict[str, jax.Array] = {}

  def intercept(next_function, args, kwargs, context):
    module = context.module
    if isinstance(module, linear.Einsum) and context.method_name == '__call__':
      path = '/'.join((*module.path, 'kernel'))
      if path in paths:
        num_in = linear.contracted_dims(args[0])
        weights = _is_real(inputs.context, path, args[1])
        full = sums[path].ndim == 2
        found[path] = _hessian(args[1], num_in, weights, full)
    return next_function(*args, **kwargs)

  with nn.intercept_methods(intercept):
    _run(block, kind, params, index, inputs)
  return {path: sums[path] + found[path] for path in sums}


def zeros(sizes: Mapping[str, int], full: bool) -> dict[str, jax.Array]:
  """Sums of no batch, by path and number of inputs; see `add_hessians`."""
  return {
    path: jnp.zeros((size, size) if full else (size,), jnp.float32)
    for path, size in sizes.items()
  }


def _run(
  block: transformer.Block,
  kind: str,
  params: Any,
  index: jax.Array,
  inputs: StackInputs,
) -> jax.Array:
  layers = stack.Layers(params, index, {})
  x_BTD, _, _ = stack.apply_layer(
    block, {}, inputs.x_BTD, None, layers, inputs.context, None, kind
  )
  return x_BTD


def _is_real(
  context: transformer.Context, path: str, x: jax.Array
) -> jax.Array | None:
  """Which vectors of the input of a product are not of padding; None: all."""
  module, name, _ = path.rsplit('/', 2)
  if name in ('memory_key', 'memory_value'):
    return None
  if module == 'cross_attention' and name in ('key', 'value'):
    mask = context.cross_mask
    return None if mask is None else mask.key_segments_BS > 0
  real = context.real_BT
  return real if real is not None and x.shape[:2] == real.shape else None


def _hessian(
  x: jax.Array, num_in: int, real: jax.Array | None, full: bool
) -> jax.Array:
  """The sum of x x^T over all vectors, or its diagonal."""
  size = math.prod(x.shape[x.ndim - num_in :])
  x_RD = x.astype(jnp.float32).reshape(-1, size)
  if real is not None:
    x_RD = jnp.where(real.reshape(-1, 1), x_RD, 0)
  if full:
    return jnp.einsum('RD,RE->DE', x_RD, x_RD)
  return jnp.sum(jnp.square(x_RD), axis=0)
