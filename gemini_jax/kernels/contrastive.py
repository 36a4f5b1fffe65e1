"""Pairs of vectors drawn together, against all others of the batch.

B pairs, D width of the vectors, P and Q the pairs of rows and of columns.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

# Scores are cosines times a scale, which is learned between 1 and this, as in
# CLIP (Radford et al. 2021, section 2.5), which also starts at 1/0.07.
_MOST = 100.0
_START = math.log(1 / 0.07) / math.log(_MOST)
# What to initialise the parameter of `scale` with.
SCALE_INIT = math.log(_START / (1 - _START))
# As far as a score that does not count: exp of it is 0, and no inf - inf.
_NEVER = -1e30


@flax.struct.dataclass
class Contrast:
  """Means over the pairs that count, and over both directions.

  Attributes:
    loss: -log p(the other of the pair), nats; log of their number by chance.
    accuracy: share whose other is nearer than every negative.
    scale: of the cosines.
  """

  loss: jax.Array
  accuracy: jax.Array
  scale: jax.Array


def scale(parameter: jax.Array) -> jax.Array:
  """Between 1 and 100, of any number; smooth, so that it cannot get stuck."""
  return jnp.exp(math.log(_MOST) * jax.nn.sigmoid(parameter))


def contrast(
  one_BD: jax.Array,
  other_BD: jax.Array,
  parameter: jax.Array,
  *,
  same_BB: jax.Array | None = None,
  weights_B: jax.Array | None = None,
) -> Contrast:
  """Symmetric InfoNCE (van den Oord et al. 2018; CLIP), in float32.

  Args:
    one_BD: of any length: cosines are compared.
    other_BD: the others of the pairs, in the same order.
    parameter: learned, see `scale`; starts at SCALE_INIT.
    same_BB: bool, pairs that say the same, as two with one caption: none is a
      negative of the other. None: all differ.
    weights_B: 0 leaves a pair out, also as a negative. None: all count.
  """
  count = one_BD.shape[0]
  own_PQ = jnp.eye(count, dtype=bool)
  same_PQ = own_PQ if same_BB is None else same_BB | own_PQ
  if weights_B is None:
    weights_B = jnp.ones(count, jnp.float32)
  one_BD, other_BD = _unit(one_BD), _unit(other_BD)
  factor = scale(parameter.astype(jnp.float32))
  scores_PQ = factor * jnp.einsum(
    'PD,QD->PQ',
    one_BD,
    other_BD,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  own_B = jnp.diagonal(scores_PQ)
  total = jnp.maximum(jnp.sum(weights_B), 1e-9)
  loss = accuracy = 0.0
  for scores, same in ((scores_PQ, same_PQ), (scores_PQ.T, same_PQ.T)):
    negatives = ~same & (weights_B > 0)[None]
    others = jnp.where(negatives, scores, _NEVER)
    loss_B = jax.nn.logsumexp(jnp.where(own_PQ, scores, others), axis=1) - own_B
    right_B = own_B > jnp.max(others, axis=1)
    loss += jnp.sum(weights_B * loss_B) / total / 2
    accuracy += jnp.sum(weights_B * right_B) / total / 2
  return Contrast(loss, accuracy, factor)


def _unit(x_BD: jax.Array) -> jax.Array:
  """Divided by its length; the gradient is finite at 0."""
  x_BD = x_BD.astype(jnp.float32)
  squares_B1 = jnp.sum(jnp.square(x_BD), axis=-1, keepdims=True)
  return x_BD * jax.lax.rsqrt(jnp.maximum(squares_B1, 1e-24))
