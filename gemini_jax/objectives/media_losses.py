"""Losses of media: of their autoencoders, and of z that the model writes.

B batch, T length, H height, W width, C channels, N tokens, Z numbers in the z
of one; X media, one after the other.
"""

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.layers import convolution
from gemini_jax.models import forward_pass, latent, media_embeddings
from gemini_jax.objectives import terms as terms_lib

# Which loss of an autoencoder each weight is of.
_LOSSES = {
  'image': {'reconstruction': 'l1', 'media_kl': 'kl', 'detail': 'edge'},
  'audio': {'reconstruction': 'l1', 'media_kl': 'kl', 'detail': 'spectral'},
}


def terms(
  config: config_lib.Model,
  output: forward_pass.ForwardOutput,
  batch: batch_lib.Batch,
  num_tokens: jax.Array,
  train: config_lib.Train | None,
) -> terms_lib.Terms:
  """`media_nll` of written media, and the losses of all media's autoencoders.

  The mean of `media_nll` is over tokens of media, that of the others over
  media.
  """
  del train
  sums = {}
  if output.densities:
    sums['media_nll'] = written_nll(config, output, batch)
  for media in output.media:
    for name, total in autoencoder_sums(config, media).items():
      sums[name] = sums.get(name, 0) + total
  losses = {name: total[0] / num_tokens for name, total in sums.items()}
  return terms_lib.Terms(losses, sums)


def written_nll(
  config: config_lib.Model,
  output: forward_pass.ForwardOutput,
  batch: batch_lib.Batch,
) -> jax.Array:
  """Nats of z's numbers where a target is a placeholder: [sum, tokens]."""
  written, total = output.media[0], jnp.zeros(2)
  for kind, density in output.densities.items():
    is_media_BT = batch.targets == config.placeholder(kind)
    z_BTZ = media_embeddings.align(
      is_media_BT, written.z[kind], written.counts[kind]
    )
    nats_BT = -density.log_prob(z_BTZ) / z_BTZ.shape[-1]
    weights_BT = batch.weights * is_media_BT
    total += jnp.stack(
      [jnp.sum(jnp.where(weights_BT > 0, nats_BT, 0)), jnp.sum(weights_BT)]
    )
  return total


def autoencoder_sums(
  config: config_lib.Model, media: media_embeddings.MediaEmbeddings
) -> dict[str, jax.Array]:
  """By weight, a loss of the autoencoders: [sum over media, media]."""
  sums = {}
  for kind, made in media.reconstructions.items():
    means = autoencoder_losses(
      made.x_XHWC,
      made.decoded_XHWC,
      made.posterior,
      media_embeddings.patch(config, kind),
      made.sizes_X2,
    )
    num = jnp.sum(media.counts[kind] > 0).astype(jnp.float32)
    for name, source in _LOSSES[kind].items():
      total = jnp.stack([means[source] * num, num])
      sums[name] = sums.get(name, 0) + total
  return sums


def autoencoder_losses(
  x_BHWC: jax.Array,
  decoded_BHWC: jax.Array,
  posterior: latent.Normal,
  patch: tuple[int, int],
  sizes_B2: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Means over what is real; 0 of a batch where nothing is.

  `l1` a number of the picture; `kl`, to a standard normal, nats a token;
  `edge`, the L1 of differences of neighbours, for pictures (Mathieu et al.
  2016); `spectral`, the spectral convergence, for log-mel spectrograms
  (Arik et al. 2018): the error's norm over the sound's, of exp(x), in which
  loud parts count more.

  Args:
    x_BHWC: the pictures.
    decoded_BHWC: what the decoder made of their z.
    posterior: of [B, N, Z].
    patch: rows and columns of a token.
    sizes_B2: real rows and columns; 0: no picture; None: all is real.
  """
  x_BHWC, decoded_BHWC = (
    part.astype(jnp.float32) for part in (x_BHWC, decoded_BHWC)
  )
  B = x_BHWC.shape[0]
  extent = convolution.Extent(x_BHWC.shape[:3], sizes_B2)
  gap_BHWC = decoded_BHWC - x_BHWC
  real_BHWC = jnp.broadcast_to(extent.mask, gap_BHWC.shape)
  real_BN1 = jnp.broadcast_to(
    extent.after(patch).mask, (*extent.after(patch).shape, 1)
  ).reshape(B, -1, 1)

  def edge(axis):
    # The later of two neighbours is real only if both are.
    later = jax.lax.slice_in_dim(real_BHWC, 1, None, axis=axis)
    return _mean(jnp.abs(jnp.diff(gap_BHWC, axis=axis)), later)

  divergence_BNZ = posterior.divergence()
  count = jnp.sum(real_BN1)
  return {
    'l1': _mean(jnp.abs(gap_BHWC), real_BHWC),
    'kl': jnp.sum(divergence_BNZ * real_BN1) / jnp.maximum(count, 1),
    'edge': (edge(1) + edge(2)) / 2,
    'spectral': _spectral_convergence(x_BHWC, decoded_BHWC, real_BHWC),
  }


def _mean(values: jax.Array, real: jax.Array) -> jax.Array:
  return jnp.sum(values * real) / jnp.maximum(jnp.sum(real), 1)


def _spectral_convergence(
  x_BHWC: jax.Array, decoded_BHWC: jax.Array, real_BHWC: jax.Array
) -> jax.Array:
  # An untrained decoder may give any number.
  true, made = (jnp.exp(jnp.clip(x, -8, 8)) for x in (x_BHWC, decoded_BHWC))
  norms_B = (
    # The gradient of a root is infinite at 0.
    jnp.sqrt(jnp.sum(jnp.square(x) * real_BHWC, axis=(1, 2, 3)) + 1e-6)
    for x in (made - true, true)
  )
  real_B = jnp.max(real_BHWC, axis=(1, 2, 3))
  return _mean(jnp.divide(*norms_B), real_B)
