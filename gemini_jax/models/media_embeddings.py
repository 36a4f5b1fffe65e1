"""Media of sequences as soft tokens at their placeholders, and media written.

A kind with an autoencoder is read as its z and can be written: at a position
whose target is a placeholder a mixture says which z comes. Other kinds are
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
from gemini_jax.layers import linear, spectrogram
from gemini_jax.models import (
  autoencoder,
  fusion,
  latent,
  media_encoders,
  mixture,
  patch_positions,
)
from gemini_jax.parallel import pipeline


@flax.struct.dataclass
class MediaEmbeddings:
  """The media of sequences, each by its kind.

  Attributes:
    soft: their soft tokens, [B, M, N, D].
    counts: how many of the N are real, int32[B, M].
    z: of a kind that can be written, [B, M, N, Z].
    sums: by name, of the autoencoders' losses: [sum over media, media].
  """

  soft: dict[str, jax.Array]
  counts: dict[str, jax.Array]
  z: dict[str, jax.Array]
  sums: dict[str, jax.Array]


class MediaEmbedder(nn.Module):
  """Reads media, and tells how likely z of media are.

  Attributes:
    config: of the model.
    schedule: of the stages, where the mesh has some.
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

  def __call__(
    self, media: Mapping[str, batch_lib.Media], deterministic: bool = True
  ) -> MediaEmbeddings:
    """What the media of a batch are.

    With a stream of randomness `latent` and not deterministic, z of media is a
    draw of its posterior; or else the mean.
    """
    seen = MediaEmbeddings({}, {}, {}, {})
    for kind, own in media.items():
      shape = own.sizes.shape[:2]
      values_X, sizes_XA = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]), (own.values, own.sizes)
      )
      unfold = lambda x, shape=shape: x.reshape(*shape, *x.shape[1:])
      if kind in self.autoencoders:
        z, counts, losses = self.code(kind, values_X, sizes_XA, deterministic)
        soft = self.projectors[kind]('XNZ,ZD->XND', z)
        seen.z[kind] = unfold(z)
        for name, value in losses.items():
          seen.sums[name] = seen.sums.get(name, 0) + value
      else:
        if kind == 'audio':
          values_X = self.spectra(values_X, sizes_XA)
        read = self.video if kind == 'video' else self.encoders[kind]
        soft, counts = read(values_X, sizes_XA, deterministic)
      seen.soft[kind], seen.counts[kind] = unfold(soft), unfold(counts)
    return seen

  def scatter_soft_tokens(
    self, tokens_BT: jax.Array, seen: MediaEmbeddings
  ) -> jax.Array:
    """Soft tokens at the placeholders of sequences, 0 elsewhere, [B, T, D]."""
    config = self.config
    soft_BTD = jnp.zeros(
      (*tokens_BT.shape, config.width), jnp.dtype(config.dtype)
    )
    for kind, soft_BMND in seen.soft.items():
      there_BT = tokens_BT == config.placeholder(kind)
      found_BTD = align(there_BT, soft_BMND, seen.counts[kind])
      soft_BTD = jnp.where(there_BT[..., None], found_BTD, soft_BTD)
    return soft_BTD

  def embed_latents(self, kind: str, z_BTZ: jax.Array) -> jax.Array:
    """Soft tokens of z that were written, [B, T, D]."""
    return self.projectors[kind]('BTZ,ZD->BTD', z_BTZ)

  def decode_latents(
    self, kind: str, z_BNZ: jax.Array, sizes_B2: Any
  ) -> jax.Array:
    """Pictures, or log-mel spectrograms [B, F, mels, 1], of z."""
    return self.autoencoders[kind].decode(
      z_BNZ, grid(self.config, kind), sizes_B2
    )

  def density(self, kind: str, x_BTD: jax.Array) -> latent.Mixture:
    """Which z comes after each position."""
    return self.heads[kind](x_BTD)

  def spectra(self, values: jax.Array, sizes: jax.Array) -> jax.Array:
    """Log-mel spectrograms [X, F, mels] of sounds int16[X, N] of [X, 1]."""
    audio = self.config.audio
    return spectrogram.log_mel(
      values,
      sizes[:, 0],
      sample_rate=audio.sample_rate,
      window_samples=audio.window_samples,
      hop_samples=audio.hop_samples,
      num_mels=audio.num_mels,
      f_min=audio.f_min,
      f_max=audio.top,
    )

  def code(
    self,
    kind: str,
    values: jax.Array,
    sizes: jax.Array,
    deterministic: bool,
  ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Z of media [X, N, Z] in order, how many are real, and losses.

    The Transformer learns from z and does not change it.
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
    places = patch_positions.places_of(
      extents_X2, patch(config, kind), grid(config, kind)
    )
    model = self.autoencoders[kind]
    posterior = model.encode(x_XHWC, extents_X2)
    z = posterior.mean
    if self.has_rng('latent') and not deterministic:
      z = posterior.sample(self.make_rng('latent'))
    decoded = model.decode(z, grid(config, kind), extents_X2)
    means = autoencoder.losses(
      x_XHWC, decoded, posterior, patch(config, kind), extents_X2
    )
    num = jnp.sum(places.count_B > 0).astype(jnp.float32)
    losses = {
      name: jnp.stack([means[source] * num, num])
      for name, source in _LOSSES[kind].items()
    }
    columns = grid(config, kind)[1]
    at_XN = places.places_BNA[..., 0] * columns + places.places_BNA[..., 1]
    z = patch_positions.gather(jax.lax.stop_gradient(z), at_XN)
    return jnp.where(places.real[..., None], z, 0), places.count_B, losses

  def written_sums(
    self, batch: batch_lib.Batch, x_BTD: jax.Array, seen: MediaEmbeddings
  ) -> dict[str, jax.Array]:
    """Nats of z's numbers where a target is a placeholder: [sum, tokens]."""
    total = jnp.zeros(2)
    for kind, z_BMNZ in seen.z.items():
      there_BT = batch.targets == self.config.placeholder(kind)
      z_BTZ = align(there_BT, z_BMNZ, seen.counts[kind])
      nats_BT = -self.heads[kind](x_BTD).log_prob(z_BTZ) / z_BTZ.shape[-1]
      weights_BT = batch.weights * there_BT
      total += jnp.stack(
        [jnp.sum(jnp.where(weights_BT > 0, nats_BT, 0)), jnp.sum(weights_BT)]
      )
    return {'media_nll': total} if seen.z else {}


# Terms of the objective, by what an autoencoder calls them.
_LOSSES = {
  'image': {'reconstruction': 'l1', 'media_kl': 'kl', 'detail': 'edge'},
  'audio': {'reconstruction': 'l1', 'media_kl': 'kl', 'detail': 'spectral'},
}


def written(config: config_lib.Model) -> tuple[str, ...]:
  """The kinds that are read and written as z."""
  return tuple(kind for kind in config.kinds if config.writes(kind))


def reads_frames(config: config_lib.Model, kind: str) -> bool:
  """Whether the encoder of a kind reads the frames of videos."""
  return kind == 'image' and 'video' in config.kinds


def part(config: config_lib.Model, kind: str) -> Any:
  """The section of a kind that can be written."""
  return {'image': config.image, 'audio': config.audio}[kind]


def patch(config: config_lib.Model, kind: str) -> tuple[int, int]:
  """Rows and columns of a token."""
  if kind == 'image':
    return config.image.patch, config.image.patch
  return config.audio.patch, config.audio.num_mels


def grid(config: config_lib.Model, kind: str) -> tuple[int, int]:
  """Tokens of the canvas, or of the longest sound."""
  if kind == 'image':
    return config.image.grid
  return config.audio.num_frames // config.audio.patch, 1


def align(there_BT: jax.Array, x: jax.Array, counts_BM: jax.Array) -> jax.Array:
  """The k-th soft token of a row at its k-th placeholder, [B, T, ...].

  Args:
    there_BT: the placeholders.
    x: [B, M, N, ...], soft tokens of each medium.
    counts_BM: how many of the N are real.
  """
  B, M, N = x.shape[:3]
  k_BT = jnp.cumsum(there_BT, axis=1) - 1
  ends_BM = jnp.cumsum(counts_BM, axis=1)
  # The medium that a placeholder is of, and its place there.
  m_BT = jnp.sum(k_BT[..., None] >= ends_BM[:, None], axis=-1)
  m_BT = jnp.minimum(m_BT, M - 1)
  starts_BM = ends_BM - counts_BM
  at_BT = k_BT - jnp.take_along_axis(starts_BM, m_BT, axis=1) + m_BT * N
  at_BT = jnp.clip(at_BT, 0, M * N - 1)
  return patch_positions.gather(x.reshape(B, M * N, *x.shape[3:]), at_BT)
