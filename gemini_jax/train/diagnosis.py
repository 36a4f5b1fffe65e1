"""Which tensor went wrong first."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.train import losses
from gemini_jax.train import step as step_lib


def first_not_finite(
  config: config_lib.Config,
  model: Any,
  optimizer: Any,
  state: step_lib.TrainState,
  batch: batch_lib.Batch,
) -> str:
  """The name of the first tensor with a NaN or an infinity.

  Looks in the order in which a step computes: parameters, the outputs of the
  modules one by one, gradients, updates. Slow: the forward pass runs without
  compilation.
  """
  if name := _first_in_tree(state.params):
    return f'parameter {name}'
  if name := _first_output(model, state, batch):
    return f'output of {name}'
  key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
  weights = losses.weights_at(config, state.step)
  grads, sums = jax.jit(
    lambda params: step_lib.accumulated_gradient(
      config, model, params, batch, key, weights
    )
  )(state.params)
  if not jnp.isfinite(sums.objective):
    return 'the loss'
  if name := _first_in_tree(grads):
    return f'gradient of {name}'
  updates, _ = jax.jit(optimizer.update)(
    grads, state.opt_state, state.params, value=sums.objective / sums.weight
  )
  if name := _first_in_tree(updates):
    return f'update of {name}'
  return 'a norm, which overflows'


def _first_in_tree(tree: Any) -> str | None:
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not jnp.all(jnp.isfinite(leaf)):
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


def _first_output(
  model: Any, state: step_lib.TrainState, batch: batch_lib.Batch
) -> str | None:
  """The first module whose output is not finite, with its layer's number."""
  found: list[str] = []
  stack, layer = '', -1

  def look(next_function, args, kwargs, context):
    nonlocal stack, layer
    path = '/'.join(context.module.path)
    kind = type(context.module).__name__
    if kind == 'Stack':
      stack, layer = path, -1
    elif kind == 'Block':
      layer += 1
    # Blocks are applied one by one, so their paths begin inside them.
    name = f'{stack} layer {layer}, {path or kind}' if stack else path or kind
    output = next_function(*args, **kwargs)
    if kind == 'Stack':
      stack = ''
    leaves = jax.tree.leaves(output)
    bad = any(
      jnp.issubdtype(leaf.dtype, jnp.floating)
      and not jnp.all(jnp.isfinite(leaf))
      for leaf in leaves
      if isinstance(leaf, jax.Array)
    )
    if bad and not found:
      found.append(name)
    return output

  # Without compilation every value is at hand, and a scan is a Python loop.
  with jax.disable_jit(), nn.intercept_methods(look):
    model.apply({'params': state.params}, batch)
  return found[0] if found else None
