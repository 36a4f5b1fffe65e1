"""The parameters to evaluate, of the arrays of a saved training state.

Arrays are named by their paths in the saved tree, such as
`params/decoder/norm/scale`, as a manifest lists them. Every version keeps the
parameters in `params`, and beside them, where training made one, their moving
average (`ema`, later in `extra/ema`) or the iterates of schedule-free training
(`z` in a state of the optimizer). Training by preferences keeps those that it
started from, where they have changed since, in `extra/reference`. What gates
multiply parameters by is in `extra/gates/factors`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from gemini_jax.checkpoint import storage

_PARAMS = 'params/'
_AVERAGES = ('ema/', 'extra/ema/')
_FACTORS = 'extra/gates/factors/'
_REFERENCE = 'extra/reference/'


@dataclasses.dataclass(frozen=True)
class Selection:
  """What to read of a saved state, and what to make of it.

  Attributes:
    arrays: what to read, by name.
    values: the name of each parameter's value, by path.
    factors: the name of what it is multiplied by, by path; of gates.
    iterates: the name of its iterate, by path; only of schedule-free training.
    b1: the name of the interpolation of schedule-free training, or ''.
    abstract: the tree of the parameters.
  """

  arrays: dict[str, jax.ShapeDtypeStruct]
  values: dict[str, str]
  factors: dict[str, str]
  iterates: dict[str, str]
  b1: str
  abstract: Any

  def params(self, arrays: dict[str, jax.Array]) -> Any:
    """The parameters, of the arrays that were read; takes them out of these."""

    def one(path, _):
      name = _name(path)
      value = arrays.pop(self.values[name])
      if name in self.iterates:
        z = arrays.pop(self.iterates[name])
        # As in optax.contrib.schedule_free_eval_params.
        value = (value - (1.0 - arrays[self.b1]) * z) / arrays[self.b1]
      if name in self.factors:
        value = value * arrays.pop(self.factors[name]).astype(value.dtype)
      return value

    return jax.tree_util.tree_map_with_path(one, self.abstract)


def select(saved: Mapping[str, str], abstract: Any) -> Selection:
  """What to read of a state that holds the arrays `saved`.

  Args:
    saved: type and shape of each array of the state, by name.
    abstract: shapes, types and shardings of the parameters.
  """
  leaves = {
    _name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]
  }
  average = _prefix(saved, leaves, lambda prefix: prefix.startswith(_AVERAGES))
  iterates = _prefix(saved, leaves, lambda prefix: _has_iterates(saved, prefix))
  arrays, values, factors, others, b1 = {}, {}, {}, {}, ''
  for path, leaf in leaves.items():
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    if (factor := _FACTORS + path) in saved:
      factors[path] = factor
      dtype, _, sizes = saved[factor].partition('[')
      arrays[factor] = jax.ShapeDtypeStruct(
        json.loads(f'[{sizes}'), dtype, sharding=everywhere
      )
    # Frozen parameters have neither average nor iterate.
    if average and average + path in saved:
      values[path] = average + path
      arrays[average + path] = leaf.update(dtype=jnp.float32)
      continue
    values[path] = _PARAMS + path
    arrays[_PARAMS + path] = leaf
    if iterates and not average and iterates + path in saved:
      others[path] = iterates + path
      arrays[iterates + path] = leaf.update(dtype=jnp.float32)
      b1 = f'{iterates.removesuffix("z/")}b1'
      arrays[b1] = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
  return Selection(arrays, values, factors, others, b1, abstract)


def select_reference(saved: Mapping[str, str], abstract: Any) -> Selection:
  """As `select`, of the parameters that preferences are relative to.

  Args:
    saved: as in `select`.
    abstract: those that are trained.
  """
  arrays, values = {}, {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
    name = _name(path)
    # Until the first step by preferences they are as they are.
    kept = _REFERENCE + name in saved
    values[name] = (_REFERENCE if kept else _PARAMS) + name
    arrays[values[name]] = leaf
  return Selection(arrays, values, {}, {}, '', abstract)


def first_misfit(saved: Mapping[str, str], selection: Selection) -> str:
  """What of a selection the state `saved` cannot give; '' if it has all."""
  wanted = storage.shapes(selection.arrays)
  for path, name in selection.values.items():
    there = saved.get(name, 'absent')
    if there != wanted[name] and not storage.is_convertible(
      there, wanted[name]
    ):
      return f'{path} is {there} there and {wanted[name]} here'
  return ''


def unused(saved: Mapping[str, str], selection: Selection) -> list[str]:
  """Paths of the parameters in `saved` that a selection leaves out."""
  paths = (
    name.removeprefix(_PARAMS) for name in saved if name.startswith(_PARAMS)
  )
  return [path for path in paths if path not in selection.values]


def _prefix(
  saved: Mapping[str, str],
  leaves: Mapping[str, Any],
  is_wanted: Callable[[str], bool],
) -> str:
  """What stands before the paths of most parameters; '' if nothing does."""
  counts: dict[str, int] = {}
  for name in saved:
    parts = name.split('/')
    for i in range(1, len(parts)):
      prefix = '/'.join(parts[:i]) + '/'
      if '/'.join(parts[i:]) in leaves and is_wanted(prefix):
        counts[prefix] = counts.get(prefix, 0) + 1
  return max(counts, key=counts.__getitem__, default='')


def _has_iterates(saved: Mapping[str, str], prefix: str) -> bool:
  """Whether these are the iterates in an optax ScheduleFreeState."""
  state = prefix.removesuffix('z/')
  # What extensions keep of an optimizer is of earlier steps.
  is_own = state != prefix and not prefix.startswith('extra/')
  return is_own and {f'{state}b1', f'{state}weight_sum'} <= set(saved)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
