"""AdaLoRA: a budget of ranks, given to the matrices that make use of them.

An update a diag(gains) b is a singular value decomposition whose values are
trained. In the course of a run the values of least importance are set to zero,
over all matrices, until `tune.rank` are left on average (Zhang et al. 2023).
Shapes stay as they are; an export leaves out what is zero.

R initial rank, I numbers that a product adds up, O numbers of its output.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension
from gemini_jax.models import parameter_groups
from gemini_jax.weights import lora


@dataclasses.dataclass(frozen=True)
class AdaLoRA(extension.Extension):
  """Its own state: importance, its uncertainty, and which values are kept.

  Attributes:
    tune: rank, and the course of the budget.
    num_steps: of the run.
  """

  tune: config_lib.Tune
  num_steps: int

  name = 'adalora'

  def init(self, params: Any) -> Any:
    """Nothing is known of any number yet, and all values are kept."""
    own = parameter_groups.own(self.tune, params)
    zeros = lambda: jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, jnp.float32), own
    )
    kept = jax.tree.map(
      lambda leaf: jnp.ones(leaf.gains.shape, bool), own, is_leaf=_is_update
    )
    return {'importance': zeros(), 'uncertainty': zeros(), 'kept': kept}

  @property
  def settled_step(self) -> int:
    """The one that reaches the rank."""
    return self.tune.adalora.course(self.num_steps)[1]

  def gradients(self, state: Any, grads: Any) -> Any:
    """With that of the factors' distance from orthogonal ones."""
    own = parameter_groups.own(self.tune, state.params)
    weight = self.tune.adalora.orthogonality
    pull = jax.grad(lambda own: weight * distance(own))(
      parameter_groups.to_float32(own)
    )
    add = lambda grad, more: (
      grad if parameter_groups.is_masked(grad) else grad + more
    )
    return jax.tree.map(add, grads, pull, is_leaf=parameter_groups.is_masked)

  def after_update(self, state: Any, grads: Any) -> Any:
    """Importance by the gradient of the task alone, and the values cut."""
    options, own = self.tune.adalora, state.extra[self.name]
    params = parameter_groups.own(self.tune, state.params)
    now = jax.tree.map(
      _sensitivity, grads, params, is_leaf=parameter_groups.is_masked
    )
    mean = lambda decay: lambda old, new: decay * old + (1 - decay) * new
    importance = jax.tree.map(
      mean(options.importance_decay), own['importance'], now
    )
    uncertainty = jax.tree.map(
      mean(options.uncertainty_decay),
      own['uncertainty'],
      jax.tree.map(lambda new, smooth: jnp.abs(new - smooth), now, importance),
    )
    first, last, every = options.course(self.num_steps)
    step = state.step
    is_due = (step > first) & (step < last) & (step % every == 0)
    is_due = is_due | (step == last)
    scores = jax.tree.map(
      _scores,
      jax.tree.map(jnp.multiply, importance, uncertainty),
      is_leaf=_is_update,
    )
    kept = jax.tree.map(
      lambda new, old: jnp.where(is_due, new, old),
      best(scores, self.budget(step, scores)),
      own['kept'],
    )
    # In between, what was cut may grow again and be chosen.
    cuts = is_due | (step > last)

    def cut(leaf, mask):
      if not _is_update(leaf):
        return leaf
      return leaf.replace(gains=jnp.where(cuts & ~mask, 0, leaf.gains))

    new = {'importance': importance, 'uncertainty': uncertainty, 'kept': kept}
    params = jax.tree.map(cut, state.params, kept, is_leaf=_is_update)
    return self.with_own(dataclasses.replace(state, params=params), new)

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> Mapping[str, jax.Array]:
    """With the mean rank that is left, and the factors' distance."""
    kept = jax.tree.leaves(state.extra[self.name]['kept'])
    num_matrices = sum(mask.size // mask.shape[-1] for mask in kept)
    num_kept = jnp.sum(jnp.stack([jnp.sum(mask) for mask in kept]))
    own = parameter_groups.own(self.tune, state.params)
    return {
      **metrics,
      'adalora_rank': num_kept / num_matrices,
      'adalora_orthogonality': distance(own),
    }

  def budget(self, step: jax.Array, scores: Any) -> jax.Array:
    """How many values are kept after a step, of all that there are."""
    first, last, _ = self.tune.adalora.course(self.num_steps)
    leaves = jax.tree.leaves(scores)
    whole = sum(leaf.size for leaf in leaves)
    least = sum(leaf.size // leaf.shape[-1] for leaf in leaves) * self.tune.rank
    rest = 1 - jnp.clip((step - first) / (last - first), 0, 1)
    return jnp.round(least + (whole - least) * rest**3).astype(jnp.int32)


def best(scores: Any, count: jax.Array) -> Any:
  """Bools: which are the `count` highest of the numbers of all arrays."""
  leaves, treedef = jax.tree.flatten(scores)
  flat = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
  order = jnp.argsort(-flat)
  chosen = (
    jnp.zeros(flat.shape, bool).at[order].set(jnp.arange(flat.size) < count)
  )
  masks, start = [], 0
  for leaf in leaves:
    part = chosen[start : start + leaf.size]
    masks.append(part.reshape(leaf.shape))
    start += leaf.size
  return treedef.unflatten(masks)


def distance(own: Any) -> jax.Array:
  """Mean Frobenius norm of a^T a - 1 and b b^T - 1, over all matrices."""
  total, count = jnp.zeros(()), 0
  for leaf in filter(_is_update, jax.tree.leaves(own, is_leaf=_is_update)):
    a_IR, b_RO = _factors(leaf)
    for gram_RR in (
      jnp.einsum('...ir,...is->...rs', a_IR, a_IR),
      jnp.einsum('...ro,...so->...rs', b_RO, b_RO),
    ):
      identity = jnp.eye(gram_RR.shape[-1])
      error_RR = gram_RR - jnp.broadcast_to(identity, gram_RR.shape)
      # The norm has no gradient at 0.
      square = jnp.sum(jnp.square(error_RR), axis=(-2, -1)) + 1e-12
      total += jnp.sum(jnp.sqrt(square))
      count += square.size
  return total / count


def _sensitivity(grad: Any, param: Any) -> Any:
  """|w dL/dw|, what setting w to zero would change of the loss."""
  if not parameter_groups.is_masked(grad):
    return jnp.abs(param.astype(jnp.float32) * grad)
  # Not tuned, or frozen beside.
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), param)


def _scores(product: lora.LowRank) -> jax.Array:
  """Score of each value and its two vectors, [*stack, R]."""
  a_IR, b_RO = _factors(product)
  return product.gains + jnp.mean(a_IR, axis=-2) + jnp.mean(b_RO, axis=-1)


def _factors(leaf: lora.LowRank) -> tuple[jax.Array, jax.Array]:
  """The factors as [*stack, I, R] and [*stack, R, O]."""
  *stack, rank = leaf.gains.shape
  return leaf.a.reshape(*stack, -1, rank), leaf.b.reshape(*stack, rank, -1)


def _is_update(leaf: Any) -> bool:
  return isinstance(leaf, lora.LowRank)


def from_config(config: config_lib.Config) -> AdaLoRA | None:
  """The extension, where the config turns it on."""
  if config.tune.method != 'adalora':
    return None
  return AdaLoRA(config.tune, config.train.num_steps)
