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
from gemini_jax.infer import decoding
from gemini_jax.layers import matmul
from gemini_jax.models import gemini, transformer
from gemini_jax.steer import attribute_classifier, latent_steering

# Texts that are read together, and places of each that are kept.
_NUM_ROWS, _NUM_PLACES = 64, 16
# FUDGE: tokens that are weighed, the likeliest ones.
_NUM_WEIGHED = 200
# PPLM: steps for each token, the length of each as a share of what is moved,
# the last slots that are, the weight of the divergence, and that of the moved
# distribution in the mixture of both (measured on a grammar, see LOG.md).
_NUM_STEPS = 10
_STEP_SIZE = 0.1
_WINDOW = 8
_KL_SCALE = 1.0
_FUSION = 0.9


@flax.struct.dataclass
class Params:
  """Of a model, and of the attributes that are wished for."""

  model: Any
  wish: latent_steering.AttributeTarget


@dataclasses.dataclass(frozen=True)
class Guided(decoding.Decoder):
  """A decoder whose scores have a wish; logits are the model's, without it."""

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

  def gain(
    self, params: Params, x_BD: jax.Array, logits_BV: jax.Array
  ) -> jax.Array:
    """Log p(wish) with each token as the next one, float32[B, V].

    Tokens that are not weighed have the least of those that are.
    """
    allowed_BV = jnp.where(self.forbidden_V[None], -jnp.inf, logits_BV)
    num = min(_NUM_WEIGHED, logits_BV.shape[1])
    _, ids_BK = jax.lax.top_k(allowed_BV, num)

    def weigh(x_D, id):
      table = params.model['token']['embedding']
      vector_D = matmul.rows(table, id, jnp.float32)
      return params.wish.log_prob(features(x_D, vector_D))

    gain_BK = jax.vmap(jax.vmap(weigh, (None, 0)))(x_BD, ids_BK)
    least_B1 = jnp.min(gain_BK, axis=1, keepdims=True)
    rows_B1 = jnp.arange(len(ids_BK))[:, None]
    gain_BV = jnp.broadcast_to(least_B1, logits_BV.shape)
    return gain_BV.at[rows_B1, ids_BK].set(gain_BK)


class Fudge(Guided):
  """Weighted decoding: log p(token) + weight * log p(wish | text with it).

  FUDGE, Yang and Klein 2021, equation 2.
  """

  def decode_step(
    self, params: Params, state: decoding.State
  ) -> tuple[jax.Array, jax.Array, decoding.State]:
    """As `Decoder.decode_step`."""
    x_BD, logits_BV, cache = self.read(params, state, state.cache)
    scores_BV = logits_BV + self.gain(params, x_BD, logits_BV)
    return scores_BV, logits_BV, dataclasses.replace(state, cache=cache)


class Pplm(Guided):
  """Gradient steps on the cache before each token.

  PPLM, Dathathri et al. 2020: the keys and values of the last slots move down
  c KL(moved || model) - log p(wish), by normalised gradients of each layer;
  then the token is of p_moved^g p^(1 - g). Other than there, p(wish) is the
  mean over the next token of what it is after that token: read from what the
  moved layers themselves say, it rises without a change of the tokens. And
  steps shrink with what is left to gain: of one length, they harm the tokens
  that the wish does not depend on. The state keeps the cache as it was.
  """

  def decode_step(
    self, params: Params, state: decoding.State
  ) -> tuple[jax.Array, jax.Array, decoding.State]:
    """As `Decoder.decode_step`."""
    x_BD, logits_BV, cache = self.read(params, state, state.cache)
    gain_BV = self.gain(params, x_BD, logits_BV)
    log_probs_BV = jax.nn.log_softmax(logits_BV)
    past = state.cache.self_attention
    last_B1 = jnp.maximum(state.lengths - 1, 0)[:, None]
    slots_1S = jnp.arange(past.key.shape[2])[None]
    # The last token is read anew; what it writes is not of the past.
    near_BS = (slots_1S < last_B1) & (slots_1S >= last_B1 - _WINDOW)

    def moved(delta):
      """Log-probabilities of the next token, from a moved cache."""
      add = lambda old, new: old + new.astype(old.dtype)
      cache = dataclasses.replace(
        state.cache, self_attention=jax.tree.map(add, past, delta)
      )
      return jax.nn.log_softmax(self.read(params, state, cache)[1])

    def loss(delta):
      moved_BV = moved(delta)
      wish_B = jax.nn.logsumexp(moved_BV + gain_BV, axis=-1)
      ratio_BV = moved_BV - log_probs_BV
      kl_B = jnp.sum(jnp.exp(moved_BV) * ratio_BV, axis=-1)
      # What is left to gain: spread of the loss over tokens; 0 at the best.
      slope_BV = _KL_SCALE * ratio_BV - jnp.exp(gain_BV - wish_B[:, None])
      left_B = jnp.sqrt(variance(moved_BV, slope_BV))
      return jnp.sum(_KL_SCALE * kl_B - wish_B), jnp.minimum(left_B, 1)

    def step(delta, _):
      def descend(old, grad, size):
        grad = jnp.where(near_BS[None, :, :, None, None], grad, 0)
        length = jnp.maximum(norm(grad), 1e-9)
        left = left_B[None, :, None, None, None]
        return old - strength * left * size * grad / length

      grads, left_B = jax.grad(loss, has_aux=True)(delta)
      return jax.tree.map(descend, delta, grads, sizes), None

    norm = lambda x: jnp.sqrt(
      jnp.sum(jnp.square(x), axis=(2, 3, 4), keepdims=True)
    )
    near = near_BS[None, :, :, None, None]
    sizes = jax.tree.map(
      lambda x: norm(jnp.where(near, x, 0).astype(jnp.float32)), past
    )
    strength = _STEP_SIZE * jnp.mean(params.wish.weights_A)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), past)
    delta, _ = jax.lax.scan(step, zeros, length=_NUM_STEPS)
    fused_BV = _FUSION * moved(delta) + (1 - _FUSION) * log_probs_BV
    return fused_BV, logits_BV, dataclasses.replace(state, cache=cache)


def variance(log_probs_BV: jax.Array, values_BV: jax.Array) -> jax.Array:
  """Of values under distributions, float32[B]."""
  probs_BV = jnp.exp(log_probs_BV)
  mean_B1 = jnp.sum(probs_BV * values_BV, axis=1, keepdims=True)
  return jnp.sum(probs_BV * jnp.square(values_BV - mean_B1), axis=1)


METHODS = {'fudge': Fudge, 'pplm': Pplm}


def cost(method: str, vocab_size: int) -> latent_steering.Cost:
  """What one token takes."""
  steps = _NUM_STEPS if method == 'pplm' else 0
  # Before, in and after the steps.
  forward = steps + 2 if steps else 1
  return latent_steering.Cost(min(_NUM_WEIGHED, vocab_size), 0, forward, steps)


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
) -> tuple[attribute_classifier.Features, np.ndarray]:
  """Features at some random tokens of texts, and at the last of each [N, F].

  Args:
    model: decoder-only.
    params: of the model.
    rows: token ids of each text, bos and eos included, at least two.
    latents: z of each text, for a model that has one.
    seed: of the choice.
  """
  length = model.config.max_length
  rng = np.random.default_rng(seed % 2**63)
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
  return attribute_classifier.Features(
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
  vector_NSD = matmul.rows(params['token']['embedding'], next_NS, jnp.float32)
  x_NSD = jnp.take_along_axis(x_NTD, chosen_NS[:, :, None], axis=1)
  return jax.vmap(jax.vmap(features))(x_NSD, vector_NSD)
