"""A forward pass over a batch, and the outputs of which losses are made.

B rows, T length, S encoder length, D width, Z numbers in z.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax.models import contrast, media_embeddings
from gemini_jax.models import latent as latent_lib


@flax.struct.dataclass
class ForwardOutput:
  """Outputs of a forward pass over a batch.

  Attributes:
    x_BTD: normed hidden states of the decoder after each token.
    aux: losses of the routers by name, means over tokens and layers.
    latent: distributions of z, where there is a latent.
    media: embeddings of the decoder's media, then those of the encoder's, if
      it reads a sequence of its own.
    densities: by kind, the distribution at each position of the next z of
      media, where the model writes them.
    pair_vectors: of inputs and targets, where they are compared.
  """

  x_BTD: jax.Array
  aux: dict[str, jax.Array]
  latent: latent_lib.LatentOutput | None = None
  media: tuple[media_embeddings.MediaEmbeddings, ...] = ()
  densities: Mapping[str, latent_lib.Mixture] = flax.struct.field(
    default_factory=dict
  )
  pair_vectors: contrast.PairVectors | None = None


def run(
  model: Any,
  batch: batch_lib.Batch,
  deterministic: bool,
  word_dropout: float = 0.0,
) -> ForwardOutput:
  """Hidden states after each token of a batch, and other outputs.

  With a latent, z is a draw of its posterior where the random stream `latent`
  is given, else its mean.

  Args:
    model: a bound Gemini.
    batch: sequences to read.
    deterministic: no dropout.
    word_dropout: probability that the embedding of a token of the decoder is
      0, the first ones excepted.
  """
  inputs, memory_BSD, z_BZ = model.encoder_inputs(batch), None, None
  # A latent without inputs reads the targets.
  decoder_media = model.encode_media(batch.decoder.media, deterministic)
  media, encoder_media = [decoder_media], decoder_media
  if batch.encoder is not None:
    encoder_media = model.encode_media(batch.encoder.media, deterministic)
    media.append(encoder_media)
  aux_parts = []
  if inputs is not None:
    soft_BSD = model.scatter_soft_tokens(inputs, encoder_media)
    memory_BSD, aux = model.encode(inputs, deterministic, soft_BSD)
    aux_parts.append(aux)
  latent = None
  if model.config.latent.dim:
    assert memory_BSD is not None and inputs is not None
    posterior, prior, multiplier = model.latent(memory_BSD, inputs)
    z_BZ = posterior.mean
    if model.has_rng('latent'):
      z_BZ = posterior.sample(model.make_rng('latent'))
    latent = latent_lib.LatentOutput(posterior, prior, z_BZ, multiplier)
  hidden_BT = None
  if word_dropout and not deterministic:
    hidden_BT = jax.random.bernoulli(
      model.make_rng('dropout'), word_dropout, batch.targets.shape
    ) & (batch.decoder.positions > 0)
  x_BTD, _, aux = model.decode_hidden(
    batch.decoder,
    memory_BSD=memory_BSD if model.config.cross else None,
    memory=batch.encoder,
    prefix_BT=batch.prefix,
    latent_BZ=z_BZ,
    hidden_BT=hidden_BT,
    soft_BTD=model.scatter_soft_tokens(batch.decoder, decoder_media),
    deterministic=deterministic,
  )
  aux_parts.insert(0, aux)
  vectors = None
  if model.config.contrast_dim:
    assert memory_BSD is not None and inputs is not None
    targets = dataclasses.replace(batch.decoder, tokens=batch.targets)
    soft_BTD = model.scatter_soft_tokens(targets, decoder_media)
    targets_BTD, aux = model.encode(targets, deterministic, soft_BTD)
    aux_parts.append(aux)
    vectors = model.contrast.compare(memory_BSD, inputs, targets_BTD, targets)
  densities = {}
  if decoder_media is not None:
    densities = model.perception.densities(x_BTD, decoder_media)
  # The mean over all layers.
  mean = lambda *parts: jnp.mean(jnp.concatenate(parts))
  return ForwardOutput(
    x_BTD=x_BTD,
    aux=jax.tree.map(mean, *aux_parts),
    latent=latent,
    media=tuple(item for item in media if item is not None),
    densities=densities,
    pair_vectors=vectors,
  )
