"""Speculative decoding: a small model drafts tokens, the large one checks them.

Leviathan et al. 2023, algorithm 1. One pass of the large model reads K drafted
tokens, so it writes 1 to K + 1 tokens a pass, distributed as its own.

B rows, T slots of a cache, K drafted tokens, V vocabulary, M = K + 1.
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
from gemini_jax import config as config_lib
from gemini_jax.infer import (
  decoding,
  decoding_state,
  rejection_sampling,
  sampling,
)
from gemini_jax.models import gemini, transformer
from gemini_jax.parallel import processes

# What a random number is for; the row's key and the position say the rest.
_DRAFT, _ACCEPT, _CORRECT = range(3)


@flax.struct.dataclass
class Params:
  """Parameters of the model that is sampled from, and of its draft."""

  target: Any
  draft: Any


@flax.struct.dataclass
class Caches:
  """The caches of both models, with a slot for each position of a row.

  Slots from a row's last token on are written before they are read, so what a
  rejected draft left there is of no effect.
  """

  target: transformer.Cache
  draft: transformer.Cache


@flax.struct.dataclass
class State(decoding_state.State):
  """As of a plain decoder, with `Caches` for its cache.

  Attributes:
    passes: int32[B], passes of the large model while the row was written.
    accepted: int32[B], drafted tokens that became part of the row.
  """

  passes: Any = None
  accepted: Any = None


@dataclasses.dataclass(frozen=True)
class Draft:
  """A model that drafts for another one of the same tokenizer.

  Attributes:
    model: decoder-only, without a latent.
    params: of it.
    num_tokens: K, tokens that it drafts at a time.
  """

  model: gemini.Gemini
  params: Any
  num_tokens: int


@dataclasses.dataclass(frozen=True)
class Speculative(decoding.Decoder):
  """A decoder whose rows grow by up to K + 1 tokens a pass of its model.

  Attributes:
    draft: the model that drafts.
    draft_tokens: K.
  """

  draft: gemini.Gemini | None = None
  draft_tokens: int = 4

  def __post_init__(self):
    super().__post_init__()
    for name, model in (('', self.model), ('draft ', self.draft_model)):
      config = model.config
      config_lib.check(
        not config.cross and not config.latent.dim,
        f'generate.draft: the {name}model has model.architecture='
        f'{config.architecture!r} and model.latent.dim={config.latent.dim}; '
        'only decoders without a latent can draft and be drafted for',
      )
    config = self.draft_model.config
    config_lib.check(
      config.position != 'learned' or self.length <= config.max_length,
      f'generate.draft: the draft model has model.max_length='
      f"{config.max_length} with model.position='learned'; {self.length} are "
      'needed, or fewer generate.max_tokens',
    )

  @classmethod
  def of(cls, decoder: decoding.Decoder, draft: Draft) -> 'Speculative':
    """The decoder with the fields of a plain one."""
    return cls(
      **vars(decoder), draft=draft.model, draft_tokens=draft.num_tokens
    )

  @property
  def draft_model(self) -> gemini.Gemini:
    """The model that drafts."""
    assert self.draft is not None
    return self.draft

  @property
  def tokens_per_step(self) -> int:
    """The most tokens by which a step makes a row longer."""
    return self.draft_tokens + 1

  def start(
    self,
    params: Params,
    prompts: Sequence[np.ndarray],
    *,
    media: Mapping[str, batch_lib.Media] | None = None,
    **kwargs: Any,
  ) -> State:
    """As `Decoder.start`; both models read the prompts.

    Raises:
      ConfigError: a prompt is too long, or has media.
    """
    config_lib.check(
      not media, 'generate.draft: prompts with media cannot be drafted for'
    )
    state = super().start(params.target, prompts, **kwargs)
    # The number of rows, of slots and the layout of prompts are the same.
    plain = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(decoding.Decoder)
    }
    drafter = decoding.Decoder(
      **plain | {'model': self.draft_model, 'num_slots': self.length}
    )
    draft = drafter.start(params.draft, prompts, **kwargs)
    values: dict[str, Any] = vars(state) | {
      'cache': Caches(state.cache, draft.cache)
    }
    none_B = lambda: jnp.zeros(self.batch_size, jnp.int32)
    return State(**values, passes=none_B(), accepted=none_B())

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
  def decode_loop(
    self,
    params: Params,
    state: State,
    sampler: sampling.Sampler,
    num_tokens: jax.Array,
  ) -> State:
    """As `Decoder.decode_loop`, in steps that `num_tokens` has room for.

    It must have room for one.
    """
    size = self.tokens_per_step

    def unfinished(carry):
      i, state = carry
      return (i + size <= num_tokens) & ~jnp.all(state.done)

    def body(carry):
      i, state = carry
      return i + size, self.speculate(params, state, sampler)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]

  def speculate(
    self, params: Params, state: State, sampler: sampling.Sampler
  ) -> State:
    """The state with 1 to K + 1 more tokens in every row that is not done."""
    draft_BK, draft_probs_BKV, draft_cache = self.propose(
      params, state, sampler
    )
    last = self.last(state)
    caches: Any = state.cache
    logits_BMV, target_cache = gemini.apply(
      self.model,
      params.target,
      self.sequence(
        state,
        jnp.concatenate([last.tokens, draft_BK], axis=1),
        last.positions[:, 0],
      ),
      cache=caches.target,
      method='decode',
    )[:2]
    num_B, token_B = rejection_sampling.verify(
      self.keys(state, _ACCEPT, self.draft_tokens),
      self.keys(state, _CORRECT, self.tokens_per_step),
      draft_BK,
      draft_probs_BKV,
      self.probabilities(logits_BMV, sampler),
    )
    tokens_BM = jnp.pad(draft_BK, ((0, 0), (0, 1)))
    tokens_BM = tokens_BM.at[jnp.arange(self.batch_size), num_B].set(token_B)
    logprobs_BM = jnp.take_along_axis(
      jax.nn.log_softmax(logits_BMV), tokens_BM[..., None], axis=-1
    )[..., 0]
    state = dataclasses.replace(
      state,
      cache=Caches(target_cache, draft_cache),
      passes=state.passes + ~state.done,
    )
    return self.extend(state, tokens_BM, logprobs_BM, num_B)

  def propose(
    self, params: Params, state: State, sampler: sampling.Sampler
  ) -> tuple[jax.Array, jax.Array, transformer.Cache]:
    """Drafted tokens [B, K], the probabilities they have [B, K, V], its cache.

    The first step reads the two last tokens of a row: if all drafted ones were
    accepted, the last of these has not been read yet.
    """
    keys_BK = self.keys(state, _DRAFT, self.draft_tokens)
    last_B = self.last(state).positions[:, 0]
    caches: Any = state.cache

    def step(tokens_BN, first_B, cache, keys_B):
      logits_BNV, cache = gemini.apply(
        self.draft_model,
        params.draft,
        self.sequence(state, tokens_BN, first_B),
        cache=cache,
        method='decode',
      )[:2]
      logits_BV = self.as_target(logits_BNV[:, -1])
      probs_BV = self.probabilities(logits_BV[:, None], sampler)[:, 0]
      return sampling.draw(keys_B, probs_BV), probs_BV, cache

    def next_step(carry, inputs):
      token_B, cache = carry
      keys_B, i = inputs
      token_B, probs_BV, cache = step(
        token_B[:, None], last_B + i, cache, keys_B
      )
      return (token_B, cache), (token_B, probs_BV)

    places_B2 = last_B[:, None] - jnp.array([[1, 0]])
    tokens_B2 = jnp.take_along_axis(
      state.tokens, jnp.maximum(places_B2, 0), axis=1
    )
    token_B, probs_BV, cache = step(
      tokens_B2, last_B - 1, caches.draft, keys_BK[:, 0]
    )
    (_, cache), (tokens_KB, probs_KBV) = jax.lax.scan(
      next_step,
      (token_B, cache),
      (keys_BK[:, 1:].T, jnp.arange(1, self.draft_tokens)),
    )
    return (
      jnp.concatenate([token_B[None], tokens_KB]).T,
      jnp.concatenate([probs_BV[None], probs_KBV]).swapaxes(0, 1),
      cache,
    )

  def sequence(
    self, state: State, tokens_BN: jax.Array, first_B: jax.Array
  ) -> batch_lib.Sequence:
    """Tokens at the positions from `first_B` on.

    Padding in rows that are done, where a row has no slots, and where a prompt
    has been read already: with `prefix`, what comes later was seen then.
    """
    positions_BN = first_B[:, None] + jnp.arange(tokens_BN.shape[1])[None]
    is_token_BN = (positions_BN >= state.starts[:, None] - 1) & (
      positions_BN < self.length
    )
    is_token_BN &= ~state.done[:, None]
    return batch_lib.Sequence(
      tokens_BN,
      jnp.clip(positions_BN, 0, self.length - 1),
      is_token_BN.astype(jnp.int32),
    )

  def as_target(self, logits_BV: jax.Array) -> jax.Array:
    """Logits of the draft model for the rows of the target's token table.

    Tables of one tokenizer differ at most in what comes after its tokens.
    """
    num = self.model.config.vocab_size
    assert num, 'the tokenizer sets model.vocab_size'
    missing = max(num - logits_BV.shape[1], 0)
    return jnp.pad(
      logits_BV[:, :num], ((0, 0), (0, missing)), constant_values=-jnp.inf
    )

  def probabilities(
    self, logits_BMV: jax.Array, sampler: sampling.Sampler
  ) -> jax.Array:
    """float32[B, M, V], what tokens are drawn by; one-hot where greedy."""
    _, num, vocab_size = logits_BMV.shape
    probs = sampling.distribution(
      logits_BMV.reshape(-1, vocab_size),
      jax.tree.map(lambda leaf: jnp.repeat(leaf, num), sampler),
      self.forbidden_V,
    )
    return probs.reshape(logits_BMV.shape)

  def keys(self, state: State, purpose: int, num: int) -> jax.Array:
    """Random keys of the next `num` positions of each row, [B, num].

    Those of a rejected draft are used again. They have decided nothing: the
    tokens of a row depend on the keys of their own positions and earlier ones.
    """

    def one(key, position):
      return jax.random.fold_in(jax.random.fold_in(key, position), purpose)

    positions_BN = state.lengths[:, None] + jnp.arange(num)[None]
    return jax.vmap(jax.vmap(one, (None, 0)))(state.keys, positions_BN)

  def extend(
    self,
    state: State,
    tokens_BM: jax.Array,
    logprobs_BM: jax.Array,
    num_B: jax.Array,
  ) -> State:
    """The state with the first `num_B` + 1 of these tokens in its rows.

    They end at the first one that ends a text, and at the row's limit.
    """
    index_1M = jnp.arange(self.tokens_per_step)[None]
    places_BM = state.lengths[:, None] + index_1M
    is_end_BM = self.ends(tokens_BM.reshape(-1)).reshape(tokens_BM.shape)
    ends_before_BM = jnp.cumsum(is_end_BM, axis=1) - is_end_BM > 0
    is_new_BM = (
      (index_1M <= num_B[:, None])
      & ~ends_before_BM
      & (places_BM < state.limits[:, None])
      & ~state.done[:, None]
    )
    count_B = jnp.sum(is_new_BM, axis=1)
    rows_B1 = jnp.arange(self.batch_size)[:, None]
    slots_BM = jnp.where(is_new_BM, places_BM, self.length)
    put = lambda old_BT, new_BM: old_BT.at[rows_B1, slots_BM].set(
      new_BM, mode='drop'
    )
    lengths_B = state.lengths + count_B
    return dataclasses.replace(
      state,
      tokens=put(state.tokens, tokens_BM),
      logprobs=put(state.logprobs, logprobs_BM),
      lengths=lengths_B,
      done=state.done
      | jnp.any(is_new_BM & is_end_BM, axis=1)
      | (lengths_B >= state.limits),
      accepted=state.accepted + jnp.minimum(num_B, count_B),
    )


def report(decoder: Speculative, state: State) -> str:
  """How well the draft did, of a batch that is written."""
  passes, accepted, new = (
    int(np.sum(values))
    for values in processes.fetch(
      (state.passes, state.accepted, state.lengths - state.starts)
    )
  )
  drafted = passes * decoder.draft_tokens
  return (
    f'generate.draft: {accepted:,} of {drafted:,} drafted tokens accepted '
    f'({100 * accepted / max(drafted, 1):.0f} %), '
    f'{new / max(passes, 1):.2f} tokens for each pass of the model'
  )
