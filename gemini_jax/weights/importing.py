"""Parameters from the tensors of a published model, onto a mesh, one by one.

At any time the host holds at most one tensor beside the parameters; a token
table that is read in the type of the parameters becomes one of them on a CPU.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemini_jax.weights import tensors as tensors_lib
from gemini_jax.weights import translation


def load(
  entries: Mapping[str, translation.Translation],
  tensors: Mapping[str, tensors_lib.Tensor],
  abstract: Any,
  on_tensor: Callable[[str], Any] = lambda name: None,
) -> Any:
  """The parameters.

  Args:
    entries: where each of them comes from, by path.
    tensors: of the published model; `translation.check_names` has seen them.
    abstract: shapes, types and shardings of the parameters.
    on_tensor: called with the name of each tensor once it is read.
  """

  def one(key_path, leaf):
    entry = entries[jax.tree_util.keystr(key_path, simple=True, separator='/')]
    if entry.num_layers is None:
      value = entry.to_ours(tensors[entry.name].read())
      on_tensor(entry.name)
      return _put(_cast(value, leaf.dtype), leaf.sharding)
    make, write = _stacking(leaf.shape, leaf.dtype, leaf.sharding)
    stacked = make()
    layer_sharding = _of_layer(leaf.sharding)
    for i, name in enumerate(entry.names()):
      value = entry.to_ours(tensors[name].read())
      value = value.astype(leaf.dtype, copy=False)
      stacked = write(stacked, _put(value, layer_sharding), i)
      on_tensor(name)
    return stacked

  return jax.tree_util.tree_map_with_path(one, abstract)


def _cast(value: np.ndarray, dtype: Any) -> np.ndarray:
  """The array in a type, which a CPU device need not copy."""
  if value.dtype == dtype:
    return value
  cast = tensors_lib.empty(value.shape, dtype)
  np.copyto(cast, value, casting='unsafe')
  return cast


def _put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """The array on the devices, which no longer need the host's."""
  return jax.block_until_ready(jax.device_put(value, sharding))


@functools.cache
def _stacking(
  shape: tuple[int, ...], dtype: Any, sharding: NamedSharding
) -> tuple[Any, Any]:
  """Functions that make an empty stack and write one layer into it."""
  make = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
  write = jax.jit(
    lambda stacked, layer, i: stacked.at[i].set(layer),
    out_shardings=sharding,
    donate_argnums=0,
  )
  return make, write


def _of_layer(sharding: NamedSharding) -> NamedSharding:
  """The sharding of one layer of a stack that is sharded like this."""
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def export(
  entries: Mapping[str, translation.Translation], params: Any
) -> 'list[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]':
  """Names, shapes and makers of the tensors of a published model.

  A maker brings one tensor to the host.

  Args:
    entries: where each of our parameters belongs, by path.
    params: our parameters, plain arrays.
  """
  made = []
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    entry = entries[jax.tree_util.keystr(key_path, simple=True, separator='/')]
    for i, name in enumerate(entry.names()):

      def tensor(leaf=leaf, i=i, entry=entry):
        layer = leaf if entry.num_layers is None else leaf[i]
        return np.ascontiguousarray(entry.to_theirs(np.asarray(layer)))

      made.append((name, entry.shape, tensor))
  return made
