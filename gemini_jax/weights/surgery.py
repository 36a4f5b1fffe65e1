"""Parameters of one size as parameters of another: what each dim counts.

A unit is a head, a channel of the feed-forward layer, a layer, or a dim of the
residual stream. Parameters say by the logical names of their dims what units
these count.
"""

import functools
import re
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.models import gemini, parameter_groups

Dims = tuple[str | None, ...]
# Norms over the residual stream, whose scales have no logical name.
_RESIDUAL_NORM = re.compile(
  r'(^|/)(\w*attention|feedforward|decoder|encoder)(_post)?_norm/scale$'
)
# What a layer writes to the residual stream, after which only a norm can come.
WRITES = re.compile(
  r'/layers/(\w*attention/output/kernel|'
  r'feedforward/((shared/)?down|expert_down)/(kernel|bias))$'
)
_POST_NORM = re.compile(r'/layers/\w+_post_norm/scale$')
_FINAL_NORM = 'decoder_norm/scale'


def name_of(path: Any) -> str:
  """A parameter's path, as in checkpoints."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


@functools.cache
def dims(model: config_lib.Model) -> dict[str, Dims]:
  """What the dims of each parameter count, by path.

  Names are layers, heads, kv_heads, mlp, embed, and others that stay.
  """
  boxed = jax.eval_shape(
    functools.partial(gemini.init_params, gemini.Gemini(model)),
    jax.random.key(0),
  )
  is_boxed = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  found = {}
  for path, box in jax.tree_util.tree_flatten_with_path(
    boxed, is_leaf=is_boxed
  )[0]:
    if not is_boxed(box):
      continue
    # The path ends in the box itself.
    name = name_of(path)
    names = box.names
    if _RESIDUAL_NORM.search(name):
      names = (*names[:-1], 'embed')
    found[name] = tuple(names)
  return found


def stack_layers(model: config_lib.Model) -> dict[str, int]:
  """The number of layers of each stack of text, by the stack's path."""
  layers = {'decoder': model.num_layers, 'encoder': model.encoder_layers}
  return {stack: count for stack, count in layers.items() if count}


class Expansion:
  """Parameters of a smaller model as those of a larger one.

  Every unit of the larger one is a copy of one of the smaller. By `preserve`
  the larger model computes the same.
  """

  def __init__(
    self,
    before: config_lib.Model,
    after: config_lib.Model,
    growth: config_lib.Growth,
    seed: int = 0,
  ):
    """Sees what each unit is a copy of.

    Args:
      before: the smaller model.
      after: the larger one; `config/growth.py` checks that it can be.
      growth: how.
      seed: of the shares by which weights are divided among copies.
    """
    self._dims = dims(before)
    self._after = after
    self._growth = growth
    self._seed = seed
    self._factor = after.width // before.width
    self._sources = unit_sources(before, after)
    stacks = stack_layers(before)
    self._layers = {
      stack: layer_sources(stacks[stack], count, growth.order)
      for stack, count in stack_layers(after).items()
    }

  def _sources_of(self, path: str) -> dict[int, np.ndarray]:
    """The sources along each dim of a parameter that changes."""
    found = {}
    for dim, name in enumerate(self._dims.get(path, ())):
      stack = path.split('/')[0]
      if name == 'layers' and path.startswith(f'{stack}/layers/'):
        if stack in self._layers:
          found[dim] = self._layers[stack]
      elif name in self._sources:
        found[dim] = self._sources[name]
    return {
      dim: source
      for dim, source in found.items()
      if not np.array_equal(source, np.arange(source.max() + 1))
    }

  def tree(self, params: Any) -> Any:
    """All parameters, plain arrays of the smaller model."""
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: self.values(name_of(path), leaf), params
    )

  def zeros(self, path: str, leaf: jax.Array) -> jax.Array:
    """Zeros in the place of a parameter."""
    return jnp.zeros_like(self.copied(path, leaf))

  def copied(self, path: str, leaf: jax.Array) -> jax.Array:
    """Every unit as the one that it is a copy of."""
    for dim, source in self._sources_of(path).items():
      leaf = jnp.take(leaf, source, axis=dim)
    return leaf

  def values(self, path: str, leaf: jax.Array) -> jax.Array:
    """As `copied`, so that the model computes the same."""
    sources = self._sources_of(path)
    if not sources:
      return leaf
    grown = self.copied(path, leaf).astype(jnp.float32)
    inputs: tuple[int, ...] = ()
    if parameter_groups.kind(path) == 'matrix':
      inputs = parameter_groups.matrix_dims(path, leaf.ndim).inputs
    for dim in inputs:
      if dim in sources:
        grown = grown * self._shares(path, dim, sources[dim], leaf.ndim)
    grown = self._at_the_ends(path, grown, sources)
    if 0 in sources and self._growth.method == 'preserve':
      grown = self._as_identity(path, grown, sources[0])
    return grown.astype(leaf.dtype)

  def _shares(
    self, path: str, dim: int, source: np.ndarray, ndim: int
  ) -> np.ndarray:
    """What part of a weight each copy of what it reads has."""
    draw = np.random.default_rng(
      [abs(self._seed), zlib.crc32(path.encode()), dim]
    )
    noise = self._growth.split_noise
    weights = 1 + noise * draw.uniform(-1, 1, source.size)
    totals = np.bincount(source, weights)
    shares = (weights / totals[source]).astype(np.float32)
    others = tuple(i for i in range(ndim) if i != dim)
    return np.expand_dims(shares, others)

  def _at_the_ends(
    self, path: str, grown: jax.Array, sources: Mapping[int, np.ndarray]
  ) -> jax.Array:
    """Of a wider stream: the table of tokens, and the norm before a tied head.

    The table is read by columns that copy, so the head's share is in the norm.
    """
    if self._factor == 1:
      return grown
    # Embeddings are multiplied by the root of the width.
    root = self._factor**0.5 if self._after.scale_embeddings else 1.0
    if path == 'token/embedding':
      return grown / root
    is_tied = self._after.tie_embeddings and not self._after.num_classes
    if path == _FINAL_NORM and is_tied:
      shares = self._shares(path, 0, sources[0], 1)
      return (1 + grown) * shares * root - 1
    return grown

  def _as_identity(
    self, path: str, grown: jax.Array, source: np.ndarray
  ) -> jax.Array:
    """Zeros where new layers write to the residual stream."""
    post = self._after.norm == 'pre_post'
    if not (_POST_NORM.search(path) if post else WRITES.search(path)):
      return grown
    old = np.unique(source, return_index=True)[1]
    is_new = np.ones(source.size, bool)
    is_new[old] = False
    # Scales are stored less 1. A kernel of zeros before a norm would have no
    # useful gradient.
    value = -1.0 if post else 0.0
    return jnp.where(is_new.reshape(-1, *(1,) * (grown.ndim - 1)), value, grown)


def unit_sources(
  before: config_lib.Model, after: config_lib.Model
) -> dict[str, np.ndarray]:
  """For each unit of the larger model, that of the smaller one, by name."""
  groups = before.num_heads // before.kv_heads
  new_groups = after.num_heads // after.kv_heads
  kv_heads = np.arange(after.kv_heads) % before.kv_heads
  inside = np.arange(new_groups) % groups
  heads = (kv_heads[:, None] * groups + inside[None]).reshape(-1)
  return {
    'embed': np.arange(after.width) % before.width,
    'mlp': np.arange(after.mlp_width) % before.mlp_width,
    'kv_heads': kv_heads,
    'heads': heads,
  }


def layer_sources(before: int, after: int, order: str) -> np.ndarray:
  """For each layer of the deeper stack, that of the other one."""
  if order == 'stack':
    return np.arange(after) % before
  return np.arange(after) * before // after
