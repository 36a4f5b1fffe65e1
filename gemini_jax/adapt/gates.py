"""Gates on heads, feed-forward channels and layers, learned or by importance.

A gate multiplies what its unit writes to the residual stream, so it is folded
into the last matrix of attention and of the feed-forward layer. In a row of
units, such as the heads of a layer, equally many are removed as in all others.

L layers, K key/value heads, G query heads for each, F channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension
from gemini_jax.config import gates as gates_lib
from gemini_jax.models import parameter_groups
from gemini_jax.weights import shrinking, surgery

# Temperature and limits of the hard-concrete distribution.
_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1
# The first gates are open with probability 0.93.
_FIRST = 2.0
_LEAST_UNIFORM = 1e-6

Units = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Gates(extension.Extension):
  """Its own state: a score of each unit, which are kept, and the factors.

  Attributes:
    options: section of the config.
    model: section of the config.
    num_steps: of the run.
    seed: of the run.
  """

  options: config_lib.Gates
  model: config_lib.Model
  num_steps: int
  seed: int

  name = 'gates'

  def shapes(self) -> dict[str, tuple[tuple[int, ...], float]]:
    """Of the gates of each kind of unit, and the share that is removed.

    The last dim is the row in which units compete.
    """
    model, options = self.model, self.options
    inside = gates_lib.num_inside(model)
    found = {}
    for stack, num_layers in surgery.stack_layers(model).items():
      kinds = shrinking.ATTENTION[: 1 + (model.cross and stack == 'decoder')]
      heads = (num_layers, model.num_heads // inside, inside)
      for kind in kinds:
        found[f'{stack}.{kind}.heads'] = (heads, options.heads)
        kv_heads = (num_layers, model.kv_heads)
        found[f'{stack}.{kind}.kv_heads'] = (kv_heads, options.kv_heads)
      channels = (num_layers, model.mlp_width)
      found[f'{stack}.feedforward.channels'] = (channels, options.channels)
      found[f'{stack}.layers'] = ((num_layers,), options.layers)
    return {name: entry for name, entry in found.items() if entry[1]}

  def init(self, params: Any) -> Any:
    """All units are kept; gates of l0 are nearly open."""
    shapes = self.shapes()
    full = lambda value, dtype=jnp.float32: {
      name: jnp.full(shape, value, dtype) for name, (shape, _) in shapes.items()
    }
    kept = full(True, bool)
    own = {'kept': kept, 'factors': self.factors(full(1.0), params)}
    if self.options.method == 'taylor':
      return own | {'score': full(0.0)}
    multipliers = {
      name: jnp.zeros(shape[:-1]) for name, (shape, _) in shapes.items()
    }
    score = full(_FIRST)
    own |= {'linear': multipliers, 'quadratic': multipliers, 'score': score}
    own['adam'] = self._adam().init(score)
    return own | {'factors': self.factors(self.settled(own), params)}

  def _adam(self) -> optax.GradientTransformation:
    return optax.adam(self.options.learning_rate)

  @property
  def course(self) -> tuple[int, int]:
    """The first and the last step of removal."""
    first, last = (
      round(share * self.num_steps)
      for share in (self.options.begin, self.options.end)
    )
    return first, max(last, first + 1)

  @property
  def settled_step(self) -> int:
    """The last of removal."""
    return self.course[1]

  def progress(self, step: jax.Array) -> jax.Array:
    """How much of what is to be removed should be, at a step."""
    first, last = self.course
    return jnp.clip((step - first) / (last - first), 0, 1)

  def drawn(self, own: Any, step: jax.Array) -> Units:
    """The gates that a step trains with."""
    settled = self.settled(own)
    if self.options.method == 'taylor':
      return settled
    key = jax.random.fold_in(jax.random.key(self.seed), step)
    key = jax.random.fold_in(key, 0x6A7E)
    is_over = step >= self.course[1]
    gates = {}
    for i, (name, score) in enumerate(sorted(own['score'].items())):
      u = jax.random.uniform(
        jax.random.fold_in(key, i),
        score.shape,
        minval=_LEAST_UNIFORM,
        maxval=1 - _LEAST_UNIFORM,
      )
      noise = jnp.log(u) - jnp.log1p(-u)
      gate = _stretched(jax.nn.sigmoid((noise + score) / _BETA))
      gates[name] = jnp.where(is_over, settled[name], gate)
    return gates

  def settled(self, own: Any) -> Units:
    """The gates without noise."""
    if self.options.method == 'taylor':
      return {name: k.astype(jnp.float32) for name, k in own['kept'].items()}
    return {
      name: _stretched(jax.nn.sigmoid(score)) * own['kept'][name]
      for name, score in own['score'].items()
    }

  def factors(self, gates: Units, params: Any) -> Any:
    """What parameters are multiplied by, in a tree of some of their paths."""
    one, flat = jnp.ones(()), traverse_util.flatten_dict(params, sep='/')
    found = {}
    for stack, num_layers in surgery.stack_layers(self.model).items():
      layers = gates.get(f'{stack}.layers', jnp.ones(num_layers))
      for kind in shrinking.ATTENTION:
        path = f'{stack}/layers/{kind}/output/kernel'
        if path in flat:
          heads = gates.get(f'{stack}.{kind}.heads', one)
          if heads.ndim:
            heads = heads.reshape(num_layers, -1)
          kv_heads = gates.get(f'{stack}.{kind}.kv_heads', one)
          if kv_heads.ndim:
            groups = self.model.num_heads // self.model.kv_heads
            kv_heads = jnp.repeat(kv_heads, groups, axis=1)
          found[path] = (layers[:, None] * heads * kv_heads)[..., None, None]
      channels = gates.get(f'{stack}.feedforward.channels', one)
      path = f'{stack}/layers/feedforward/down'
      found[f'{path}/kernel'] = (layers[:, None] * channels)[..., None]
      if f'{path}/bias' in flat:
        found[f'{path}/bias'] = layers[:, None]
    return traverse_util.unflatten_dict(found, sep='/')

  def forward_params(self, state: Any, params: Any) -> Any:
    """With the gates folded in."""
    gates = self.drawn(state.extra[self.name], state.step)
    return fold(params, self.factors(gates, params))

  def gradients(self, state: Any, grads: Any) -> Any:
    """Of the parameters before their gates."""
    gates = self.drawn(state.extra[self.name], state.step)
    return fold(grads, self.factors(gates, state.params))

  def after_update(self, state: Any, grads: Any) -> Any:
    """Scores by the gradient of the gates, and what is removed by them."""
    own, step = state.extra[self.name], state.step - 1
    gates, to_scores = jax.vjp(
      lambda score: self.drawn(own | {'score': score}, step), own['score']
    )
    # Of the gates with which the step was made.
    params, to_gates = jax.vjp(
      lambda gates: _touched(state.params, self.factors(gates, state.params)),
      gates,
    )
    (pull,) = to_gates(_like(params, grads))
    if self.options.method == 'taylor':
      own = self._by_importance(own, pull, state.step)
    else:
      own = self._by_descent(own, to_scores(pull)[0], state.step)
    factors = self.factors(self.settled(own), state.params)
    return self.with_own(state, own | {'factors': factors})

  def _by_importance(self, own: Any, pull: Units, step: jax.Array) -> Any:
    decay = self.options.decay
    score = {
      name: decay * own['score'][name] + (1 - decay) * jnp.abs(pull[name])
      for name in pull
    }
    # Cubic, as magnitude pruning is (Zhu and Gupta 2017).
    share = 1 - (1 - self.progress(step)) ** 3
    # What is removed does not return.
    live = {n: jnp.where(own['kept'][n], score[n], -1.0) for n in score}
    kept = {
      name: _best(live[name], self._num_kept(name, share)) & own['kept'][name]
      for name in live
    }
    return own | {'score': score, 'kept': kept}

  def _by_descent(self, own: Any, pull: Units, step: jax.Array) -> Any:
    """One step down in the loss, and up in the multipliers."""
    progress = self.progress(step)
    rate = self.options.learning_rate

    def penalty(score, linear, quadratic):
      total = jnp.zeros(())
      for name, (shape, share) in self.shapes().items():
        miss = share * progress - _closed_share(score[name])
        term = linear[name] * miss + quadratic[name] * jnp.square(miss)
        # Of units, so that rows of any length are held alike.
        total += shape[-1] * jnp.sum(term)
      return total

    force, *slack = jax.grad(penalty, (0, 1, 2))(
      own['score'], own['linear'], own['quadratic']
    )
    updates, adam = self._adam().update(
      jax.tree.map(jnp.add, pull, force), own['adam']
    )
    is_over = step > self.course[1]
    score = jax.tree.map(
      lambda old, new: jnp.where(is_over, old, new),
      own['score'],
      optax.apply_updates(own['score'], updates),
    )
    linear, quadratic = (
      jax.tree.map(lambda value, slope: value + rate * slope, own[name], slopes)
      for name, slopes in zip(('linear', 'quadratic'), slack, strict=True)
    )
    # At the end exactly as many as were asked for are left.
    kept = {
      name: jnp.where(
        step >= self.course[1],
        _best(score[name], self._num_kept(name, jnp.ones(()))),
        True,
      )
      for name in score
    }
    return own | {
      'score': score,
      'adam': adam,
      'linear': linear,
      'quadratic': quadratic,
      'kept': kept,
    }

  def _num_kept(self, name: str, progress: jax.Array) -> jax.Array:
    shape, share = self.shapes()[name]
    whole = int(share * shape[-1])
    return shape[-1] - jnp.round(whole * progress).astype(jnp.int32)

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> Mapping[str, jax.Array]:
    """With the share of the gates that are closed."""
    gates = self.settled(state.extra[self.name])
    all_gates = jnp.concatenate([gate.reshape(-1) for gate in gates.values()])
    return {**metrics, 'gates_closed': jnp.mean(all_gates <= 0)}

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """With the gates folded in, as a checkpoint is read."""
    return fold(params, state.extra[self.name]['factors'])


def fold(params: Any, factors: Any) -> Any:
  """Parameters times their factors; those that are masked stay."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(factors)

  def one(path, leaf):
    factor = flat.get(tuple(key.key for key in path))
    if factor is None or parameter_groups.is_masked(leaf):
      return leaf
    return leaf * factor.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(
    one, params, is_leaf=parameter_groups.is_masked
  )


def _touched(params: Any, factors: Any) -> dict[tuple[str, ...], jax.Array]:
  """The parameters that have a factor, times it, in float32."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(params)
  return {
    path: flat[path].astype(jnp.float32) * factor
    for path, factor in traverse_util.flatten_dict(factors).items()
  }


def _like(touched: Any, grads: Any) -> Any:
  """The gradients of these parameters; zeros where one is frozen."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(grads)
  return {
    path: jnp.zeros_like(leaf)
    if parameter_groups.is_masked(flat[path])
    else flat[path].astype(jnp.float32)
    for path, leaf in touched.items()
  }


def _stretched(x: jax.Array) -> jax.Array:
  return jnp.clip(x * (_HIGH - _LOW) + _LOW, 0, 1)


def _closed_share(score: jax.Array) -> jax.Array:
  """The expected share of closed gates in each row."""
  shift = _BETA * jnp.log(-_LOW / _HIGH)
  return 1 - jnp.mean(jax.nn.sigmoid(score - shift), axis=-1)


def _best(scores: jax.Array, count: jax.Array) -> jax.Array:
  """Bools: the `count` highest of the last dim."""
  order = jnp.argsort(-scores, axis=-1, stable=True)
  return jnp.argsort(order, axis=-1) < count


def from_config(config: config_lib.Config) -> Gates | None:
  """The extension, where the config turns it on."""
  if config.gates.method == 'none':
    return None
  return Gates(
    config.gates, config.model, config.train.num_steps, config.train.seed
  )
