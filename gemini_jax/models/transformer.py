"""Blocks, and stacks of them over one stored layout.

B batch, T length, S key length, D width, L layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jax.ad_checkpoint import checkpoint_name

from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import attention, expert, feedforward, linear
from gemini_jax.parallel import pipeline


@flax.struct.dataclass
class View:
  """What the layers of one kind see, made once for all of them.

  Attributes:
    mask: where a query may attend.
    angles: (sin, cos) of the rotary positions, or None.
  """

  mask: masking.Mask
  angles: tuple[jax.Array, jax.Array] | None


@flax.struct.dataclass
class Context:
  """All that a block reads beside the residual stream.

  Attributes:
    views: of each kind of layer, 'global' and 'local'.
    positions_BT: slots of the cache that are written.
    cross_mask: where the decoder may attend in the encoder's output.
    memory_BSD: the encoder's output; None once it is in the cache.
    real_BT: bool, false at padding; None: there is none.
    latent_BZ: z of each row, for a decoder that has one in its memory.
  """

  views: dict[str, View]
  positions_BT: jax.Array
  cross_mask: masking.Mask | None = None
  memory_BSD: jax.Array | None = None
  real_BT: jax.Array | None = None
  latent_BZ: jax.Array | None = None


@flax.struct.dataclass
class Cache:
  """What a stack keeps of the tokens that it has read.

  Attributes:
    self_attention: a slot for each position, written as tokens come.
    cross_attention: of the encoder's output, written once
      (`Stack.cross_cache`); None of a decoder without encoder.
  """

  self_attention: attention.KVCache
  cross_attention: attention.KVCache | None = None


class Block(nn.Module):
  """Attention, cross-attention (in a decoder with encoder), feed-forward."""

  config: config_lib.Model
  decodes: bool = False

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    view: View,
    context: Context,
    cache: Cache | None = None,
    deterministic: bool = True,
    layer: int | jax.Array = 0,
  ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
    """The residual stream and the cache after this layer; its own losses.

    The cache is that of the whole stack, in which this is layer `layer`.
    """
    config = self.config
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }

    def norm(name, x_BTD):
      return linear.RMSNorm(config.norm_eps, **types, name=name)(x_BTD)

    def add(name, x_BTD, update_BTD):
      """The residual stream after a sublayer."""
      if config.norm == 'pre_post':
        update_BTD = norm(f'{name}_post_norm', update_BTD)
      update_BTD = nn.Dropout(config.dropout)(
        update_BTD, deterministic=deterministic
      )
      x_BTD = spmd.with_logical_constraint(
        x_BTD + update_BTD, ('batch', 'length', None)
      )
      return checkpoint_name(x_BTD, 'residual')

    def attend(name, x_BTD, mask, **kwargs):
      module = attention.Attention(**attention_fields(config), name=name)
      normed_BTD = norm(f'{name}_norm', x_BTD)
      return module(normed_BTD, mask, layer=layer, **kwargs)

    update_BTD, self_cache = attend(
      'attention',
      x_BTD,
      view.mask,
      angles=view.angles,
      cache=None if cache is None else cache.self_attention,
      positions_BT=context.positions_BT,
      latent_BZ=context.latent_BZ if config.latent.memory else None,
    )
    x_BTD = add('attention', x_BTD, update_BTD)
    if self.decodes and config.cross:
      update_BTD, _ = attend(
        'cross_attention',
        x_BTD,
        context.cross_mask,
        memory_BSD=context.memory_BSD,
        cache=None if cache is None else cache.cross_attention,
        cross=True,
      )
      x_BTD = add('cross_attention', x_BTD, update_BTD)
    hidden = {
      'activation': config.activation,
      'gated': config.gated,
      'init_scale': config.init_scale,
      'name': 'feedforward',
    } | types
    normed_BTD = norm('feedforward_norm', x_BTD)
    aux = {}
    if config.num_experts:
      update_BTD, aux = expert.MixtureOfExperts(
        config.num_experts,
        config.experts_per_token,
        config.expert_width,
        shared_dim=config.shared_expert_dim,
        **hidden,
      )(normed_BTD, context.real_BT)
    else:
      update_BTD = feedforward.FeedForward(
        config.mlp_width, use_bias=config.mlp_bias, **hidden
      )(normed_BTD)
    x_BTD = add('feedforward', x_BTD, update_BTD)
    if cache is not None:
      cache = cache.replace(self_attention=self_cache)
    return x_BTD, cache, aux


def attention_fields(config: config_lib.Model) -> dict[str, Any]:
  """Fields of a layer's attention, self or cross."""
  return {
    'num_heads': config.num_heads,
    'num_kv_heads': config.kv_heads,
    'head_dim': config.head_width,
    'scale': (config.query_scale or config.head_width) ** -0.5,
    'softcap': config.attention_softcap,
    'qk_norm': config.qk_norm,
    'use_bias': config.attention_bias,
    'norm_eps': config.norm_eps,
    'dtype': jnp.dtype(config.dtype),
    'param_dtype': jnp.dtype(config.param_dtype),
    'init_scale': config.init_scale,
    'kernel': config.attention_kernel,
    'context_parallel': config.context_parallel,
    'num_memory': config.latent.memory,
  }


class Stack(nn.Module):
  """Layers in a row, their parameters stored as one [L, ...] tree.

  Scanned or unrolled is a choice of the run and changes neither parameters
  nor results; a scan's body is one period of the attention pattern. Where the
  mesh has stages, a batch goes through them as `schedule` says, unless there
  is a cache or rows that make no microbatches.
  """

  config: config_lib.Model
  num_layers: int
  decodes: bool = False
  schedule: pipeline.Schedule = pipeline.Schedule()

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    context: Context,
    cache: Cache | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
    """The residual stream and the cache after all layers.

    Also the layers' own losses by name, [L].
    """
    config = self.config
    drops = bool(config.dropout) and not deterministic
    key = self.make_rng('dropout') if drops else None
    block = Block(config, self.decodes, parent=None)
    if self.is_initializing():
      params = self.param('layers', self.init_layers, block, x_BTD, context)
    else:
      params = self.get_variable('params', 'layers')
    layers = Layers(params, jnp.arange(self.num_layers))

    def apply(
      x_BTD: jax.Array,
      cache: Cache | None,
      layer: Layers,
      context: Context,
      key: jax.Array | None,
      kind: str,
    ):
      rngs = {}
      if key is not None:
        rngs['dropout'] = jax.random.fold_in(key, layer.index)
      return block.apply(
        {'params': layer.params},
        x_BTD,
        context.views[kind],
        context,
        cache,
        not drops,
        layer.index,
        rngs=rngs,
      )

    def remat(function: Callable[..., Any], **options):
      if not config.remat:
        return function
      names = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=config.remat_save,
        names_which_can_be_offloaded=config.remat_offload,
        offload_src='device',
        offload_dst='pinned_host',
      )
      return jax.checkpoint(function, policy=names, **options)

    staged = pipeline.splits(self.schedule, x_BTD.shape[0])
    if staged and cache is None and not self.is_initializing():

      def stage_layer(params, x_BTD, context, key, index, microbatch, kind):
        if key is not None:
          key = jax.random.fold_in(key, microbatch)
        layer = Layers(params, index)
        output: Any = apply(x_BTD, None, layer, context, key, kind)
        x_BTD, _, aux = output
        return x_BTD, aux

      x_BTD, aux = pipeline.run(
        stage_layer,
        params,
        x_BTD,
        context,
        key,
        schedule=self.schedule,
        pattern=config.attention_pattern,
        scan=config.scan_layers,
        # In a scan over iterations, where nothing is shared by mistake.
        remat=functools.partial(remat, prevent_cse=False),
      )
      # Of all layers together; the mean of each is all that is asked for.
      each = lambda total: jnp.full(self.num_layers, total / self.num_layers)
      return x_BTD, None, jax.tree.map(each, aux)
    apply = remat(
      apply, static_argnums=(5,), prevent_cse=not config.scan_layers
    )

    def run(
      carry: tuple[jax.Array, Cache | None],
      layers: Layers,
      kinds: tuple[str, ...],
    ):
      """Layers one by one; their losses come back stacked."""
      losses = []
      for layer, kind in zip(unstack(layers, len(kinds)), kinds, strict=True):
        *carry, aux = apply(*carry, layer, context, key, kind)
        losses.append(aux)
      return tuple(carry), jax.tree.map(lambda *x: jnp.stack(x), *losses)

    pattern = config.attention_pattern
    period = len(pattern)
    kinds = pattern * (self.num_layers // period + 1)
    scanned = self.num_layers // period * period if config.scan_layers else 0
    carry, losses = (x_BTD, cache), []
    if scanned:
      carry, part = jax.lax.scan(
        lambda carry, group: run(carry, group, pattern),
        carry,
        jax.tree.map(
          lambda leaf: leaf[:scanned].reshape(-1, period, *leaf.shape[1:]),
          layers,
        ),
      )
      losses.append(
        jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), part)
      )
    if scanned < self.num_layers:
      carry, part = run(
        carry,
        jax.tree.map(lambda leaf: leaf[scanned:], layers),
        kinds[scanned : self.num_layers],
      )
      losses.append(part)
    aux = jax.tree.map(lambda *parts: jnp.concatenate(parts), *losses)
    return *carry, aux

  def cross_cache(self, memory_BSD: jax.Array) -> attention.KVCache:
    """Keys and values that all layers make of the encoder's output."""
    params = self.get_variable('params', 'layers')['cross_attention']
    module = attention.MemoryKeys(**attention_fields(self.config), parent=None)
    k_LBSKH, v_LBSKH = jax.lax.map(
      lambda params: module.apply({'params': params}, memory_BSD), params
    )
    return attention.KVCache(k_LBSKH.swapaxes(2, 3), v_LBSKH.swapaxes(2, 3))

  def init_layers(
    self, key: jax.Array, block: Block, x_BTD: jax.Array, context: Context
  ) -> Any:
    """Parameters of every layer, stacked; boxed with their logical axes."""
    view = next(iter(context.views.values()))
    params = jax.vmap(
      lambda key: block.init(key, x_BTD, view, context)['params']
    )(jax.random.split(key, self.num_layers))
    return jax.tree.map(
      lambda box: box.add_axis(0, {nn.PARTITION_NAME: 'layers'}),
      params,
      is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata),
    )


@flax.struct.dataclass
class Layers:
  """What differs from layer to layer, stacked."""

  params: Any
  index: jax.Array


def unstack(tree: Any, num: int) -> list[Any]:
  """The slices of a stacked tree. Its gradient is one concatenation."""
  leaves, treedef = jax.tree.flatten(tree)
  slices = [
    [part[0] for part in jax.lax.split(leaf, (1,) * num)] for leaf in leaves
  ]
  return [treedef.unflatten(parts) for parts in zip(*slices, strict=True)]
