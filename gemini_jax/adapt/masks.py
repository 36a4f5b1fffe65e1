"""Masks: which weights of a model are kept; the others are zero.

A tree of masks mirrors the parameters. Of a matrix that is pruned it has a bool
for each weight, in the shape of its array and so with its sharding; a stack of
layers [L, ...] has one array for all its layers. A MaskedNode stands in the
place of what is never pruned. A mask of blocks has the bools of single weights,
equal within each block; see `units.Units.contract`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax.adapt import selection
from gemini_jax.models import parameter_groups

_is_left_out = parameter_groups.is_masked

_TINY = 1e-30


def apply(masks: Any, tree: Any) -> Any:
  """What mirrors the parameters, with zeros where weights are pruned."""
  return jax.tree.map(
    lambda mask, leaf: (
      leaf
      if _is_left_out(mask)
      else jnp.where(mask, leaf, jnp.zeros_like(leaf))
    ),
    masks,
    tree,
    is_leaf=_is_left_out,
  )


def apply_to_state(masks: Any, params: Any, tree: Any) -> Any:
  """As `apply`, of a tree that holds arrays which mirror the parameters.

  Args:
    masks: of the parameters.
    params: the parameters.
    tree: such as the state of an optimizer: moments are set to zero too.
  """
  every = jax.tree.map(
    lambda mask, _: True if _is_left_out(mask) else mask,
    masks,
    params,
    is_leaf=_is_left_out,
  )
  mirrored = parameter_groups.mirrored(
    tree, params, every, default=True, same_shape=True
  )
  return jax.tree.map(
    lambda mask, leaf: (
      leaf if mask is True else jnp.where(mask, leaf, jnp.zeros_like(leaf))
    ),
    mirrored,
    tree,
  )


def density(masks: Any) -> jax.Array:
  """The share of the weights that are kept, of those that masks are about."""
  return 1 - sparsity(masks)


def sparsity(masks: Any) -> jax.Array:
  """The share of the weights that are pruned."""
  leaves = jax.tree.leaves(masks)
  # Integers first: a sum of many ones in float32 is not exact.
  pruned = [
    jnp.sum(jnp.sum(~mask, axis=-1, dtype=jnp.int32), dtype=jnp.float32)
    for mask in leaves
  ]
  return sum(pruned, start=jnp.float32(0)) / sum(mask.size for mask in leaves)


def prune_to(masks: Any, params: Any, share: jax.typing.ArrayLike) -> Any:
  """Masks with fewer weights: of all matrices together the largest are kept.

  A weight is as large as it is beside the root of the mean square of its
  parameter; else those with many inputs, which begin small, would lose nearly
  all. What is pruned stays so; where more is pruned already nothing changes.

  Args:
    masks: of the parameters.
    params: the parameters.
    share: of the weights that masks are about, to be pruned then; a number or
      a scalar array, so that others do not compile again.
  """
  leaves, treedef = jax.tree.flatten(masks)
  size = sum(mask.size for mask in leaves)
  pairs = jax.tree.map(
    lambda mask, leaf: None if _is_left_out(mask) else leaf,
    masks,
    params,
    is_leaf=_is_left_out,
  )
  scores = [
    jnp.where(mask, _relative(leaf.astype(jnp.float32)), -1.0)
    for mask, leaf in zip(leaves, jax.tree.leaves(pairs), strict=True)
  ]
  count = jnp.round((1 - jnp.asarray(share, jnp.float32)) * size)
  kept = selection.highest_overall(scores, count)
  return treedef.unflatten(
    [new & mask for new, mask in zip(kept, leaves, strict=True)]
  )


def _relative(weights: jax.Array) -> jax.Array:
  """Sizes beside the root of the mean square of all; zeros where all are."""
  mean = jnp.mean(jnp.square(weights))
  return jnp.abs(weights) * jax.lax.rsqrt(jnp.maximum(mean, _TINY))
