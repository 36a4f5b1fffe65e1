"""What a forward pass gives, of which `objectives` makes losses.

B rows, T length, D width.
"""

from collections.abc import Mapping

import flax.struct
import jax

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
