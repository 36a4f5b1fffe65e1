"""Sparse training: weights are pruned, and grow again, by the gradient.

Every `sparsity.update_every` steps the method chooses other masks, by what the
step before knows: weights, and the gradients of all weights, those that are
zero as well. The backward pass has these anyway, so nothing is computed for
them. The choice stands in a `lax.cond`; one program serves all steps.

After every update what is pruned is zero in the parameters, in their averages
and in the optimizer's moments. A weight that grows therefore begins at zero,
with moments of zero.

`movement` and `ste` keep the values of pruned weights beside the parameters,
where the optimizer moves them too (ste) or they wait (movement).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.adapt import ema, extension, masks, selection, units
from gemini_jax.models import parameter_groups

NAME = 'masks'

# Which keep the values of pruned weights; they change masks by these.
_LATENT = ('movement', 'ste')


@dataclasses.dataclass(frozen=True)
class Pruning(extension.Extension):
  """Its own state: `masks`; of some methods `latent` and `scores` too.

  Attributes:
    config: of the run.
  """

  config: config_lib.Config

  name = NAME

  @property
  def _method(self) -> str:
    return self.config.sparsity.method

  @property
  def settled_step(self) -> int:
    """The one that reaches the share, where it grows in the course."""
    if self._method not in ('gradual', 'movement'):
      return 0
    return self.config.sparsity.course(self.config.train.num_steps)[1]

  def selections(self) -> list[parameter_groups.Selection]:
    """The matrices that are pruned."""
    pattern = self.config.sparsity.pattern
    return [parameter_groups.Selection('sparsity.pattern', pattern)]

  def check(self, params: Any):
    """Refuses matrices that cannot be pruned as the config says."""
    units.chosen(self.config, params)

  def init(self, params: Any) -> Any:
    """The first masks."""
    own = {'masks': self._first(params)}
    if self._method in _LATENT:
      own['latent'] = _pruned_values(own['masks'], params)
    if self._method == 'movement':
      own['scores'] = jax.tree.map(
        lambda mask: jnp.zeros(mask.shape, jnp.float32), own['masks']
      )
    return own

  def _first(self, params: Any) -> Any:
    chosen = units.chosen(self.config, params)
    if self._method in ('gradual', 'movement', 'gated'):
      return _map(lambda item, leaf: jnp.ones(leaf.shape, bool), chosen, params)
    first = self.config.sparsity.first
    if first == 'auto':
      trained = bool(self.config.train.init_from) or self._method == 'ste'
      first = 'magnitude' if trained else 'random'
    if first == 'nonzero':
      return _map(
        lambda item, leaf: item.expand(item.contract(leaf != 0)), chosen, params
      )
    scores: Callable[[units.Units, jax.Array, jax.Array], jax.Array] = {
      'magnitude': lambda item, leaf, key: item.magnitude(leaf),
      'random': lambda item, leaf, key: jax.random.uniform(key, item.shape),
    }[first]
    return _map(
      lambda item, leaf, key: item.expand(
        selection.highest(scores(item, leaf, key), item.kept, item.dims)
      ),
      chosen,
      params,
      self._keys(chosen, 0),
    )

  def _keys(self, chosen: Any, step: jax.typing.ArrayLike) -> Any:
    """A random key for each matrix: the same on every mesh."""
    key = jax.random.key(self.config.train.seed)
    key = jax.random.fold_in(jax.random.fold_in(key, 0x5BA25E), step)
    keys = (
      jax.random.fold_in(key, i) for i in range(len(jax.tree.leaves(chosen)))
    )
    return jax.tree.map(lambda _: next(keys), chosen)

  def forward_params(self, state: Any, params: Any) -> Any:
    """Zeros where weights are pruned."""
    return masks.apply(of(state), params)

  def gradients(self, state: Any, grads: Any) -> Any:
    """None of what is pruned; all of them go straight through with ste."""
    return grads if self._method == 'ste' else masks.apply(of(state), grads)

  def updates(self, state: Any, updates: Any) -> Any:
    """Where values are kept beside: those that pruned weights then have."""
    own = state.extra[self.name]
    if 'latent' not in own:
      return updates
    moves = self._method == 'ste'

    def one(mask, update, latent, param):
      if parameter_groups.is_masked(mask):
        return update
      rest = latent.astype(jnp.float32) - param
      return jnp.where(mask, update, rest + update if moves else rest)

    return jax.tree.map(
      one,
      own['masks'],
      updates,
      own['latent'],
      state.params,
      is_leaf=parameter_groups.is_masked,
    )

  def after_update(self, state: Any, grads: Any) -> Any:
    """Other masks when they are due, and zeros where weights are pruned."""
    own, method = state.extra[self.name], self._method
    if 'scores' in own:
      scores = _map(
        lambda score, param, grad: score - param.astype(jnp.float32) * grad,
        *(own['scores'], state.params, grads),
      )
      state = self.with_own(state, own | {'scores': scores})
    old = new = of(state)
    if method in _CHANGES:
      first, last = self.config.sparsity.course(self.config.train.num_steps)
      step = state.step
      is_due = step % self.config.sparsity.update_every == 0
      # The share that is asked for is reached at the last.
      is_due = (is_due & (step > first) & (step < last)) | (step == last)
      new = jax.lax.cond(is_due, self._changed, lambda *_: old, state, grads)
    return self._with_masks(state, new)

  def _changed(self, state: Any, grads: Any) -> Any:
    """The masks that a method chooses after a step."""
    sparsity = self.config.sparsity
    own = state.extra[self.name]
    chosen = units.chosen(self.config, state.params)
    first, last = sparsity.course(self.config.train.num_steps)
    progress = jnp.clip((state.step - first) / (last - first), 0.0, 1.0)
    if sparsity.distribution == 'global':
      share = sparsity.sparsity * _cubic(progress)
      return masks.prune_to(own['masks'], state.params, share)

    def one(item, mask, param, grad, score, key):
      parts = _Parts(item, mask, param, grad, score, key, progress)
      return item.expand(_CHANGES[self._method](sparsity, parts))

    scores = own.get('scores', own['masks'])
    return _map(
      one,
      *(chosen, own['masks'], state.params, grads, scores),
      self._keys(chosen, state.step),
    )

  def _with_masks(self, state: Any, new: Any) -> Any:
    own = state.extra[self.name]
    dense = {}
    if 'latent' in own:
      dense = {'latent': _pruned_values(new, state.params)}
    if self._method in _LATENT:
      kept = new
    else:
      # What grows begins at zero, whatever an optimizer has left there.
      kept = jax.tree.map(jnp.logical_and, of(state), new)
    state = self.with_own(state, own | dense)
    return with_masks(state, new, kept, moments=self._method != 'ste')

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> Mapping[str, jax.Array]:
    """With the share of the weights that is zero, where masks are."""
    return {**metrics, 'sparsity': masks.sparsity(of(state))}

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """Zeros where weights are pruned."""
    return masks.apply(of(state), params)


def of(state: Any) -> Any:
  """The masks of a training state."""
  return state.extra[NAME]['masks']


def with_masks(
  state: Any, new: Any, kept: Any = None, *, moments: bool = True
) -> Any:
  """The state with other masks, and zeros in all that they prune.

  Args:
    state: a training state.
    new: the masks.
    kept: masks by which zeros are set; None: `new`.
    moments: whether the optimizer's state is about kept weights alone.
  """
  kept = new if kept is None else kept
  clear = lambda tree: masks.apply_to_state(kept, state.params, tree)
  extra = state.extra | {NAME: state.extra[NAME] | {'masks': new}}
  if ema.EMA.name in extra:
    extra[ema.EMA.name] = clear(extra[ema.EMA.name])
  return dataclasses.replace(
    state,
    params=masks.apply(kept, state.params),
    opt_state=clear(state.opt_state) if moments else state.opt_state,
    extra=extra,
  )


@dataclasses.dataclass(frozen=True)
class _Parts:
  """What a method knows of one matrix.

  Attributes:
    item: its units.
    mask: of the step before, in the matrix's shape.
    param: the weights after the update; of `movement` and `ste` all of them.
    grad: the gradient of all of them.
    score: of `movement`: how far training moved each away from zero.
    key: random.
    progress: 0 when masks begin to change, 1 when they no longer do.
  """

  item: units.Units
  mask: jax.Array
  param: jax.Array
  grad: jax.Array
  score: jax.Array
  key: jax.Array
  progress: jax.Array

  def exchanged(self, drop_fraction: float, growth: jax.Array) -> jax.Array:
    """The smallest of a matrix go; where they were, others come.

    As many of each choice, by the highest `growth`; what has just gone may
    return.
    """
    item, mask = self.item, self.item.contract(self.mask)
    count = lambda bools, dims: jnp.sum(
      bools, axis=dims, keepdims=True, dtype=jnp.uint32
    )
    # Fewer and fewer, along a cosine.
    share = drop_fraction / 2 * (1 + jnp.cos(jnp.pi * self.progress))
    total = count(mask, item.matrix_unit_dims)
    drop = jnp.round(share * total).astype(jnp.uint32)
    magnitude = jnp.where(mask, item.magnitude(self.param), -1.0)
    kept = selection.highest(magnitude, total - drop, item.matrix_unit_dims)
    growth = jnp.where(kept, -1.0, growth)
    missing = count(mask & ~kept, item.dims)
    return kept | selection.highest(growth, missing, item.dims)

  def best(self, scores: jax.Array, progress: jax.typing.ArrayLike = 1.0):
    """The highest, fewer and fewer along a cubic course."""
    item = self.item
    pruned = item.competing - item.kept
    # Exact at the end, also where float32 does not hold the number.
    fall = jnp.round(pruned * _cubic(progress)).astype(jnp.uint32)
    fall = jnp.where(jnp.asarray(progress) >= 1, jnp.uint32(pruned), fall)
    count = jnp.uint32(item.competing) - fall
    return selection.highest(scores, count, item.dims)


def _cubic(progress: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
  """Much at first, then less and less (Zhu and Gupta 2017)."""
  return 1 - (1 - progress) ** 3


_CHANGES: dict[str, Callable[[config_lib.Sparsity, _Parts], jax.Array]] = {
  'set': lambda sparsity, parts: parts.exchanged(
    sparsity.drop_fraction, jax.random.uniform(parts.key, parts.item.shape)
  ),
  'rigl': lambda sparsity, parts: parts.exchanged(
    sparsity.drop_fraction, parts.item.magnitude(parts.grad)
  ),
  'gradual': lambda _, parts: parts.best(
    # What is pruned is zero; it goes before all else.
    jnp.where(
      parts.item.contract(parts.mask), parts.item.magnitude(parts.param), -1.0
    ),
    parts.progress,
  ),
  'movement': lambda _, parts: parts.best(
    parts.item.scores(parts.score), parts.progress
  ),
  'ste': lambda _, parts: parts.best(parts.item.magnitude(parts.param)),
}


def _map(function: Any, tree: Any, *rest: Any) -> Any:
  """`function` where `tree` has no MaskedNode, which stays elsewhere."""
  return jax.tree.map(
    lambda leaf, *others: (
      leaf if parameter_groups.is_masked(leaf) else function(leaf, *others)
    ),
    tree,
    *rest,
    is_leaf=parameter_groups.is_masked,
  )


def _pruned_values(mask_tree: Any, params: Any) -> Any:
  """The values of pruned weights, zeros elsewhere."""
  return _map(
    lambda mask, leaf: jnp.where(mask, jnp.zeros_like(leaf), leaf),
    mask_tree,
    params,
  )


def from_config(config: config_lib.Config) -> Pruning | None:
  """The extension, where the config turns it on."""
  if config.sparsity.method == 'none':
    return None
  return Pruning(config)
