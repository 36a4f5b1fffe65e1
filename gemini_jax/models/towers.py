"""Encoders as others train them: ViT, SigLIP and Whisper.

B media, N tokens of the canvas or of the longest sound, R dims of a size, D
width of the tower.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import embedding
from gemini_jax.models import (
  fusion,
  patch_positions,
  stack,
  stems,
  transformer,
)
from gemini_jax.parallel import pipeline

_POSITION_SCALE = 0.02


class Tower(nn.Module):
  """A stem, learned positions, layers with LayerNorms and biases, a norm.

  Attributes:
    config: of the model; the `tower` of its `image` or `audio` configures this.
    kind: of the media.
    schedule: how a batch passes the pipeline's stages, if the mesh has some.
  """

  config: config_lib.Model
  kind: Literal['image', 'audio']
  schedule: pipeline.Schedule = pipeline.Schedule()

  @nn.compact
  def __call__(
    self, values: jax.Array, sizes_BR: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, patch_positions.Positions]:
    """Hidden states of the patches or frames, [B, N, D], and their positions.

    Args:
      values: as of media_encoders.Encoder; spectrograms are Whisper's.
      sizes_BR: int32, (height, width) or (samples,); 0: there is no medium.
      deterministic: no dropout.
    """
    image, audio = self.config.image, self.config.audio
    part = image if self.kind == 'image' else audio
    config, first = (
      layers_config(self.config, self.kind),
      part.tower.class_token,
    )
    types: dict[str, Any] = transformer.types_of(config)
    if self.kind == 'image':
      stem = stems.ImageStem(image.patch, config.width, **types, name='stem')
      num_positions = image.grid[0] * image.grid[1]
    else:
      stem = stems.WhisperStem(
        audio.hop_samples, config.width, **types, name='stem'
      )
      num_positions = audio.num_frames // audio.patch
    x_BND, positions = stem(values, sizes_BR)
    real_BN = positions.real
    if self.kind == 'image':
      row_BN, column_BN = jnp.unstack(positions.coordinates_BNA, axis=-1)
      place_BN = row_BN * image.grid[1] + column_BN
    else:
      # Silence after a sound is heard too.
      place_BN = jnp.broadcast_to(jnp.arange(x_BND.shape[1]), real_BN.shape)
      real_BN = jnp.broadcast_to(real_BN[:, :1], real_BN.shape)
    table = embedding.Embedding(
      num_positions + first,
      config.width,
      axes=(None, 'embed'),
      init_scale=_POSITION_SCALE,
      **types,
      name='position',
    )
    x_BND = x_BND + table(place_BN + first)
    if first:
      # The vector of its position is that of the class token, too.
      class_B1D = table(jnp.zeros_like(place_BN[:, :1]))
      x_BND = jnp.concatenate([class_B1D, x_BND], axis=1)
      real_BN = jnp.concatenate([real_BN[:, :1], real_BN], axis=1)
    sequence = fusion.plain_sequence(real_BN)
    view = transformer.View(masking.visible(sequence, sequence), None)
    context = transformer.Context(
      views={'global': view},
      positions_BT=sequence.positions,
      real_BT=real_BN,
    )
    layers = stack.Stack(
      config, part.num_layers, schedule=self.schedule, name='layers'
    )
    with fusion.whole_length():
      x_BND, _, _ = layers(x_BND, context, deterministic=deterministic)
    x_BND = transformer.make_norm(config, 'norm')(x_BND)
    return x_BND[:, first:], positions


def layers_config(
  config: config_lib.Model, kind: Literal['image', 'audio']
) -> config_lib.Model:
  """The config of the layers of a tower."""
  tower = (config.image if kind == 'image' else config.audio).tower
  return fusion.dense(
    config,
    width=tower.width,
    num_heads=tower.num_heads,
    num_kv_heads=None,
    head_dim=None,
    mlp_dim=tower.mlp_dim,
    activation=tower.activation,
    gated=False,
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    position='none',
    norm='pre',
    layer_norm=True,
    norm_eps=tower.norm_eps,
    qk_norm=False,
    query_scale=None,
    attention_softcap=0.0,
  )
