"""Training of compressed parameters, whose zeros and scales stay.

What is trained are arrays from which codes are rounded in every forward pass;
their gradient is that of the rounded ones (Bengio et al. 2013). Of matrices in
blocks it is the blocks that are there.

B rows, T length, D width, V vocabulary.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.weights import block_ell, by_output, compressed, nf4

_LOG_EVERY = 10


def recover(
  options: config_lib.Compress,
  model: gemini.Gemini,
  params: Any,
  teacher: Any,
  batches: Iterable[batch_lib.Batch],
) -> Any:
  """Compressed parameters after `recovery.steps` updates.

  Args:
    options: by which they were compressed.
    model: the network.
    params: compressed, in the form that computes.
    teacher: parameters of the model before it was compressed.
    batches: of training, on the devices; as many as steps are read.
  """
  recovery = options.recovery
  found = compressed.targets(options, params)
  trained = jax.tree.map(
    # Copied, since they are donated.
    lambda leaf: jnp.array(_numbers(leaf)),
    params,
    is_leaf=compressed.is_weight,
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(
      optax.cosine_decay_schedule(recovery.learning_rate, recovery.steps, 0.1)
    ),
  )
  opt_state = jax.jit(optimizer.init)(trained)
  step = jax.jit(
    functools.partial(_update, options, found, model, optimizer),
    donate_argnums=(0, 1),
  )
  kept = _kept(options, found, params)
  begin = time.perf_counter()
  for index, batch in zip(range(recovery.steps), batches, strict=False):
    trained, opt_state, losses = step(
      trained, opt_state, params, kept, teacher, batch
    )
    if index % _LOG_EVERY == 0 or index + 1 == recovery.steps:
      logging.info(
        'recovery: step %d of %d, loss %.4f, divergence %.4f, %.0f s',
        *(index + 1, recovery.steps, *map(float, losses)),
        time.perf_counter() - begin,
      )
  finish = functools.partial(_finished, options, found)
  return jax.jit(finish)(trained, params, kept)


def _numbers(leaf: Any) -> jax.Array:
  """float32: what is trained of a parameter."""
  if isinstance(leaf, block_ell.BlockSparse):
    leaf = leaf.blocks
  return matmul.to_array(leaf, jnp.float32)


def _kept(options: config_lib.Compress, found: Any, params: Any) -> Any:
  """Bools where weights are kept, that align with each parameter."""

  def one(path, leaf):
    target = found.get(compressed.name_of(path))
    if target is None or target.is_table or not options.share:
      return jnp.ones((1,) * len(leaf.shape), bool)
    return _numbers(leaf) != 0

  return jax.tree_util.tree_map_with_path(
    one, params, is_leaf=compressed.is_weight
  )


def _update(
  options: config_lib.Compress,
  found: Any,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformation,
  trained: Any,
  opt_state: Any,
  params: Any,
  kept: Any,
  teacher: Any,
  batch: batch_lib.Batch,
) -> Any:
  def objective(trained):
    student = _rounded(options, found, trained, params, kept)
    loss, divergence = losses(model, student, teacher, batch)
    share = options.recovery.distillation
    return (1 - share) * loss + share * divergence, (loss, divergence)

  grads, parts = jax.grad(objective, has_aux=True)(trained)
  updates, opt_state = optimizer.update(grads, opt_state, trained)
  trained = optax.apply_updates(trained, updates)
  zero = lambda leaf, mask: jnp.where(mask, leaf, 0)
  return jax.tree.map(zero, trained, kept), opt_state, parts


def _rounded(
  options: config_lib.Compress, found: Any, trained: Any, params: Any, kept: Any
) -> Any:
  """What the forward pass reads: arrays of the numbers that codes stand for."""
  finished = _finished(options, found, trained, params, kept)

  def one(leaf, new, mask):
    if not compressed.is_weight(new) or isinstance(new, block_ell.BlockSparse):
      return new
    array = matmul.to_array(new, jnp.float32)
    through = jnp.where(mask, leaf, 0)
    return through + jax.lax.stop_gradient(array - through)

  return jax.tree.map(
    lambda new, leaf, mask: one(leaf, new, mask),
    finished,
    trained,
    kept,
    is_leaf=compressed.is_weight,
  )


def _finished(
  options: config_lib.Compress, found: Any, trained: Any, params: Any, kept: Any
) -> Any:
  """Parameters stored as they were, with the numbers that were trained."""

  def one(path, leaf, array, mask):
    array = jnp.where(mask, array, 0)
    if not compressed.is_weight(leaf):
      return array.astype(leaf.dtype)
    if isinstance(leaf, block_ell.BlockSparse):
      return dataclasses.replace(leaf, blocks=array.astype(leaf.dtype))
    if isinstance(leaf, nf4.NF4):
      return nf4.quantised(array)
    target = found[compressed.name_of(path)]
    into = compressed.grid(options, target.weights)
    assert into is not None
    scale = leaf.scale if into.has_groups else leaf.scale[..., None]
    matrix = by_output.to_matrix(
      array, len(target.dims.stack), len(target.dims.inputs), target.rows_first
    )
    inputs, outputs = target.sizes(array.shape)
    return into.leaf(matrix, scale, inputs, outputs, target.rows_first)

  return jax.tree_util.tree_map_with_path(
    one, params, trained, kept, is_leaf=compressed.is_weight
  )


def losses(
  model: gemini.Gemini, student: Any, teacher: Any, batch: batch_lib.Batch
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy, and divergence from a teacher, of a token of text.

  The scores of one row are there at a time.
  """
  apply = functools.partial(gemini.apply, model)
  hidden = lambda params: apply(params, batch, True, method='forward').x_BTD

  @jax.checkpoint
  def row(parts):
    x_TD, fixed_TD, targets_T, weights_T = parts
    scores = lambda params, x_TD: jax.nn.log_softmax(
      apply(params, x_TD[None], method='logits')[0]
    )
    own_TV, other_TV = scores(student, x_TD), scores(teacher, fixed_TD)
    chosen_T = jnp.take_along_axis(own_TV, targets_T[:, None], axis=1)[:, 0]
    apart_T = jnp.sum(jnp.exp(other_TV) * (other_TV - own_TV), axis=1)
    total = lambda values_T: jnp.sum(values_T * weights_T)
    return total(-chosen_T), total(apart_T)

  fixed_BTD = jax.lax.stop_gradient(hidden(teacher))
  sums = jax.lax.map(
    row, (hidden(student), fixed_BTD, batch.targets, batch.weights)
  )
  weight = jnp.maximum(jnp.sum(batch.weights), 1e-9)
  loss, divergence = (jnp.sum(part) / weight for part in sums)
  return loss, divergence
