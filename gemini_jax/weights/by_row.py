"""Several runs that were tuned from one base, each for some rows of a batch.

B rows, R ranks of all updates of a matrix.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.weights import lora, tuning


@dataclasses.dataclass(frozen=True)
class Adapters:
  """Runs that were tuned from one base, and the one of each prompt.

  Attributes:
    params: with updates of low rank over equal bases, by name.
    of_prompts: the name of the one that answers each prompt; '': the base.
  """

  params: Mapping[str, Any]
  of_prompts: Sequence[str]

  def for_rows(self, names: Sequence[str], num_rows: int) -> Any:
    """Parameters for a batch whose first rows are answered by these."""
    order = list(self.params)
    ids = [order.index(name) if name else -1 for name in names]
    ids += [-1] * (num_rows - len(ids))
    return select(list(self.params.values()), np.array(ids))


def select(tuned: Sequence[Any], ids_B: jax.typing.ArrayLike) -> Any:
  """Parameters by which row b of a batch computes as `tuned[ids_B[b]]` would.

  The ids are data: other ones, of as many rows, do not compile again what the
  parameters are given to. Matrices of experts, whose rows are in another order,
  cannot be read so.

  Args:
    tuned: parameters with updates of low rank over equal bases.
    ids_B: int[B]; -1: the base.

  Raises:
    ConfigError: the runs have more of their own than updates of low rank.
  """
  ids_B = jnp.asarray(ids_B, jnp.int32)

  def one(*leaves):
    updates = [leaf for leaf in leaves if tuning.is_weight(leaf)]
    config_lib.check(
      all(isinstance(leaf, lora.LowRank) for leaf in updates),
      'only runs of tune.method lora and adalora can be chosen from by row',
    )
    if not updates:
      return leaves[0]
    owners = [
      jnp.full(leaf.a.shape[-1], index)
      for index, leaf in enumerate(leaves)
      if tuning.is_weight(leaf)
    ]
    owner_R = jnp.concatenate(owners)
    gains_BR = (owner_R[None, :] == ids_B[:, None]).astype(jnp.float32)
    stacked = updates[0].num_stacked
    stack = updates[0].shape[:stacked]
    return lora.LowRank(
      updates[0].base,
      jnp.concatenate([leaf.a for leaf in updates], axis=-1),
      jnp.concatenate([leaf.scaled_b() for leaf in updates], axis=stacked),
      jnp.broadcast_to(gains_BR, (*stack, *gains_BR.shape)),
    )

  return jax.tree.map(one, *tuned, is_leaf=tuning.is_weight)


def repeat(params: Any, count: int) -> Any:
  """Parameters for a batch with each row `count` times.

  Args:
    params: of `select`, or any others, which are the same for all rows.
    count: how many rows a row becomes.
  """

  def one(leaf):
    if isinstance(leaf, lora.LowRank) and leaf.by_row:
      gains = jnp.repeat(leaf.gains, count, axis=leaf.num_stacked)
      return dataclasses.replace(leaf, gains=gains)
    return leaf

  return jax.tree.map(one, params, is_leaf=tuning.is_weight)
