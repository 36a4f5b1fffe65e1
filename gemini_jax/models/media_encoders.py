"""Encoders of pictures, sounds and videos: media in, soft tokens out.

B media, H x W pixels of C channels, F frames, M bands of the mel scale, N
tokens of the canvas or of the longest sound, R dims of a size, D width, K
tokens of a frame.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd

from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import embedding, linear
from gemini_jax.models import (
  fusion,
  patch_positions,
  stack,
  stems,
  towers,
  transformer,
)
from gemini_jax.parallel import pipeline

# Ratio of the longest wavelength of positions to the shortest: a picture has
# few rows (Heo et al. 2024), a sound many tokens.
_BASE = {'image': 100.0, 'audio': 10_000.0}


class Encoder(nn.Module):
  """Encodes media of one kind to soft tokens, scaled like tokens' vectors.

  A stem, then layers that attend to all real tokens, then a resampler; layers
  and resampler are left out unless the config has them.

  Attributes:
    config: of the model; its `image` or `audio` configures this encoder.
    kind: of the media. The frames of videos are pictures: see Video.
    schedule: how a batch passes the pipeline's stages, if the mesh has some.
  """

  config: config_lib.Model
  kind: Literal['image', 'audio']
  schedule: pipeline.Schedule = pipeline.Schedule()

  @nn.compact
  def __call__(
    self, values: jax.Array, sizes_BR: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """Soft tokens [B, N, D], and how many of them are real, [B].

    The real ones come first, the rest is zeros. Their number is
    `config.tokens_of`.

    Args:
      values: pictures [B, H, W, C] from 0 to 255, on a canvas of any size; or
        log-mel spectrograms [B, F, M].
      sizes_BR: int32, (height, width) or (samples,); 0 where there is no
        medium.
      deterministic: no dropout.
    """
    config = self.config
    part = config.image if self.kind == 'image' else config.audio
    soft_scale = fusion.soft_scale(config)
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    # Whether the stem's output passes through further layers.
    refined = bool(part.num_layers or part.num_tokens)
    scale = 1.0 if refined else soft_scale
    is_tower = part.tower.width > 0
    if is_tower:
      tower = towers.Tower(config, self.kind, self.schedule, name='tower')
      x_BND, positions = tower(values, sizes_BR, deterministic)
    else:
      x_BND, positions = self.stem(scale, types)(values, sizes_BR)
    x_BND = spmd.with_logical_constraint(x_BND, ('batch', None, None))

    def add_positions(x_BND):
      waves_BND = embedding.sinusoids(
        positions.coordinates_BNA, config.width, _BASE[self.kind]
      )
      return x_BND + (scale * waves_BND).astype(x_BND.dtype)

    rotary = part.num_layers > 0 and (
      self.kind == 'audio' or config.image.position == 'rotary'
    )
    if self.kind == 'image' and not rotary and not is_tower:
      x_BND = add_positions(x_BND)
    if part.num_layers and not is_tower:
      x_BND = self.trunk(x_BND, positions, rotary, deterministic)
      x_BND = linear.RMSNorm(
        config.norm_eps, dtype=types['dtype'], name='norm'
      )(x_BND)
    real_BN, count_B = positions.real, positions.count_B
    if part.num_tokens:
      # A resampler does not see the order of its inputs.
      if not is_tower and (self.kind == 'audio' or rotary):
        x_BND = add_positions(x_BND)
      x_BND = fusion.Resampler(config, part.num_tokens, name='resampler')(
        x_BND, real_BN, deterministic
      )
      count_B = jnp.where(count_B > 0, part.num_tokens, 0)
      real_BN = jnp.broadcast_to(count_B[:, None] > 0, x_BND.shape[:2])
    if refined:
      x_BND = linear.Einsum(
        (x_BND.shape[-1], config.width),
        (None, 'embed'),
        init_scale=soft_scale * x_BND.shape[-1] ** -0.5,
        **types,
        name='projector',
      )('BND,DE->BNE', x_BND)
    return jnp.where(real_BN[..., None], x_BND, 0), count_B

  def stem(self, scale: float, types: dict[str, Any]) -> nn.Module:
    """The stem of this kind of media."""
    config = self.config
    if self.kind == 'image':
      return stems.ImageStem(
        config.image.patch,
        config.width,
        config.image.num_blocks,
        scale=scale,
        **types,
        name='stem',
      )
    return stems.AudioStem(
      config.audio.patch,
      config.audio.hop_samples,
      config.width,
      scale=scale,
      **types,
      name='stem',
    )

  def trunk(
    self,
    x_BND: jax.Array,
    positions: patch_positions.Positions,
    rotary: bool,
    deterministic: bool,
  ) -> jax.Array:
    """Applies the encoder's layers to the stem's tokens."""
    part = self.config.image if self.kind == 'image' else self.config.audio
    config = fusion.dense(self.config)
    angles = None
    if rotary:
      angles = embedding.rotation(
        embedding.place_angles(
          positions.coordinates_BNA, config.head_width // 2, _BASE[self.kind]
        )
      )
    sequence = fusion.plain_sequence(positions.real)
    view = transformer.View(masking.visible(sequence, sequence), angles)
    context = transformer.Context(
      views={'global': view},
      positions_BT=sequence.positions,
      real_BT=positions.real,
    )
    layers = stack.Stack(
      config, part.num_layers, schedule=self.schedule, name='layers'
    )
    with fusion.whole_length():
      x_BND, _, _ = layers(x_BND, context, deterministic=deterministic)
    return x_BND


class Video(nn.Module):
  """Encodes videos to the soft tokens of their frames plus their times.

  Attributes:
    config: of the model.
    picture: the Encoder of pictures, which also reads the frames.
  """

  config: config_lib.Model
  picture: nn.Module

  @nn.compact
  def __call__(
    self, values: jax.Array, sizes_B3: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """Soft tokens [B, F * K, D], frame by frame, and how many are real, [B].

    Args:
      values: frames [B, F, H, W, C] from 0 to 255.
      sizes_B3: int32, (frames, height, width).
      deterministic: no dropout.
    """
    config = self.config
    num, patch = config.video.frame_tokens, config.image.patch
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    B, F, H, W = values.shape[:4]
    config_lib.check(
      config.video.num_frames >= F,
      f'model.video.num_frames={config.video.num_frames} is less than the {F} '
      'frames of a video',
    )
    frames_F = jnp.arange(F)
    is_frame_BF = frames_F[None] < sizes_B3[:, :1]
    sizes_BF2 = jnp.where(is_frame_BF[..., None], sizes_B3[:, None, 1:], 0)
    # The encoder reads the frames of all videos as one batch of pictures.
    sizes_X2 = sizes_BF2.reshape(-1, 2)
    x_XND, count_X = self.picture(
      values.reshape(-1, *values.shape[2:]), sizes_X2, deterministic
    )
    if num:
      positions = patch_positions.of_sizes(
        sizes_X2, (patch, patch), (H // patch, W // patch)
      )
      if config.image.num_tokens:
        positions = patch_positions.of_sizes(
          count_X[:, None], (1,), (x_XND.shape[1],)
        )
      x_XND = patch_positions.pool_rectangles(x_XND, positions, num)
      # A mean is smaller than what it is of; scaled like tokens' vectors again.
      x_XND = linear.RMSNorm(
        config.norm_eps, dtype=types['dtype'], name='norm'
      )(x_XND)
      x_XND = x_XND * jnp.asarray(fusion.soft_scale(config), x_XND.dtype)
      count_X = jnp.where(count_X > 0, num, 0)
    time_FD = embedding.Embedding(
      config.video.num_frames,
      config.width,
      axes=(None, 'embed'),
      init_scale=fusion.soft_scale(config),
      **types,
      name='time',
    )(frames_F)
    N, D = x_XND.shape[1:]
    x_BFND = x_XND.reshape(B, F, N, D) + time_FD[None, :, None]
    # All frames of a video have the same number of tokens.
    each_B = count_X.reshape(B, F)[:, 0]
    count_B = each_B * jnp.minimum(sizes_B3[:, 0], F)
    slots_B = jnp.maximum(each_B, 1)[:, None]
    slots_BN = jnp.broadcast_to(jnp.arange(F * N), (B, F * N))
    real_BN = slots_BN < count_B[:, None]
    at_BN = slots_BN // slots_B * N + slots_BN % slots_B
    x_BND = patch_positions.take_rows(
      x_BFND.reshape(B, F * N, D), jnp.where(real_BN, at_BN, 0)
    )
    return jnp.where(real_BN[..., None], x_BND, 0), count_B
