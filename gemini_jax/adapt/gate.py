"""Pruning that validation decides on, at the end of each epoch.

At an epoch's end the share `alpha` of the weights that are left is pruned, the
smallest of all matrices together (`masks.prune_to`). The epoch that follows
recovers from it, and the validation loss after it decides: within the tolerance
of the lowest so far, all is kept and is the new point to go back to; else
parameters, masks and the optimizer's state go back to the last such point, and
alpha is halved. Judged before it recovers, a model would be refused far too
early. The first loss that is finite is that of the dense model; until there is
one, nothing is pruned. Were that one the reference for good, a model that goes
on learning could lose by pruning all that it learns later.

The point is a part of the training state, so a run resumes at any moment.
Counts of steps go on, and so do the data and the learning rate's course.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension, masks, pruning


@dataclasses.dataclass(frozen=True)
class Gate(extension.Extension):
  """Its own state: the point to go back to, alpha, and the lowest loss.

  Attributes:
    config: of the run.
  """

  config: config_lib.Config

  name = 'gate'

  def init_beside(self, params: Any, opt_state: Any) -> Any:
    """The point is where the run begins."""
    own = pruning.Pruning(self.config).init(params)
    point = {
      'params': params,
      'opt_state': opt_state,
      'masks': own['masks'],
    }
    return {
      # Copied: the state is donated to the step.
      'point': jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), point),
      'alpha': jnp.float32(self.config.sparsity.gate.alpha),
      # There is none yet.
      'reference': jnp.float32(jnp.inf),
    }

  @property
  def _last_epoch(self) -> int:
    """The one that is judged last."""
    train = self.config.train
    length = train.epoch_steps(self.config.data.batch_size)
    return train.num_steps // length - self.config.sparsity.gate.last_epochs

  @property
  def settled_step(self) -> int:
    """The one after the last judgement, before which its state is saved."""
    length = self.config.train.epoch_steps(self.config.data.batch_size)
    return self._last_epoch * length + 1

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> Mapping[str, jax.Array]:
    """With alpha, and the sparsity that validation has accepted."""
    own = state.extra[self.name]
    accepted = masks.sparsity(own['point']['masks'])
    return {
      **metrics,
      'gate_alpha': own['alpha'],
      'accepted_sparsity': accepted,
    }

  def after_validation(self, state: Any, loss: jax.typing.ArrayLike) -> Any:
    """At an epoch's end: judged, and pruned further where epochs are left."""
    train, gate = self.config.train, self.config.sparsity.gate
    length = train.epoch_steps(self.config.data.batch_size)
    epoch, rest = divmod(int(state.step), length)
    if rest or not gate.first_epochs <= epoch <= self._last_epoch:
      return state
    is_first = bool(np.isinf(state.extra[self.name]['reference']))
    if is_first and not np.isfinite(loss):
      return state
    new = _judged(
      state,
      jnp.float32(loss),
      jnp.float32(gate.tolerance),
      is_first=is_first,
      is_last=epoch == self._last_epoch,
    )
    # The step was compiled for these shardings.
    return jax.tree.map(
      lambda leaf, old: jax.device_put(leaf, old.sharding), new, state
    )


@functools.partial(jax.jit, static_argnames=('is_first', 'is_last'))
def _judged(
  state: Any,
  loss: jax.Array,
  tolerance: jax.Array,
  *,
  is_first: bool,
  is_last: bool,
) -> Any:
  """The state with which the next epoch begins."""
  own = state.extra[Gate.name]
  reference = loss if is_first else own['reference']
  # A loss that is not finite is refused; of densities it may be negative.
  limit = reference + tolerance * jnp.abs(reference)
  accepts = jnp.isfinite(loss) & (loss <= limit)
  reference = jnp.where(accepts, jnp.minimum(reference, loss), reference)
  now = {
    'params': state.params,
    'opt_state': state.opt_state,
    'masks': pruning.of(state),
  }
  point = jax.tree.map(
    lambda new, old: (
      new
      if jnp.issubdtype(new.dtype, jnp.integer)
      else jnp.where(accepts, new, old)
    ),
    now,
    own['point'],
  )
  alpha = jnp.where(accepts, own['alpha'], own['alpha'] / 2)
  share = masks.sparsity(point['masks'])
  chosen = point['masks']
  if not is_last:
    share = share + (1 - share) * alpha
    chosen = masks.prune_to(chosen, point['params'], share)
  extra = state.extra | {
    Gate.name: {
      'point': jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), point),
      'alpha': alpha,
      'reference': reference,
    }
  }
  state = dataclasses.replace(
    state, params=point['params'], opt_state=point['opt_state'], extra=extra
  )
  return pruning.with_masks(state, chosen)


def from_config(config: config_lib.Config) -> Gate | None:
  """The extension, where the config turns it on."""
  return Gate(config) if config.sparsity.method == 'gated' else None
