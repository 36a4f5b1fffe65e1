"""A Transformer layer, and what it reads beside the residual stream.

B batch, T length, S length of the encoder's output, D width, Z numbers of z.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jax.ad_checkpoint import checkpoint_name

from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import attention, expert, feedforward, hooks, linear


@flax.struct.dataclass
class View:
  """Mask and rotary angles of one kind of layer, made once for all of them.

  Attributes:
    mask: which keys a query may attend to.
    angles: (sin, cos) of the rotary positions, or None.
  """

  mask: masking.Mask
  angles: tuple[jax.Array, jax.Array] | None


@flax.struct.dataclass
class Context:
  """Inputs of a layer that are the same for all layers.

  Attributes:
    views: by kind of layer, 'global' and 'local'.
    positions_BT: the slot of the cache that each token is written to.
    cross_mask: which positions of the encoder's output a token may attend to.
    memory_BSD: the encoder's output; None once its keys are in the cache.
    real_BT: bool, false at padding; None: there is no padding.
    latent_BZ: z of each row, where attention reads it as extra keys.
  """

  views: dict[str, View]
  positions_BT: jax.Array
  cross_mask: masking.Mask | None = None
  memory_BSD: jax.Array | None = None
  real_BT: jax.Array | None = None
  latent_BZ: jax.Array | None = None


@flax.struct.dataclass
class Cache:
  """Keys and values of the tokens that a stack has read, for decoding.

  Attributes:
    self_attention: a slot for each position, written as tokens come.
    cross_attention: of the encoder's output, written once
      (`Stack.cross_cache`); None of a decoder without encoder.
  """

  self_attention: attention.KVCache
  cross_attention: attention.KVCache | None = None


class Block(nn.Module):
  """Attention, cross-attention (in a decoder with encoder), feed-forward.

  Attributes:
    config: of the layer.
    decodes: whether it attends to an encoder's output, if there is one.
    num_layers: of its stack, for stochastic depth.
  """

  config: config_lib.Model
  decodes: bool = False
  num_layers: int = 1

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
    """The residual stream and the cache after this layer, and its losses.

    Args:
      x_BTD: the residual stream.
      view: of this layer's kind.
      context: what all layers read.
      cache: of the whole stack.
      deterministic: no dropout, no stochastic depth.
      layer: index of this layer in the stack and in the cache.
    """
    add = functools.partial(self.add, layer, deterministic)
    x_BTD = hooks.point(self, 'residual_before', x_BTD)
    update_BTD, self_cache = self.attend(
      'attention',
      x_BTD,
      view.mask,
      angles=view.angles,
      cache=None if cache is None else cache.self_attention,
      layer=layer,
      positions_BT=context.positions_BT,
      latent_BZ=context.latent_BZ if self.config.latent.memory else None,
    )
    x_BTD = add('attention', x_BTD, update_BTD)
    if self.decodes and self.config.cross:
      update_BTD, _ = self.attend(
        'cross_attention',
        x_BTD,
        context.cross_mask,
        memory_BSD=context.memory_BSD,
        cache=None if cache is None else cache.cross_attention,
        layer=layer,
        cross=True,
      )
      x_BTD = add('cross_attention', x_BTD, update_BTD)
    update_BTD, aux = self.feed_forward(x_BTD, context.real_BT)
    x_BTD = add('feedforward', x_BTD, update_BTD)
    if cache is not None and self_cache is not None:
      cache = dataclasses.replace(cache, self_attention=self_cache)
    return x_BTD, cache, aux

  def norm(self, name: str, x_BTD: jax.Array) -> jax.Array:
    """The norm before or after a sublayer."""
    return make_norm(self.config, name)(x_BTD)

  def add(
    self,
    layer: int | jax.Array,
    deterministic: bool,
    name: str,
    x_BTD: jax.Array,
    update_BTD: jax.Array,
  ) -> jax.Array:
    """The residual stream after the sublayer `name`."""
    if self.config.norm == 'pre_post':
      update_BTD = self.norm(f'{name}_post_norm', update_BTD)
    update_BTD = nn.Dropout(self.config.dropout)(
      update_BTD, deterministic=deterministic
    )
    if self.config.stochastic_depth and not deterministic:
      update_BTD = self.skip(layer, update_BTD)
    x_BTD = spmd.with_logical_constraint(
      x_BTD + update_BTD, ('batch', 'length', None)
    )
    x_BTD = hooks.point(self, f'residual_after_{name}', x_BTD)
    return checkpoint_name(x_BTD, 'residual')

  def attend(
    self, name: str, x_BTD: jax.Array, mask: masking.Mask | None, **kwargs: Any
  ) -> tuple[jax.Array, attention.KVCache | None]:
    """The update of the attention layer `name`, and its cache."""
    assert mask is not None, 'a decoder that reads an encoder needs cross_mask'
    layer = attention.Attention(**attention_fields(self.config), name=name)
    return layer(self.norm(f'{name}_norm', x_BTD), mask, **kwargs)

  def skip(self, layer: int | jax.Array, update_BTD: jax.Array) -> jax.Array:
    """Zero in rows drawn at random, scaled in the others to the same mean."""
    rate = self.config.stochastic_depth * (layer + 1) / self.num_layers
    kept_B11 = jax.random.bernoulli(
      self.make_rng('dropout'), 1 - rate, (update_BTD.shape[0], 1, 1)
    )
    return jnp.where(kept_B11, update_BTD / (1 - rate), 0).astype(
      update_BTD.dtype
    )

  def feed_forward(
    self, x_BTD: jax.Array, real_BT: jax.Array | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The update of the feed-forward layer, and the losses of its router."""
    config = self.config
    fields = {
      'activation': config.activation,
      'gated': config.gated,
      'init_scale': config.init_scale,
      'name': 'feedforward',
    } | types_of(config)
    normed_BTD = self.norm('feedforward_norm', x_BTD)
    if not config.num_experts:
      layer = feedforward.FeedForward(
        config.mlp_width, use_bias=config.mlp_bias, **fields
      )
      return layer(normed_BTD), {}
    return expert.MixtureOfExperts(
      config.num_experts,
      config.experts_per_token,
      config.expert_width,
      shared_dim=config.shared_expert_dim,
      **fields,
    )(normed_BTD, real_BT)


def make_norm(config: config_lib.Model, name: str | None = None) -> nn.Module:
  """The norm of the residual stream."""
  kind = linear.LayerNorm if config.layer_norm else linear.RMSNorm
  return kind(config.norm_eps, jnp.dtype(config.dtype), name=name)


def types_of(config: config_lib.Model) -> dict[str, Any]:
  """The types that a layer computes in and stores its parameters in."""
  return {
    'dtype': jnp.dtype(config.dtype),
    'param_dtype': jnp.dtype(config.param_dtype),
  }


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
    'output_bias': config.attention_output_bias,
    'norm_eps': config.norm_eps,
    'init_scale': config.init_scale,
    'kernel': config.attention_kernel,
    'context_parallel': config.context_parallel,
    'num_memory': config.latent.memory,
  } | types_of(config)
