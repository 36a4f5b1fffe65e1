"""Finds the first tensor with a NaN or an infinity."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.adapt import enabled
from gemini_jax.data import loader as loader_lib
from gemini_jax.objectives import losses
from gemini_jax.train import gradient as gradient_lib
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib


def first_not_finite(
  config: config_lib.Config,
  model: Any,
  optimizer: Any,
  state: state_lib.TrainState,
  batch: batch_lib.Batch,
) -> tuple[int, str]:
  """The step, counted from 1, and the first tensor with a NaN or an infinity.

  Looks in the order in which a step computes: parameters, which the step before
  made, the outputs of the modules one by one, the loss, gradients, updates. All
  randomness is that of the step. Slow: the forward pass runs without
  compilation.

  Args:
    config: of the run.
    model: the network.
    optimizer: its update rule.
    state: before the step.
    batch: of the step.
  """
  step = int(state.step)
  if name := _first_in_tree(state.params):
    return step, f'parameter {name}'
  key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
  state, params = jax.jit(
    functools.partial(
      step_lib.begin, config=config, model=model, optimizer=optimizer
    )
  )(state)
  if name := _first_output(config, model, state, params, batch, key):
    return step + 1, f'output of {name}'
  reference = enabled.extensions(config).reference_params(state)
  grads, sums = jax.jit(
    lambda params, batch, key, reference: gradient_lib.accumulated_gradient(
      config,
      model,
      params,
      batch,
      key,
      losses.weights_at(config, state.step),
      reference,
    )
  )(params, batch, key, reference)
  if not jnp.isfinite(sums.objective):
    terms = [n for n, total in sums.terms.items() if not _is_finite(total)]
    return step + 1, f'the loss, in {terms[0]}' if terms else 'the loss'
  if name := _first_in_tree(grads):
    return step + 1, f'gradient of {name}'
  weight = jnp.maximum(sums.weight, 1e-9)
  changes = jax.jit(
    functools.partial(
      step_lib.compute_updates, config=config, optimizer=optimizer
    )
  )(
    state,
    jax.tree.map(lambda grad: grad / weight, grads),
    sums.objective / weight,
  )
  if name := _first_in_tree(changes.updates):
    return step + 1, f'update of {name}'
  return step + 1, 'a norm, which overflows'


def _is_finite(array: jax.Array) -> bool:
  return bool(jnp.all(jnp.isfinite(array)))


def _first_in_tree(tree: Any) -> str | None:
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not _is_finite(leaf):
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


def _first_output(
  config: config_lib.Config,
  model: Any,
  state: state_lib.TrainState,
  params: Any,
  batch: batch_lib.Batch,
  key: jax.Array,
) -> str | None:
  """The first module whose output is not finite, with its layer's number."""
  names: list[str] = []
  stack, num_layers, layer = '', 1, -1

  def look(next_function, args, kwargs, context):
    nonlocal stack, num_layers, layer
    path = '/'.join(context.module.path)
    kind = type(context.module).__name__
    # Stacks and blocks call methods of their own within `__call__`.
    is_call = context.method_name == '__call__'
    is_stack = is_call and kind == 'Stack'
    if is_stack:
      stack, num_layers, layer = path, context.module.num_layers, -1
    elif is_call and kind == 'Block':
      # From the first again, with the next microbatch.
      layer = (layer + 1) % num_layers
    # Blocks are applied one by one, so their paths begin inside them.
    name = f'{stack} layer {layer}, {path or kind}' if stack else path or kind
    if not is_call:
      name = f'{name}.{context.method_name}'
    output = next_function(*args, **kwargs)
    if is_stack:
      stack = ''
    leaves = jax.tree.leaves(output)
    bad = any(
      jnp.issubdtype(leaf.dtype, jnp.floating) and not _is_finite(leaf)
      for leaf in leaves
      if isinstance(leaf, jax.Array)
    )
    if bad and not names:
      names.append(name)
    return output

  # A stage is a program of its own, which needs compilation, as remat does.
  # Neither changes a number.
  model = model.clone(
    config=dataclasses.replace(model.config, remat=False),
    schedule=dataclasses.replace(model.schedule, in_stages=False),
  )
  # Without compilation every value is at hand, and a scan is a Python loop.
  with jax.disable_jit(), nn.intercept_methods(look):
    for part, part_key in gradient_lib.microbatches(config, batch, key):
      losses.model_sums(
        model,
        params,
        part,
        key=part_key,
        config=config.train,
        loss_weights=losses.weights_at(config, state.step),
        reference=enabled.extensions(config).reference_params(state),
      )
      if names:
        return names[0]
  return None


def raise_not_finite(
  session: session_lib.Session,
  state: state_lib.TrainState,
  data: loader_lib.Loader,
  done: int,
  values: Mapping[str, Any],
):
  """Stops with the step and the first tensor that went wrong.

  Args:
    session: the run that is trained.
    state: the last one that was applied: that of step `done`, or, where
      `train_step` refused to apply it, the one before.
    data: the training batches.
    done: the step that was looked at.
    values: its metrics.

  Raises:
    FloatingPointError: always, also where the search for the tensor fails.
  """
  run = session.run
  step, culprit = done, ''
  try:
    index = int(state.step)
    step, culprit = first_not_finite(
      run.config,
      run.model,
      session.optimizer,
      state,
      next(run_lib.device_batches(run, data, [data[index]])),
    )
  finally:
    culprit = culprit or f'unknown, the search failed: {sys.exception()!r}'
    run.checkpoints.close()
    steps = run.checkpoints.steps()
    kept = f'{run.checkpoints.path(steps[-1])}' if steps else 'none yet'
    of_step = '' if step == done else f' of step {done}'
    raise FloatingPointError(
      f'step {step} is not finite (loss {float(values["loss"])}, gradient norm '
      f'{float(values["grad_norm"])}{of_step}): first in {culprit}; '
      f'last good checkpoint: {kept}'
    )
