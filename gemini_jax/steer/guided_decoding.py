"""Decoders that prefer tokens which make the target attributes likely.

For models without a latent. The features of a text at a token are the
decoder's output before the token and the token's embedding.

B rows, N texts, T length, S slots of the cache, or positions of a text, D
width, F = 2 D features, V vocabulary, K candidate tokens, L layers.
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
from gemini_jax.infer import decoding, decoding_state
from gemini_jax.models import gemini, transformer
from gemini_jax.steer import attribute_classifier, latent_steering

# Texts that are read together, and positions of each whose features are kept.
_NUM_ROWS, _NUM_POSITIONS = 64, 16
# FUDGE: the likeliest tokens, for which the classifiers are evaluated.
_NUM_CANDIDATES = 200
# PPLM: steps for each token, the length of each relative to the cache's norm,
# the last slots that are perturbed, the weight of the divergence, and that of
# the perturbed distribution in the mixture (measured on a grammar, see LOG.md).
_NUM_STEPS = 10
_STEP_SIZE = 0.1
_WINDOW = 8
_KL_SCALE = 1.0
_FUSION = 0.9


@flax.struct.dataclass
class Params:
  """Parameters of a model and of the classifiers."""

  model: Any
  target: latent_steering.AttributeTarget


@dataclasses.dataclass(frozen=True)
class Guided(decoding.Decoder):
  """A decoder whose scores depend on a target; its logits do not."""

  @classmethod
  def of(cls, decoder: decoding.Decoder) -> 'Guided':
    """The guided decoder with the fields of a plain one."""
    return cls(**vars(decoder))

  def start(
    self, params: Params, *args: Any, **kwargs: Any
  ) -> decoding_state.State:
    """As `Decoder.start`; prompts are read without guidance."""
    return super().start(params.model, *args, **kwargs)

  def apply(
    self, params: Params, *args: Any, method: Any, **kwargs: Any
  ) -> Any:
    """A method of the model."""
    return gemini.apply(
      self.model, params.model, *args, method=method, **kwargs
    )

  def read(
    self, params: Params, state: decoding_state.State, cache: transformer.Cache
  ) -> tuple[jax.Array, jax.Array, transformer.Cache]:
    """Hidden states [B, D], logits [B, V], and the cache after this token."""
    x_B1D, cache, _ = self.apply(
      params,
      self.last(state),
      memory=state.memory,
      latent_BZ=state.latent,
      cache=cache,
      method='decode_hidden',
    )
    return x_B1D[:, 0], self.apply(params, x_B1D, method='logits')[:, 0], cache

  def attribute_log_prob(
    self, params: Params, x_BD: jax.Array, logits_BV: jax.Array
  ) -> jax.Array:
    """Log p(target) with each token as the next one, float32[B, V].

    Only the likeliest tokens are evaluated; the others get the least of their
    values.
    """
    allowed_BV = jnp.where(self.forbidden_V[None], -jnp.inf, logits_BV)
    num = min(_NUM_CANDIDATES, logits_BV.shape[1])
    _, ids_BK = jax.lax.top_k(allowed_BV, num)

    vectors_BKD = self.apply(params, ids_BK, method=_embeddings)
    log_prob = lambda x_D, vector_D: params.target.log_prob(
      features(x_D, vector_D)
    )
    log_prob_BK = jax.vmap(jax.vmap(log_prob, (None, 0)))(x_BD, vectors_BKD)
    minimum_B1 = jnp.min(log_prob_BK, axis=1, keepdims=True)
    rows_B1 = jnp.arange(len(ids_BK))[:, None]
    target_BV = jnp.broadcast_to(minimum_B1, logits_BV.shape)
    return target_BV.at[rows_B1, ids_BK].set(log_prob_BK)


class Fudge(Guided):
  """Weighted decoding: log p(token) + weight * log p(target | text, token).

  FUDGE, Yang and Klein 2021, equation 2.
  """

  def decode_step(
    self, params: Params, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, decoding_state.State]:
    """As `Decoder.decode_step`."""
    x_BD, logits_BV, cache = self.read(params, state, state.cache)
    scores_BV = logits_BV + self.attribute_log_prob(params, x_BD, logits_BV)
    return scores_BV, logits_BV, dataclasses.replace(state, cache=cache)


class Pplm(Guided):
  """Gradient steps on the cache before each token.

  PPLM, Dathathri et al. 2020: keys and values of the last slots descend
  c KL(perturbed || model) - log p(target) by normalised gradients of each
  layer; then the token is drawn from p_perturbed^g p^(1 - g). Two differences
  from the paper: p(target) is its mean over the next token, because read from
  the perturbed hidden states it rises without any change of the tokens; and
  steps shrink as the loss gets flat over the tokens, because steps of a fixed
  length harm tokens that the target does not depend on. The state keeps the
  cache without the perturbation.
  """

  def decode_step(
    self, params: Params, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, decoding_state.State]:
    """As `Decoder.decode_step`."""
    x_BD, logits_BV, cache = self.read(params, state, state.cache)
    target_BV = self.attribute_log_prob(params, x_BD, logits_BV)
    log_probs_BV = jax.nn.log_softmax(logits_BV)
    past = state.cache.self_attention
    last_B1 = jnp.maximum(state.lengths - 1, 0)[:, None]
    slots_1S = jnp.arange(past.num_slots)[None]
    # The last token is read again, so its slot is not perturbed.
    near_BS = (slots_1S < last_B1) & (slots_1S >= last_B1 - _WINDOW)
    near = near_BS[None, :, None, :, None]

    def perturbed(delta):
      """Log-probabilities of the next token, from a perturbed cache."""
      add = lambda old, new: old + new.astype(old.dtype)
      cache = dataclasses.replace(
        state.cache, self_attention=jax.tree.map(add, past, delta)
      )
      return jax.nn.log_softmax(self.read(params, state, cache)[1])

    def loss(delta):
      perturbed_BV = perturbed(delta)
      mean_target_B = jax.nn.logsumexp(perturbed_BV + target_BV, axis=-1)
      ratio_BV = perturbed_BV - log_probs_BV
      kl_B = jnp.sum(jnp.exp(perturbed_BV) * ratio_BV, axis=-1)
      # The spread of the loss over the tokens; 0 at the optimum.
      slope_BV = _KL_SCALE * ratio_BV - jnp.exp(
        target_BV - mean_target_B[:, None]
      )
      spread_B = jnp.sqrt(variance(perturbed_BV, slope_BV))
      return jnp.sum(_KL_SCALE * kl_B - mean_target_B), jnp.minimum(spread_B, 1)

    def step(delta, _):
      def descend(old, grad, size):
        grad = jnp.where(near, grad, 0)
        length = jnp.maximum(norm(grad), 1e-9)
        spread = spread_B[None, :, None, None, None]
        return old - strength * spread * size * grad / length

      grads, spread_B = jax.grad(loss, has_aux=True)(delta)
      return jax.tree.map(descend, delta, grads, sizes), None

    norm = lambda x: jnp.sqrt(
      jnp.sum(jnp.square(x), axis=(2, 3, 4), keepdims=True)
    )
    sizes = jax.tree.map(
      lambda x: norm(jnp.where(near, x, 0).astype(jnp.float32)), past
    )
    strength = _STEP_SIZE * jnp.mean(params.target.weights_A)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), past)
    delta, _ = jax.lax.scan(step, zeros, length=_NUM_STEPS)
    fused_BV = _FUSION * perturbed(delta) + (1 - _FUSION) * log_probs_BV
    return fused_BV, logits_BV, dataclasses.replace(state, cache=cache)


def variance(log_probs_BV: jax.Array, values_BV: jax.Array) -> jax.Array:
  """Variance of values under distributions over V, float32[B]."""
  probs_BV = jnp.exp(log_probs_BV)
  mean_B1 = jnp.sum(probs_BV * values_BV, axis=1, keepdims=True)
  return jnp.sum(probs_BV * jnp.square(values_BV - mean_B1), axis=1)


METHODS = {'fudge': Fudge, 'pplm': Pplm}


def cost(method: str, vocab_size: int) -> latent_steering.Cost:
  """The cost of one token."""
  steps = _NUM_STEPS if method == 'pplm' else 0
  # Before, within and after the steps.
  forward = steps + 2 if steps else 1
  return latent_steering.Cost(
    min(_NUM_CANDIDATES, vocab_size), 0, forward, steps
  )


def features(x_D: jax.Array, vector_D: jax.Array) -> jax.Array:
  """Features of a prefix: hidden state and next embedding, float32[F]."""
  parts = (x_D.astype(jnp.float32), vector_D.astype(jnp.float32))
  return jnp.concatenate(parts)


def _embeddings(model: gemini.Gemini, tokens: jax.Array) -> jax.Array:
  """Rows of the token table."""
  return model.token(tokens)


def text_features(
  model: gemini.Gemini,
  params: Any,
  rows: Sequence[np.ndarray],
  latents: np.ndarray | None,
  seed: int = 0,
) -> tuple[attribute_classifier.Features, np.ndarray]:
  """Features at some random tokens of texts, and at the last of each, [N, F].

  Args:
    model: decoder-only.
    params: of the model.
    rows: token ids of each text, bos and eos included, at least two.
    latents: z of each text, for a model that has one.
    seed: of the choice.
  """
  length = model.config.max_length
  rng = np.random.default_rng(seed % 2**63)
  random_features, last_features, counts = [], [], []
  for first in range(0, len(rows), _NUM_ROWS):
    chunk = [row[: length + 1] for row in rows[first : first + _NUM_ROWS]]
    tokens, lengths = batch_lib.pad_rows(chunk, _NUM_ROWS, length + 1, 0)
    # The last token of a text is predicted, and not read.
    lengths = np.maximum(lengths - 1, 0)
    positions = np.zeros((_NUM_ROWS, _NUM_POSITIONS), np.int32)
    for i in range(len(chunk)):
      drawn = rng.permutation(lengths[i])[:_NUM_POSITIONS]
      positions[i, : len(drawn)] = drawn
      counts.append(len(drawn))
    z = None
    if latents is not None:
      z = np.zeros((_NUM_ROWS, latents.shape[1]), np.float32)
      z[: len(chunk)] = latents[first : first + len(chunk)]
    last = np.maximum(lengths - 1, 0)[:, None]
    chunk_features = np.asarray(
      _features_at(
        model, params, tokens, lengths, np.concatenate([positions, last], 1), z
      )
    )[: len(chunk)]
    random_features.append(chunk_features[:, :-1])
    last_features.append(chunk_features[:, -1])
  mean_NSF = np.concatenate(random_features)
  return attribute_classifier.Features(
    mean_NSF, np.zeros_like(mean_NSF), np.asarray(counts)
  ), np.concatenate(last_features)


@functools.partial(jax.jit, static_argnums=0)
def _features_at(model, params, tokens_NT, lengths_N, positions_NS, latent_NZ):
  """Features at chosen positions, [N, S, F]."""
  segments_NT = jnp.arange(tokens_NT.shape[1] - 1)[None] < lengths_N[:, None]
  positions_NT = jnp.broadcast_to(
    jnp.arange(tokens_NT.shape[1] - 1)[None], segments_NT.shape
  )
  sequence = batch_lib.Sequence(
    tokens_NT[:, :-1], positions_NT, segments_NT.astype(jnp.int32)
  )
  x_NTD = gemini.apply(
    model, params, sequence, latent_BZ=latent_NZ, method='decode_hidden'
  )[0]
  next_NS = jnp.take_along_axis(tokens_NT, positions_NS + 1, axis=1)
  vector_NSD = gemini.apply(model, params, next_NS, method=_embeddings)
  x_NSD = jnp.take_along_axis(x_NTD, positions_NS[:, :, None], axis=1)
  return jax.vmap(jax.vmap(features))(x_NSD, vector_NSD)
