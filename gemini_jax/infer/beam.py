"""Beam search over the decoder's step, with GNMT's length penalty.

P prompts, K beams of a prompt, B = P * K rows, T slots, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax.infer import decoding, decoding_state, sampling
from gemini_jax.parallel import processes
from gemini_jax.weights import by_row


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """A finished hypothesis of a beam search.

  Attributes:
    tokens: int32[n], generated ids, with eos if it was generated.
    logprobs: float32[n], log-probability of each under the model.
    score: log-probability of all tokens under the decoder's scores, divided by
      the length penalty.
  """

  tokens: np.ndarray
  logprobs: np.ndarray
  score: float


@flax.struct.dataclass
class Finished:
  """The best K finished hypotheses of each prompt, best first.

  Attributes:
    scores: float32[P, K]; -inf where there is none.
    tokens: int32[P, K, T].
    logprobs: float32[P, K, T].
    lengths: int32[P, K].
  """

  scores: jax.Array
  tokens: jax.Array
  logprobs: jax.Array
  lengths: jax.Array


def search(
  decoder: decoding.Decoder,
  params: Any,
  prompts: Sequence[np.ndarray],
  *,
  beam_size: int,
  max_tokens: int,
  length_penalty: float = 0.6,
  inputs: Sequence[np.ndarray] | None = None,
  latents: np.ndarray | None = None,
  media: Mapping[str, batch_lib.Media] | None = None,
) -> list[list[Hypothesis]]:
  """The best hypotheses of each prompt, best first, at most `beam_size`.

  A step keeps the K best continuations; those that end leave the beam, and
  the next step fills it up again, so one beam is greedy search. Rows at their
  limit count as ended. The search stops when no live beam can beat the worst
  of K finished ones; stopping then does not change the result.

  Args:
    decoder: its batch size is a multiple of `beam_size`; batch_size /
      beam_size prompts fit.
    params: of the model; what differs by row is of a row for each prompt.
    prompts: token ids, special ones included.
    beam_size: K.
    max_tokens: limit of new tokens.
    length_penalty: scores are divided by ((5 + n) / 6) ** length_penalty for
      n new tokens, eos included (Wu et al. 2016, equation 14).
    inputs: what the encoder reads.
    latents: z of each prompt, for a model that has one.
    media: of each prompt.

  Raises:
    ConfigError: a prompt or an input is too long.
  """
  assert decoder.batch_size % beam_size == 0, 'rows must be whole beams'
  # A prompt is read once, whatever the number of its beams.
  of_prompts = dataclasses.replace(
    decoder, batch_size=decoder.batch_size // beam_size
  )
  state = of_prompts.start(
    params,
    prompts,
    max_tokens=max_tokens,
    inputs=inputs,
    latents=latents,
    media=media,
  )
  state = repeat(state, beam_size)
  finished = search_loop(
    decoder,
    beam_size,
    by_row.repeat(params, beam_size),
    state,
    np.float32(length_penalty),
  )
  finished = processes.fetch(finished)

  def hypothesis(i, k):
    span = slice(len(prompts[i]), int(finished.lengths[i, k]))
    return Hypothesis(
      finished.tokens[i, k, span],
      finished.logprobs[i, k, span],
      float(finished.scores[i, k]),
    )

  return [
    [
      hypothesis(i, k)
      for k in range(beam_size)
      if finished.scores[i, k] > -np.inf
    ]
    for i in range(len(prompts))
  ]


@functools.partial(jax.jit, static_argnums=1)
def repeat(state: decoding_state.State, beam_size: int) -> decoding_state.State:
  """The state with each row K times, in the place of one prompt's beams."""
  rows_B = jnp.arange(beam_size * len(state.tokens)) // beam_size
  return decoding_state.constrain(state.take(rows_B))


@functools.partial(jax.jit, static_argnums=(0, 1))
def search_loop(
  decoder: decoding.Decoder,
  beam_size: int,
  params: Any,
  state: decoding_state.State,
  length_penalty: jax.Array,
) -> Finished:
  """The whole search, compiled once for one decoder and beam size."""
  num_rows, length = state.tokens.shape
  shape = (num_rows // beam_size, beam_size)
  beams = lambda x: x.reshape(*shape, *x.shape[1:])
  penalty = lambda n: ((5 + n) / 6) ** length_penalty

  def body(carry):
    live_PK, state, finished = carry
    scores_BV, logits_BV, state = decoder.decode_step(params, state)
    scores_BV = sampling.forbid(
      jax.nn.log_softmax(scores_BV), decoder.forbidden_V
    )
    logprobs_BV = jax.nn.log_softmax(logits_BV)
    vocab_size = scores_BV.shape[-1]
    scores_PKV = live_PK[:, :, None] + beams(scores_BV)
    live_PK, best_PK = jax.lax.top_k(
      scores_PKV.reshape(shape[0], -1), beam_size
    )
    first_P1 = beam_size * jnp.arange(shape[0])[:, None]
    parent_B = (first_P1 + best_PK // vocab_size).reshape(-1)
    token_B = (best_PK % vocab_size).reshape(-1)
    state = state.follow(parent_B)
    state = dataclasses.replace(state, done=(live_PK == -jnp.inf).ravel())
    state = state.append(
      token_B, logprobs_BV[parent_B, token_B], decoder.ends(token_B)
    )
    ended_PK = beams(state.done) & (live_PK > -jnp.inf)
    news_PK = beams(state.lengths - state.starts)
    finished = merge(
      finished,
      Finished(
        jnp.where(ended_PK, live_PK / penalty(news_PK), -jnp.inf),
        beams(state.tokens),
        beams(state.logprobs),
        beams(state.lengths),
      ),
    )
    live_PK = jnp.where(ended_PK, -jnp.inf, live_PK)
    # Log-probabilities only fall, so the best score a live beam can reach is
    # its log-probability under the larger penalty (monotonic in n).
    limit_P = beams(state.limits - state.starts)[:, 0]
    next_P = jnp.max(news_PK, axis=1) + 1
    bound_P = jnp.max(live_PK, axis=1) / jnp.maximum(
      penalty(limit_P), penalty(next_P)
    )
    beaten_P = jnp.min(finished.scores, axis=1) >= bound_P
    live_PK = jnp.where(beaten_P[:, None], -jnp.inf, live_PK)
    state = dataclasses.replace(state, done=(live_PK == -jnp.inf).ravel())
    return live_PK, state, finished

  # The beams of a prompt start equal: only the first is alive.
  live_PK = jnp.where(beams(state.done), -jnp.inf, 0.0).at[:, 1:].set(-jnp.inf)
  state = dataclasses.replace(state, done=(live_PK == -jnp.inf).ravel())
  finished = Finished(
    jnp.full(shape, -jnp.inf),
    jnp.zeros((*shape, length), jnp.int32),
    jnp.zeros((*shape, length)),
    jnp.zeros(shape, jnp.int32),
  )
  return jax.lax.while_loop(
    lambda carry: ~jnp.all(carry[1].done), body, (live_PK, state, finished)
  )[2]


def merge(old: Finished, new: Finished) -> Finished:
  """The best K of both."""
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
  _, best_PK = jax.lax.top_k(both.scores, old.scores.shape[1])
  rows_P1 = jnp.arange(best_PK.shape[0])[:, None]
  return jax.tree.map(lambda leaf: leaf[rows_P1, best_PK], both)
