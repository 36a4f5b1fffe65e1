"""Parameters of a smaller dense model: heads, channels and layers cut out.

All layers of a stack keep equally many units, each layer its own, so that the
result is a plain model whose config has smaller sizes.

L layers, K key/value heads, G query heads for each of these, N heads, F
channels of the feed-forward layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gemini_jax import config as config_lib
from gemini_jax.config import growth as growth_lib
from gemini_jax.weights import surgery

ATTENTION = ('attention', 'cross_attention')


@dataclasses.dataclass(frozen=True)
class Scores:
  """What the units of a stack are worth; 0: nothing at all.

  Attributes:
    heads_LN: by kind of attention.
    channels_LF: of the feed-forward layer.
    layers_L: of whole layers.
  """

  heads_LN: dict[str, np.ndarray]
  channels_LF: np.ndarray
  layers_L: np.ndarray


def check(before: config_lib.Model, after: config_lib.Model):
  """Sees that one model can be cut to the other.

  Raises:
    ConfigError: a size is larger, or sizes do not fit together.
  """
  for name, field in (
    ('num_layers', 'num_layers'),
    ('encoder_layers', 'num_encoder_layers'),
    ('num_heads', 'num_heads'),
    ('kv_heads', 'num_kv_heads'),
    ('mlp_width', 'mlp_dim'),
  ):
    old, new = getattr(before, name), getattr(after, name)
    config_lib.check(
      new <= old,
      f'--{field}={new} must be at most {old}, which the source has',
    )
  groups = [model.num_heads // model.kv_heads for model in (before, after)]
  config_lib.check(
    groups[1] <= groups[0],
    f'--num_heads={after.num_heads} are {groups[1]} for each of '
    f'--num_kv_heads={after.kv_heads}; the source has {groups[0]}',
  )
  period = len(after.attention_pattern)
  for field, new, old in (
    ('num_layers', after.num_layers, before.num_layers),
    ('num_encoder_layers', after.encoder_layers, before.encoder_layers),
  ):
    config_lib.check(
      new == old or (new % period == 0 and old % period == 0),
      f'--{field}={new} and the {old} of the source must be multiples of the '
      f'{period} layers of its attention_pattern',
    )
  growth_lib.plain_check(before, after, '--source')


def magnitudes(params: Any, model: config_lib.Model) -> dict[str, Scores]:
  """Scores by the norms of what a unit reads and of what it writes."""
  norm = lambda kernel, unit: np.sqrt(_unit_sums(jnp.square(kernel), unit))

  def head(layers, kind):
    part = layers[kind]
    reads = norm(part['query']['kernel'], 2)
    return reads * norm(part['output']['kernel'], 1)

  def channel(layers):
    part = layers['feedforward']
    return norm(part['up']['kernel'], 2) * norm(part['down']['kernel'], 1)

  def layer(layers):
    writes = (*_writes(layers),)
    return sum(norm(kernel, None) for kernel in writes)

  return _by_stack(params, model, head, channel, layer)


def first_order(products: Any, model: config_lib.Model) -> dict[str, Scores]:
  """Scores by what a gate on each unit would change of the loss (Taylor).

  Molchanov et al. 2017. Of one batch; to be averaged over several.

  Args:
    products: gradients times parameters, a tree as that of the parameters.
    model: whose parameters these are.
  """
  total = lambda product, unit: np.abs(_unit_sums(product, unit))
  return _by_stack(
    products,
    model,
    lambda layers, kind: total(layers[kind]['output']['kernel'], 1),
    lambda layers: total(layers['feedforward']['down']['kernel'], 1),
    lambda layers: np.abs(
      sum(_unit_sums(product, None) for product in _writes(layers))
    ),
  )


def _writes(layers: Mapping[str, Any]) -> list[Any]:
  """What a layer adds to the residual stream, by its last matrices."""
  kinds = [kind for kind in ATTENTION if kind in layers]
  return [layers[kind]['output']['kernel'] for kind in kinds] + [
    layers['feedforward']['down']['kernel']
  ]


def _unit_sums(stacked: jax.Array, unit: int | None) -> np.ndarray:
  """Sums of all but the layers and the units: [L, units], or [L]."""
  kept = {0, unit}
  rest = tuple(dim for dim in range(stacked.ndim) if dim not in kept)
  return np.asarray(jnp.sum(stacked.astype(jnp.float32), axis=rest), np.float64)


def _by_stack(
  tree: Any, model: config_lib.Model, head: Any, channel: Any, layer: Any
) -> dict[str, Scores]:
  found = {}
  for stack in surgery.stack_layers(model):
    layers = tree[stack]['layers']
    kinds = [kind for kind in ATTENTION if kind in layers]
    found[stack] = Scores(
      {kind: head(layers, kind) for kind in kinds},
      channel(layers),
      layer(layers),
    )
  return found


def mean(several: list[dict[str, Scores]]) -> dict[str, Scores]:
  """The means of scores of several batches."""
  average = lambda *arrays: np.mean(arrays, axis=0)
  return {
    stack: Scores(
      {
        kind: average(*(one[stack].heads_LN[kind] for one in several))
        for kind in several[0][stack].heads_LN
      },
      average(*(one[stack].channels_LF for one in several)),
      average(*(one[stack].layers_L for one in several)),
    )
    for stack in several[0]
  }


def live_sizes(
  scores: Mapping[str, Scores], model: config_lib.Model
) -> dict[str, int | None]:
  """The sizes of the smallest model that has all units of a score above 0."""
  most = lambda live: max(1, int(live.sum(axis=-1).max()))
  kv_heads = inside = channels = 1
  for one in scores.values():
    for head_LN in one.heads_LN.values():
      live_LKG = head_LN.reshape(len(head_LN), model.kv_heads, -1) > 0
      kv_heads = max(kv_heads, most(live_LKG.any(axis=-1)))
      inside = max(inside, most(live_LKG))
    channels = max(channels, most(one.channels_LF > 0))
  layers = {stack: most(one.layers_L > 0) for stack, one in scores.items()}
  return {
    'num_layers': layers['decoder'],
    'num_encoder_layers': layers.get('encoder'),
    'num_heads': kv_heads * inside,
    'num_kv_heads': kv_heads,
    'mlp_dim': channels,
  }


def shrink(
  params: Any,
  before: config_lib.Model,
  after: config_lib.Model,
  scores: Mapping[str, Scores],
) -> Any:
  """The parameters of the smaller model: the units of the highest scores.

  Args:
    params: plain arrays of the larger model.
    before: the larger model.
    after: the smaller one; `check` has seen both.
    scores: by stack.
  """
  names = surgery.dims(before)
  counts = surgery.stack_layers(after)
  flat = traverse_util.flatten_dict(params, sep='/')
  cut = {}
  for path, leaf in flat.items():
    stack, *rest = path.split('/')
    if stack in counts and rest[0] == 'layers':
      kept = _kept(scores[stack], before, after, counts[stack])
      leaf = _cut(leaf, names.get(path, ()), kept, rest[1])
    cut[path] = leaf
  return traverse_util.unflatten_dict(cut, sep='/')


def _cut(leaf: Any, names: surgery.Dims, kept: Any, part: str) -> Any:
  """One parameter of a stack's layers; `part` of a layer."""
  leaf = jnp.take(leaf, kept['layers'], axis=0)
  for dim, name in enumerate(names):
    index = kept.get((part, name))
    if index is not None:
      take = lambda layer, units, dim=dim: jnp.take(layer, units, axis=dim - 1)
      leaf = jax.vmap(take)(leaf, index)
  return leaf


def _kept(
  scores: Scores,
  before: config_lib.Model,
  after: config_lib.Model,
  num_layers: int,
) -> dict[Any, np.ndarray]:
  """The units that are kept: of layers, and by part of a layer and dim."""
  period = len(after.attention_pattern)
  if num_layers == len(scores.layers_L):
    period = 1
  # Whole periods, so that a layer attends as it did.
  periods = _best(
    scores.layers_L.reshape(-1, period).sum(-1), num_layers // period
  )
  layers = (periods[:, None] * period + np.arange(period)).reshape(-1)
  kept: dict[Any, np.ndarray] = {'layers': layers}
  for kind, head_LN in scores.heads_LN.items():
    head_LKG = head_LN[layers].reshape(len(layers), before.kv_heads, -1)
    kv_LK = _best(head_LKG.sum(-1), after.kv_heads)
    inside_LKG = _best(
      np.take_along_axis(head_LKG, kv_LK[..., None], axis=1),
      after.num_heads // after.kv_heads,
    )
    heads_LKG = kv_LK[..., None] * head_LKG.shape[-1] + inside_LKG
    kept[kind, 'kv_heads'] = kv_LK
    kept[kind, 'heads'] = heads_LKG.reshape(len(layers), -1)
  kept['feedforward', 'mlp'] = _best(
    scores.channels_LF[layers], after.mlp_width
  )
  return kept


def _best(scores: np.ndarray, count: int) -> np.ndarray:
  """The indices of the `count` highest along the last dim, in their order."""
  order = np.argsort(-scores, axis=-1, kind='stable')
  return np.sort(order[..., :count], axis=-1)
