"""Models whose every matrix has an update of low rank beside it."""

import jax

import toy
from gemini_jax.models import parameter_groups
from gemini_jax.weights import lora, tuning

base = tuning.without
merged = tuning.merged
is_weight = tuning.is_weight


def beside(array, num_stacked=0, num_inputs=1, rank=2, seed=8, gains=False):
  """An array with a random update of it."""
  stack = array.shape[:num_stacked]
  split = num_stacked + num_inputs
  return lora.LowRank(
    array,
    toy.normal((*array.shape[:split], rank), (seed, 0), 0.3),
    toy.normal((*stack, rank, *array.shape[split:]), (seed, 1), 0.3),
    toy.normal((*stack, rank), (seed, 2)) if gains else None,
    scale=1.5,
  )


def put(params, rank=2):
  """The tree with an update at every matrix, and how many there are.

  Norms and biases are not matrices. Every second update has gains.
  """
  count = 0

  def one(path, leaf):
    nonlocal count
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    dims = parameter_groups.matrix_dims(name, leaf.ndim)
    if not dims.outputs or parameter_groups.kind(name) == 'bias':
      return leaf
    count += 1
    sizes = len(dims.stack), len(dims.inputs)
    return beside(leaf, *sizes, rank, seed=count, gains=count % 2 == 0)

  tree = jax.tree_util.tree_map_with_path(one, params)
  return tree, count
