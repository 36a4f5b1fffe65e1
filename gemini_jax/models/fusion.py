"""How media enter a sequence of tokens: scale, layers, a resampler.

B media, N soft tokens, K tokens of a resampler, D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import linear, matmul
from gemini_jax.models import transformer


def soft_scale(config: config_lib.Model) -> float:
  """Root mean square of a token's vector as it enters the stack, untrained.

  Soft tokens start with the same, so that neither dominates the other.
  """
  size = config.init_scale or config.width**-0.5
  return size * config.width**0.5 if config.scale_embeddings else size


def dense(config: config_lib.Model, **fields: Any) -> config_lib.Model:
  """The model's config without experts, windows, latent, contrast and media."""
  plain = {
    'architecture': 'decoder',
    'num_experts': 0,
    'expert_dim': None,
    'shared_expert_dim': 0,
    'attention_pattern': ('global',),
    'contrast_dim': 0,
    'latent': config_lib.Latent(),
    'image': config_lib.Image(),
    'audio': config_lib.Audio(),
    'video': config_lib.Video(),
    'series': config_lib.Series(),
    'num_numbers': 0,
  }
  return dataclasses.replace(config, **plain | fields)


def plain_sequence(real_BT: jax.Array) -> batch_lib.Sequence:
  """A sequence of one segment a row; its tokens are never read."""
  positions_BT = jnp.broadcast_to(jnp.arange(real_BT.shape[1]), real_BT.shape)
  return batch_lib.Sequence(
    positions_BT, positions_BT, real_BT.astype(jnp.int32)
  )


def whole_length() -> Any:
  """In this context no tensor is split along its length.

  The number of a medium's tokens may be odd. Attention may still split it.
  """
  rules = [rule for rule in nn.get_logical_axis_rules() if rule[0] != 'length']
  return nn.logical_axis_rules(rules)


class Resampler(nn.Module):
  """Reduces the tokens of a medium to a fixed number.

  Learned queries attend to each other and to the tokens (Perceiver, Jaegle
  et al. 2021; Flamingo, Alayrac et al. 2022; the layers are those of Q-Former,
  Li et al. 2023). They do not see the order of the tokens, so positions must
  have been added to these.

  Attributes:
    config: of the layers, which are dense.
    num_tokens: K.
    num_layers: of self-attention, cross-attention and feed-forward.
  """

  config: config_lib.Model
  num_tokens: int
  num_layers: int = 2

  @nn.compact
  def __call__(
    self, x_BND: jax.Array, real_BN: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """The queries after the last layer, normed: [B, K, D].

    Args:
      x_BND: tokens of the media.
      real_BN: bool, which tokens are read.
      deterministic: no dropout.
    """
    # Skipped, its layers would not read the medium at all.
    config = dense(
      self.config, architecture='encoder_decoder', stochastic_depth=0.0
    )
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    queries = matmul.param(
      self,
      'queries',
      nn.initializers.normal(config.init_scale or config.width**-0.5),
      (None, 'embed'),
      (self.num_tokens, config.width),
      types['param_dtype'],
    )
    queries_KD = matmul.to_array(queries, types['dtype'])
    shape = (x_BND.shape[0], *queries_KD.shape)
    x_BKD = jnp.broadcast_to(queries_KD, shape)
    reader = plain_sequence(jnp.ones(shape[:2], bool))
    view = transformer.View(masking.visible(reader, reader), None)
    context = transformer.Context(
      views={'global': view},
      positions_BT=reader.positions,
      cross_mask=masking.visible(reader, plain_sequence(real_BN)),
      memory_BSD=x_BND,
    )
    with whole_length():
      for i in range(self.num_layers):
        block = transformer.Block(config, decodes=True, name=f'layer_{i}')
        x_BKD, _, _ = block(x_BKD, view, context, None, deterministic)
    return linear.RMSNorm(config.norm_eps, dtype=types['dtype'], name='norm')(
      x_BKD
    )
