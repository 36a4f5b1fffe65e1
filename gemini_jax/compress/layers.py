"""Compression of all parameters of a model, one layer after the other.

F outputs, D inputs, L layers.
"""

import functools
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.compress import calibration, matrix_pruning
from gemini_jax.config import compress as compress_config
from gemini_jax.models import gemini, parameter_groups, stack
from gemini_jax.weights import by_output, compressed


def compress(
  options: config_lib.Compress,
  model: gemini.Gemini,
  params: Any,
  batches: Iterable[batch_lib.Batch],
) -> Any:
  """Compressed parameters, in the form that computes.

  With calibration a layer is compressed by what it reads behind layers that
  are compressed already.

  Args:
    options: what is done.
    model: the network.
    params: plain arrays; zeros stay.
    batches: on the devices, for calibration; not read by other methods.

  Raises:
    ConfigError: there is no batch, or nothing to compress.
  """
  found = compressed.targets(options, params)
  settings = _settings(options)
  matrices = {k: t for k, t in found.items() if not t.is_table}
  if options.method in compress_config.CALIBRATED:
    params = _calibrated(options, model, params, [*batches], matrices)
  else:
    params = compressed.map_targets(
      functools.partial(_each, options, settings), matrices, params
    )
  tables = {k: t for k, t in found.items() if t.is_table}
  round_one = functools.partial(compressed.rounded, options)
  return compressed.map_targets(round_one, tables, params)


def _settings(options: config_lib.Compress) -> matrix_pruning.Settings:
  prunes = options.method in compress_config.PRUNING
  return matrix_pruning.Settings(
    options.method,
    options.share if prunes and not options.n_m else 0.0,
    options.kept_of if prunes else (0, 0),
    options.block,
    compressed.grid(options, options.weights),
    options.damping,
  )


def _each(
  options: config_lib.Compress,
  settings: matrix_pruning.Settings,
  target: compressed.Target,
  array: jax.Array,
) -> Any:
  """All matrices of a parameter, by their own numbers alone."""
  matrix = target.matrix(array)
  flat = matrix.reshape(-1, *matrix.shape[-2:])
  done, scale = jax.lax.map(
    lambda w_FD: matrix_pruning.compress(w_FD, None, settings), flat
  )
  shape = lambda leaf: leaf.reshape(*matrix.shape[:-2], *leaf.shape[1:])
  return leaf_of(
    options,
    target,
    array,
    shape(done),
    None if scale is None else shape(scale),
  )


def leaf_of(
  options: config_lib.Compress,
  target: compressed.Target,
  array: Any,
  matrix: jax.Array,
  scale: jax.Array | None,
) -> Any:
  """The parameter of compressed matrices.

  Args:
    options: what is done.
    target: of the parameter.
    array: that it was, or its shape and type.
    matrix: float32[*lead, F, D].
    scale: [*lead, F, G]; None: without codes, or those of nf4.
  """
  sizes = target.sizes(array.shape)
  if scale is not None:
    into = compressed.grid(options, target.weights)
    assert into is not None
    return into.leaf(matrix, scale, *sizes, target.rows_first)
  plain = by_output.to_array(matrix, *sizes, target.rows_first)
  return compressed.rounded(options, target, plain.astype(array.dtype))


def _calibrated(
  options: config_lib.Compress,
  model: gemini.Gemini,
  params: Any,
  batches: list[batch_lib.Batch],
  matrices: Mapping[str, compressed.Target],
) -> Any:
  config_lib.check(
    bool(batches),
    f'compress.method={options.method!r} calibrates with data.train, which '
    'gives no batch',
  )
  left = dict(matrices)
  for path, of in calibration.stacks(model, params, batches[0]).items():
    inside = f'{path}/layers/'
    own = {
      name.removeprefix(inside): left.pop(name)
      for name in matrices
      if name.startswith(inside) and parameter_groups.kind(name) != 'expert'
    }
    if own:
      params = _stack(options, model, params, batches, path, of, own)
  for name in left:
    raise config_lib.ConfigError(
      f'compress.method={options.method!r} has no inputs of {name}, which is '
      'no linear map of a layer that runs; choose others by compress.pattern, '
      'or method magnitude or round'
    )
  return params


def _stack(
  options: config_lib.Compress,
  model: gemini.Gemini,
  params: Any,
  batches: list[batch_lib.Batch],
  path: str,
  of: stack.Stack,
  own: Mapping[str, compressed.Target],
) -> Any:
  """The parameters with those of one stack compressed."""
  settings = _settings(options)
  inputs = [
    calibration.inputs_of(model, path, params, batch) for batch in batches
  ]
  keys = (*path.split('/'), 'layers')
  layers = functools.reduce(lambda tree, key: tree[key], keys, params)
  block, kinds = calibration.block_of(of)
  done: dict[str, list[tuple[jax.Array, jax.Array | None]]] = {}
  for index, kind in enumerate(kinds):
    begin = time.perf_counter()
    layer = _layer(layers, index)
    sums = hessians(block, kind, layer, index, inputs, own, settings)
    errors = []
    for name, target in own.items():
      array = _at(layer, name)
      w_FD = target.matrix(array[None])[0]
      new_FD, scale = matrix_pruning.compress(w_FD, sums[name], settings)
      errors.append(_lost(w_FD, new_FD, sums[name]))
      done.setdefault(name, []).append((new_FD, scale))
      layer = _replaced(layer, name, _plain(target, array, new_FD))
    if index + 1 < len(kinds):
      number = jnp.asarray(index)
      inputs = [
        calibration.advance(block, kind, layer, number, one) for one in inputs
      ]
    logging.info(
      '%s: layer %d of %d, %.2f%% of the outputs of its products lost, %.1f s',
      *(path, index + 1, len(kinds), 100 * float(sum(errors)) / len(errors)),
      time.perf_counter() - begin,
    )
  for name, parts in done.items():
    matrix, scale = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    leaf = leaf_of(options, own[name], _at(layers, name), matrix, scale)
    layers = _replaced(layers, name, leaf)
  return _replaced(params, '/'.join(keys), layers)


@jax.jit
def _layer(layers: Any, index: jax.typing.ArrayLike) -> Any:
  """The parameters of one layer; other layers are the same program."""
  return jax.tree.map(lambda leaf: leaf[index], layers)


def hessians(
  block: Any,
  kind: str,
  layer: Any,
  index: int,
  inputs: list[calibration.StackInputs],
  own: Mapping[str, compressed.Target],
  settings: matrix_pruning.Settings,
) -> dict[str, jax.Array]:
  """Of the products of one layer, over all inputs; see `pruning`."""
  sizes = {
    name: math.prod(target.sizes((0, *_at(layer, name).shape))[0])
    for name, target in own.items()
  }
  sums = calibration.zeros(sizes, settings.compensates)
  for one in inputs:
    sums = calibration.add_hessians(
      block, kind, tuple(sizes), layer, jnp.asarray(index), one, sums
    )
  return sums


@jax.jit
def _lost(w_FD: jax.Array, new_FD: jax.Array, hessian: jax.Array) -> jax.Array:
  """The share of the outputs' squares that the difference makes."""

  def size(w_FD):
    if hessian.ndim == 1:
      return jnp.sum(jnp.square(w_FD) * hessian[None])
    return jnp.sum((w_FD @ hessian) * w_FD)

  return size(new_FD - w_FD) / jnp.maximum(size(w_FD), 1e-30)


def _plain(
  target: compressed.Target, array: jax.Array, new_FD: jax.Array
) -> jax.Array:
  """A layer's array of new numbers."""
  sizes = target.sizes((0, *array.shape))
  plain = by_output.to_array(new_FD, *sizes, target.rows_first)
  return plain.astype(array.dtype)


def _at(tree: Any, path: str) -> Any:
  return functools.reduce(lambda node, key: node[key], path.split('/'), tree)


def _replaced(tree: Any, path: str, leaf: Any) -> Any:
  """The tree with another leaf, or another subtree, at a path."""
  key, _, rest = path.partition('/')
  return {**tree, key: _replaced(tree[key], rest, leaf) if rest else leaf}
