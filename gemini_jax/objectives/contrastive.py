"""Symmetric InfoNCE of the vectors of inputs and targets.

The two vectors of a pair attract each other and repel those of all other pairs
of the batch.

B pairs, D width of the vectors, P and Q the pairs of rows and of columns.
"""

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import contrast as contrast_lib
from gemini_jax.models import forward_pass
from gemini_jax.objectives import terms as terms_lib

# Score of a pair that is left out: its exp is 0, and there is no inf - inf.
_LEFT_OUT = -1e30


@flax.struct.dataclass
class ContrastiveLoss:
  """Means over the pairs that count, and over both directions.

  Attributes:
    loss: -log p(the other of the pair), nats; log of their number by chance.
    accuracy: share whose other is nearer than every negative.
  """

  loss: jax.Array
  accuracy: jax.Array


def terms(
  config: config_lib.Model,
  output: forward_pass.ForwardOutput,
  batch: batch_lib.Batch,
  num_tokens: jax.Array,
  train: config_lib.Train | None,
) -> terms_lib.Terms:
  """`contrastive`, where the model compares vectors; also the accuracy."""
  del num_tokens, train
  vectors = output.pair_vectors
  if vectors is None:
    return terms_lib.Terms()
  inputs_BS, targets_BS = contrast_lib.pair_tokens(batch)
  same_BB = contrast_lib.alike(
    inputs_BS,
    targets_BS,
    tuple(config.placeholder(kind) for kind in config.kinds),
  )
  # Inputs that were left out are one end token, and tell nothing.
  has_inputs_B = jnp.sum(inputs_BS > 0, axis=1) > 1
  weights_B = terms_lib.num_examples(batch) * has_inputs_B
  result = info_nce(
    vectors.inputs_BC,
    vectors.targets_BC,
    vectors.scale,
    same_BB=same_BB,
    weights_B=weights_B,
  )
  count = jnp.sum(weights_B)
  return terms_lib.Terms(
    losses={'contrastive': result.loss},
    sums={
      'contrastive': jnp.stack([result.loss * count, count]),
      'contrastive_accuracy': jnp.stack([result.accuracy * count, count]),
    },
  )


def info_nce(
  one_BD: jax.Array,
  other_BD: jax.Array,
  scale: jax.Array,
  *,
  same_BB: jax.Array | None = None,
  weights_B: jax.Array | None = None,
) -> ContrastiveLoss:
  """Symmetric InfoNCE (van den Oord et al. 2018; CLIP), in float32.

  Args:
    one_BD: one vector of each pair; cosines are compared.
    other_BD: the other vector of each pair, in the same order.
    scale: of the cosines, float32.
    same_BB: bool, pairs of the same content, as two with one caption: none is a
      negative of the other. None: all differ.
    weights_B: 0 leaves a pair out, also as a negative. None: all count.
  """
  count = one_BD.shape[0]
  pair_PQ = jnp.eye(count, dtype=bool)
  same_PQ = pair_PQ if same_BB is None else same_BB | pair_PQ
  if weights_B is None:
    weights_B = jnp.ones(count, jnp.float32)
  one_BD, other_BD = _unit(one_BD), _unit(other_BD)
  scores_PQ = scale * jnp.einsum(
    'PD,QD->PQ',
    one_BD,
    other_BD,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  pair_B = jnp.diagonal(scores_PQ)
  total = jnp.maximum(jnp.sum(weights_B), 1e-9)
  loss = accuracy = 0.0
  for scores, same in ((scores_PQ, same_PQ), (scores_PQ.T, same_PQ.T)):
    negatives = ~same & (weights_B > 0)[None]
    others = jnp.where(negatives, scores, _LEFT_OUT)
    loss_B = (
      jax.nn.logsumexp(jnp.where(pair_PQ, scores, others), axis=1) - pair_B
    )
    right_B = pair_B > jnp.max(others, axis=1)
    loss += jnp.sum(weights_B * loss_B) / total / 2
    accuracy += jnp.sum(weights_B * right_B) / total / 2
  return ContrastiveLoss(loss, accuracy)


def _unit(x_BD: jax.Array) -> jax.Array:
  """Divided by its length; the gradient is finite at 0."""
  x_BD = x_BD.astype(jnp.float32)
  squares_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
  return x_BD * jax.lax.rsqrt(jnp.maximum(squares_B1, 1e-24))
