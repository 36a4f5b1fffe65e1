"""Media as soft tokens of a sequence, and distributions of media to write.

A kind with an autoencoder is read as the autoencoder's z, and can be written:
at each position a mixture is the distribution of the next z. Other kinds are
read by an encoder.

B batch, T length, M media of a row at most, N soft tokens of the largest, Z
numbers in z, D width. X media, one after the other.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.layers import linear, spectrogram, whisper_features
from gemini_jax.models import (
  autoencoder,
  fusion,
  latent,
  media_encoders,
  mixture,
  numeric_embeddings,
  patch_positions,
)
from gemini_jax.parallel import pipeline


@flax.struct.dataclass
class Reconstruction:
  """Media of one kind, and what their autoencoder makes of them.

  Attributes:
    x_XHWC: pictures from -1 to 1, or spectrograms of one channel.
    decoded_XHWC: from a draw of z, or its mean.
    posterior: of every token of the canvas, [X, N, Z].
    sizes_X2: real rows and columns; 0 where there is no medium.
  """

  x_XHWC: jax.Array
  decoded_XHWC: jax.Array
  posterior: latent.Normal
  sizes_X2: jax.Array


@flax.struct.dataclass
class MediaEmbeddings:
  """Embeddings of the media of sequences, by kind.

  Attributes:
    soft_tokens: [B, M, N, D].
    counts: how many of the N are real, int32[B, M].
    z: of kinds with an autoencoder, [B, M, N, Z].
    reconstructions: of kinds with an autoencoder.
  """

  soft_tokens: dict[str, jax.Array]
  counts: dict[str, jax.Array]
  z: dict[str, jax.Array]
  reconstructions: dict[str, Reconstruction]


class MediaEmbedder(nn.Module):
  """Encoders and autoencoders of media, and heads for z of written media.

  Attributes:
    config: of the model.
    schedule: how a batch passes the pipeline's stages, if the mesh has some.
  """

  config: config_lib.Model
  schedule: pipeline.Schedule = pipeline.Schedule()

  def setup(self):
    """The parts of each kind."""
    config = self.config
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    self.autoencoders = {
      kind: autoencoder.Autoencoder(
        part(config, kind).autoencoder,
        patch(config, kind),
        config.image.channels if kind == 'image' else 1,
        **types,
      )
      for kind in written(config)
    }
    self.projectors = {
      kind: linear.Einsum(
        (part(config, kind).autoencoder.dim, config.width),
        (None, 'embed'),
        use_bias=True,
        init_scale=fusion.soft_scale(config)
        * part(config, kind).autoencoder.dim ** -0.5,
        **types,
      )
      for kind in written(config)
    }
    self.heads = {
      kind: mixture.MixtureHead(
        part(config, kind).autoencoder.num_components,
        part(config, kind).autoencoder.dim,
        types['param_dtype'],
      )
      for kind in written(config)
    }
    self.encoders = {
      kind: media_encoders.Encoder(config, kind, self.schedule)
      for kind in ('image', 'audio')
      if kind in config.kinds
      and (kind not in self.autoencoders or reads_frames(config, kind))
    }
    if 'video' in config.kinds:
      self.video = media_encoders.Video(config, self.encoders['image'])
    if 'number' in config.kinds:
      self.number = numeric_embeddings.NumberEmbedder(config)
    if 'series' in config.kinds:
      self.series = numeric_embeddings.SeriesEmbedder(config)

  def __call__(
    self, media: Mapping[str, batch_lib.Media], deterministic: bool = True
  ) -> MediaEmbeddings:
    """Embeddings of the media of a batch.

    If a random stream `latent` is given and `deterministic` is false, z is a
    draw of its posterior, else the mean.
    """
    result = MediaEmbeddings({}, {}, {}, {})
    for kind, medium in media.items():
      shape = medium.sizes.shape[:2]
      values_X, sizes_XA = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (medium.values, medium.sizes)
      )
      unfold = lambda x, shape=shape: x.reshape(*shape, *x.shape[1:])
      if kind in self.autoencoders:
        z, counts, reconstruction = self.autoencode(
          kind, values_X, sizes_XA, deterministic
        )
        tokens = self.projectors[kind]('XNZ,ZD->XND', z)
        result.z[kind] = unfold(z)
        result.reconstructions[kind] = reconstruction
      else:
        if kind == 'audio':
          values_X = self.spectra(values_X, sizes_XA)
        encoder = self.encoders.get(kind) or getattr(self, kind)
        tokens, counts = encoder(values_X, sizes_XA, deterministic)
      result.soft_tokens[kind] = unfold(tokens)
      result.counts[kind] = unfold(counts)
    return result

  def scatter_soft_tokens(
    self, tokens_BT: jax.Array, media: MediaEmbeddings
  ) -> jax.Array:
    """Soft tokens at the placeholders of sequences, 0 elsewhere, [B, T, D]."""
    config = self.config
    soft_BTD = jnp.zeros(
      (*tokens_BT.shape, config.width), jnp.dtype(config.dtype)
    )
    for kind, tokens_BMND in media.soft_tokens.items():
      is_kind_BT = tokens_BT == config.placeholder(kind)
      kind_BTD = align(is_kind_BT, tokens_BMND, media.counts[kind])
      soft_BTD = jnp.where(is_kind_BT[..., None], kind_BTD, soft_BTD)
    return soft_BTD

  def embed_latents(self, kind: str, z_BTZ: jax.Array) -> jax.Array:
    """Soft tokens of z, [B, T, D]."""
    return self.projectors[kind]('BTZ,ZD->BTD', z_BTZ)

  def decode_latents(
    self, kind: str, z_BNZ: jax.Array, sizes_B2: Any
  ) -> jax.Array:
    """Pictures [B, H, W, C], or log-mel spectrograms [B, F, mels, 1], of z."""
    return self.autoencoders[kind].decode(
      z_BNZ, grid(self.config, kind), sizes_B2
    )

  def density(self, kind: str, x_BTD: jax.Array) -> latent.Mixture:
    """Distribution of the z that follows each position."""
    return self.heads[kind](x_BTD)

  def densities(
    self, x_BTD: jax.Array, media: MediaEmbeddings
  ) -> dict[str, latent.Mixture]:
    """`density` of each kind of `media` that can be written."""
    return {kind: self.density(kind, x_BTD) for kind in media.z}

  def spectra(self, values: jax.Array, sizes: jax.Array) -> jax.Array:
    """Log-mel spectrograms [X, F, mels] of sounds int16[X, N] of [X, 1]."""
    audio = self.config.audio
    kind = whisper_features if audio.tower.width else spectrogram
    return kind.log_mel(
      values,
      sizes[:, 0],
      sample_rate=audio.sample_rate,
      window_samples=audio.window_samples,
      hop_samples=audio.hop_samples,
      num_mels=audio.num_mels,
      f_min=audio.f_min,
      f_max=audio.top,
    )

  def autoencode(
    self,
    kind: str,
    values: jax.Array,
    sizes: jax.Array,
    deterministic: bool,
  ) -> tuple[jax.Array, jax.Array, Reconstruction]:
    """Z of media [X, N, Z], the real ones first, their number, and the rest.

    Z has no gradient: the Transformer does not train the autoencoder.
    """
    config = self.config
    if kind == 'image':
      x_XHWC = values.astype(jnp.float32) / 127.5 - 1
      extents_X2 = sizes
    else:
      x_XHWC = self.spectra(values, sizes)[..., None]
      frames_X = -(-sizes[:, 0] // config.audio.hop_samples)
      bands_X = jnp.where(frames_X > 0, config.audio.num_mels, 0)
      extents_X2 = jnp.stack([frames_X, bands_X], axis=-1)
    positions = patch_positions.of_sizes(
      extents_X2, patch(config, kind), grid(config, kind)
    )
    model = self.autoencoders[kind]
    posterior = model.encode(x_XHWC, extents_X2)
    z = posterior.mean
    if self.has_rng('latent') and not deterministic:
      z = posterior.sample(self.make_rng('latent'))
    decoded = model.decode(z, grid(config, kind), extents_X2)
    columns = grid(config, kind)[1]
    at_XN = (
      positions.coordinates_BNA[..., 0] * columns
      + positions.coordinates_BNA[..., 1]
    )
    z = patch_positions.take_rows(jax.lax.stop_gradient(z), at_XN)
    return (
      jnp.where(positions.real[..., None], z, 0),
      positions.count_B,
      Reconstruction(x_XHWC, decoded, posterior, extents_X2),
    )


def written(config: config_lib.Model) -> tuple[str, ...]:
  """The kinds that the model can write."""
  return tuple(kind for kind in config.kinds if config.writes(kind))


def reads_frames(config: config_lib.Model, kind: str) -> bool:
  """Whether the encoder of this kind also reads the frames of videos."""
  return kind == 'image' and 'video' in config.kinds


def part(config: config_lib.Model, kind: str) -> Any:
  """The config of a kind that can be written."""
  return {'image': config.image, 'audio': config.audio}[kind]


def patch(config: config_lib.Model, kind: str) -> tuple[int, int]:
  """Rows and columns of a picture or spectrogram that make one token."""
  if kind == 'image':
    return config.image.patch, config.image.patch
  return config.audio.patch, config.audio.num_mels


def grid(config: config_lib.Model, kind: str) -> tuple[int, int]:
  """Tokens of the canvas, or of the longest sound."""
  if kind == 'image':
    return config.image.grid
  return config.audio.num_frames // config.audio.patch, 1


def align(
  is_placeholder_BT: jax.Array, x: jax.Array, counts_BM: jax.Array
) -> jax.Array:
  """The k-th soft token of a row at its k-th placeholder, [B, T, ...].

  Args:
    is_placeholder_BT: bool.
    x: [B, M, N, ...], soft tokens of each medium.
    counts_BM: how many of the N are real.
  """
  B, M, N = x.shape[:3]
  k_BT = jnp.cumsum(is_placeholder_BT, axis=1) - 1
  ends_BM = jnp.cumsum(counts_BM, axis=1)
  # Which medium a placeholder belongs to, and the index of its token there.
  m_BT = jnp.sum(k_BT[..., None] >= ends_BM[:, None], axis=-1)
  m_BT = jnp.minimum(m_BT, M - 1)
  starts_BM = ends_BM - counts_BM
  at_BT = k_BT - jnp.take_along_axis(starts_BM, m_BT, axis=1) + m_BT * N
  at_BT = jnp.clip(at_BT, 0, M * N - 1)
  return patch_positions.take_rows(x.reshape(B, M * N, *x.shape[3:]), at_BT)
