"""Decoders that prefer tokens after which a text has what is wished for.

For models without a latent. What an attribute model reads of a text, at each
of its tokens: what the decoder says before the token, and the token's vector.

B rows, N texts, T length, S slots of the cache, D width, F = 2 D features, V
vocabulary, K tokens that are looked at, L layers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax.infer import attribute, decoding, steering
from gemini_jax.models import gemini, transformer

# Texts that are read together, and places of each that are kept.
_NUM_ROWS, _NUM_PLACES = 64, 16
# FUDGE: tokens that are weighed, the likeliest ones.
_NUM_WEIGHED = 200
# PPLM: steps for each token, their size, the exponent of the gradient's norm
# (as in the authors' run_pplm.py), the last slots that are moved, the weight
# of the divergence, and of the moved distribution in the mixture of both.
_NUM_STEPS = 3
_STEP_SIZE = 0.04
_GAMMA = 1.0
_WINDOW = 8
_KL_SCALE = 0.01
_FUSION = 0.9


@flax.struct.dataclass
class Params:
  """Of a model, and of the attributes that are wished for."""

  model: Any
  wish: steering.Wish


@dataclasses.dataclass(frozen=True)
class Guided(decoding.Decoder):
  """A decoder whose step has a wish; log-probabilities are those with it."""

  @classmethod
  def of(cls, decoder: decoding.Decoder) -> 'Guided':
    """With the sizes of a decoder."""
    return cls(**vars(decoder))

  def start(self, params: Params, *args: Any, **kwargs: Any) -> decoding.State:
    """As `Decoder.start`: a prompt is read as it is."""
    return super().start(params.model, *args, **kwargs)

  def apply(
    self, params: Params, *args: Any, method: Any, **kwargs: Any
  ) -> Any:
    """A method of the model."""
    return self.model.apply(
      {'params': params.model}, *args, method=method, **kwargs
    )

  def read(
    self, params: Params, state: decoding.State, cache: transformer.Cache
  ) -> tuple[jax.Array, jax.Array, transformer.Cache]:
    """What the decoder says [B, D], logits [B, V], and the cache after it."""
    x_B1D, cache, _ = self.apply(
      params,
      self.last(state),
      memory=state.memory,
      latent_BZ=state.latent,
      cache=cache,
      method='decode_hidden',
    )
    return x_B1D[:, 0], self.apply(params, x_B1D, method='logits')[:, 0], cache

  def table(self, params: Params) -> jax.Array:
    """Vectors of all tokens, [V, D]."""
    return params.model['token']['embedding']


class Fudge(Guided):
  """Weighted decoding: log p(token) + weight * log p(wish | text with it).

  FUDGE, Yang and Klein 2021, equation 2. Of tokens that are not weighed, the
  least weight is taken.
  """

  def decode_step(
    self, params: Params, state: decoding.State
  ) -> tuple[jax.Array, decoding.State]:
    """Scores of each row's next token, float32[B, V]."""
    x_BD, logits_BV, cache = self.read(params, state, state.cache)
    allowed_BV = jnp.where(self.forbidden_V[None], -jnp.inf, logits_BV)
    num = min(_NUM_WEIGHED, logits_BV.shape[1])
    _, ids_BK = jax.lax.top_k(allowed_BV, num)
    vector_BKD = self.table(params)[ids_BK]

    def weigh(x_D, vector_D):
      return params.wish.log_prob(features(x_D, vector_D))

    gain_BK = jax.vmap(jax.vmap(weigh, (None, 0)))(x_BD, vector_BKD)
    rows_B1 = jnp.arange(len(ids_BK))[:, None]
    least_B1 = jnp.min(gain_BK, axis=1, keepdims=True)
    gain_BV = jnp.broadcast_to(least_B1, logits_BV.shape)
    gain_BV = gain_BV.at[rows_B1, ids_BK].set(gain_BK)
    return logits_BV + gain_BV, dataclasses.replace(state, cache=cache)


class Pplm(Guided):
  """Gradient steps on the cache before each token.

  PPLM, Dathathri et al. 2020: the keys and values of the last slots move down
  -log p(wish) + c KL(moved || model), by normalised gradients of each layer;
  then the token is of p_moved^g p^(1 - g). What the wish reads as the next
  token is the mean vector under the moved distribution. The state keeps the
  cache that was not moved.
  """

  def decode_step(
    self, params: Params, state: decoding.State
  ) -> tuple[jax.Array, decoding.State]:
    """Scores of each row's next token, float32[B, V]."""
    _, logits_BV, cache = self.read(params, state, state.cache)
    log_probs_BV = jax.nn.log_softmax(logits_BV)
    table_VD = self.table(params)
    past = state.cache.self_attention
    last_B1 = jnp.maximum(state.lengths - 1, 0)[:, None]
    slots_1S = jnp.arange(past.key.shape[2])[None]
    # The last token is read anew; what it writes is not of the past.
    near_BS = (slots_1S < last_B1) & (slots_1S >= last_B1 - _WINDOW)

    def moved(delta):
      """What is said and its log-probabilities, from a moved cache."""
      add = lambda old, new: old + new.astype(old.dtype)
      cache = dataclasses.replace(
        state.cache, self_attention=jax.tree.map(add, past, delta)
      )
      x_BD, logits_BV, _ = self.read(params, state, cache)
      return x_BD, jax.nn.log_softmax(logits_BV)

    def loss(delta):
      x_BD, moved_BV = moved(delta)
      probs_BV = jnp.exp(moved_BV)
      vector_BD = probs_BV.astype(table_VD.dtype) @ table_VD
      wish_B = jax.vmap(
        lambda x_D, vector_D: params.wish.log_prob(features(x_D, vector_D))
      )(x_BD, vector_BD)
      kl = jnp.sum(probs_BV * (moved_BV - log_probs_BV))
      return _KL_SCALE * kl - jnp.sum(wish_B)

    def step(delta, _):
      def descend(old, grad):
        grad = jnp.where(near_BS[None, :, :, None, None], grad, 0)
        size = jnp.sqrt(
          jnp.sum(jnp.square(grad), axis=(2, 3, 4), keepdims=True)
        )
        return old - strength * grad / jnp.maximum(size, 1e-9) ** _GAMMA

      return jax.tree.map(descend, delta, jax.grad(loss)(delta)), None

    # A step has one length whatever the loss, so the weights are its size.
    strength = _STEP_SIZE * jnp.mean(params.wish.weights_A)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), past)
    delta, _ = jax.lax.scan(step, zeros, length=_NUM_STEPS)
    _, moved_BV = moved(delta)
    fused_BV = _FUSION * moved_BV + (1 - _FUSION) * log_probs_BV
    return fused_BV, dataclasses.replace(state, cache=cache)


METHODS = {'fudge': Fudge, 'pplm': Pplm}


def cost(method: str, vocab_size: int) -> steering.Cost:
  """What one token takes."""
  if method == 'fudge':
    return steering.Cost(min(_NUM_WEIGHED, vocab_size), 0, 1, 0)
  # Before, in and after the steps.
  return steering.Cost(_NUM_STEPS, _NUM_STEPS, _NUM_STEPS + 2, _NUM_STEPS)


def features(x_D: jax.Array, vector_D: jax.Array) -> jax.Array:
  """What an attribute reads of a prefix, float32[F]."""
  parts = (x_D.astype(jnp.float32), vector_D.astype(jnp.float32))
  return jnp.concatenate(parts)


def read_texts(
  model: gemini.Gemini,
  params: Any,
  rows: Sequence[np.ndarray],
  latents: np.ndarray | None,
  seed: int = 0,
) -> tuple[attribute.Features, np.ndarray]:
  """Features at some random tokens of texts, and at the last of each [N, F].

  Args:
    model: decoder-only.
    params: of the model.
    rows: token ids of each text, bos and eos included, at least two.
    latents: z of each text, for a model that has one.
    seed: of the choice.
  """
  length = model.config.max_length
  rng = np.random.default_rng(seed)
  places, ends, counts = [], [], []
  for first in range(0, len(rows), _NUM_ROWS):
    part = [row[: length + 1] for row in rows[first : first + _NUM_ROWS]]
    tokens = np.zeros((_NUM_ROWS, length + 1), np.int32)
    lengths = np.zeros(_NUM_ROWS, np.int32)
    chosen = np.zeros((_NUM_ROWS, _NUM_PLACES), np.int32)
    for i, row in enumerate(part):
      tokens[i, : len(row)] = row
      lengths[i] = len(row) - 1
      own = rng.permutation(lengths[i])[:_NUM_PLACES]
      chosen[i, : len(own)] = own
      counts.append(len(own))
    z = None
    if latents is not None:
      z = np.zeros((_NUM_ROWS, latents.shape[1]), np.float32)
      z[: len(part)] = latents[first : first + len(part)]
    last = np.maximum(lengths - 1, 0)[:, None]
    found = np.asarray(
      _read(
        model, params, tokens, lengths, np.concatenate([chosen, last], 1), z
      )
    )
    places.append(found[: len(part), :-1])
    ends.append(found[: len(part), -1])
  mean_NSF = np.concatenate(places)
  return attribute.Features(
    mean_NSF, np.zeros_like(mean_NSF), np.asarray(counts)
  ), np.concatenate(ends)


@functools.partial(jax.jit, static_argnums=0)
def _read(model, params, tokens_NT, lengths_N, chosen_NS, latent_NZ):
  """Features at the chosen tokens, [N, S, F]."""
  segments_NT = jnp.arange(tokens_NT.shape[1] - 1)[None] < lengths_N[:, None]
  positions_NT = jnp.broadcast_to(
    jnp.arange(tokens_NT.shape[1] - 1)[None], segments_NT.shape
  )
  sequence = batch_lib.Sequence(
    tokens_NT[:, :-1], positions_NT, segments_NT.astype(jnp.int32)
  )
  x_NTD = model.apply(
    {'params': params}, sequence, latent_BZ=latent_NZ, method='decode_hidden'
  )[0]
  next_NS = jnp.take_along_axis(tokens_NT, chosen_NS + 1, axis=1)
  vector_NSD = params['token']['embedding'][next_NS]
  x_NSD = jnp.take_along_axis(x_NTD, chosen_NS[:, :, None], axis=1)
  return jax.vmap(jax.vmap(features))(x_NSD, vector_NSD)
