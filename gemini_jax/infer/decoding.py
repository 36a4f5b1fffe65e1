"""Decoding with a cache: one state, and one step that everything shares.

B rows, T slots of the decoder's cache, C tokens of a prefill chunk, S encoder
length, D width, V vocabulary.
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
from gemini_jax.infer import sampling
from gemini_jax.models import gemini, transformer


@flax.struct.dataclass
class State:
  """Rows that are being written.

  Attributes:
    tokens: int32[B, T], the prompt, what was generated, then padding.
    logprobs: float32[B, T], log-probability of each generated token under
      the model itself, before temperature and filters; 0 elsewhere.
    starts: int32[B], tokens of the prompt.
    lengths: int32[B], tokens so far.
    limits: int32[B], the length at which a row is done.
    done: bool[B], rows that are written no further.
    keys: key[B], folded with a position to draw the token there.
    cache: keys and values of all but perhaps the last token.
    memory: the sequence that the encoder read, or None.
    latent: float32[B, Z], z of each row, or None.
    written: float32[B, T, Z], z of the medium that each row writes, at its
      placeholders; None: rows are text.
  """

  tokens: jax.Array
  logprobs: jax.Array
  starts: jax.Array
  lengths: jax.Array
  limits: jax.Array
  done: jax.Array
  keys: jax.Array
  cache: transformer.Cache
  memory: batch_lib.Sequence | None = None
  latent: jax.Array | None = None
  written: jax.Array | None = None

  def append(
    self, token_B: jax.Array, logprob_B: jax.Array, end_B: jax.Array
  ) -> 'State':
    """The state with one token more in every row that is not done.

    Args:
      token_B: the tokens.
      logprob_B: their log-probabilities.
      end_B: rows that are done with this token, beside those at their limit.
    """
    rows_B = jnp.arange(self.tokens.shape[0])
    slots_B = jnp.where(self.done, self.tokens.shape[1], self.lengths)
    lengths_B = self.lengths + ~self.done
    return dataclasses.replace(
      self,
      tokens=self.tokens.at[rows_B, slots_B].set(token_B, mode='drop'),
      logprobs=self.logprobs.at[rows_B, slots_B].set(logprob_B, mode='drop'),
      lengths=lengths_B,
      done=self.done | end_B | (lengths_B >= self.limits),
    )


@dataclasses.dataclass(frozen=True)
class Decoder:
  """A model with the sizes that its compiled functions have.

  `encode`, `prefill` and the loop of `decode` compile once for equal fields,
  whatever the prompts. Parameters are always arguments: a tree of arrays,
  wherever they are. Rows never see one another, nor any padding.

  Attributes:
    model: decoder-only or encoder-decoder.
    batch_size: B; fewer prompts leave rows empty.
    pad_id: fills empty places.
    eos_id: ends a row.
    forbidden: ids that are never generated.
    prefill_chunk: C, tokens of a prompt that are read at once.
    memory_length: S, of an encoder-decoder.
    prefix: the prompt is seen in both directions, and so read in one piece.
  """

  model: gemini.Gemini
  batch_size: int
  pad_id: int
  eos_id: int
  forbidden: tuple[int, ...] = ()
  prefill_chunk: int = 64
  memory_length: int = 0
  prefix: bool = False

  def __post_init__(self):
    config = self.model.config
    config_lib.check(
      config.position != 'learned' or self.memory_length <= config.max_length,
      f'data.inputs_length={self.memory_length} must be at most '
      f"model.max_length={config.max_length} with model.position='learned'",
    )

  @property
  def length(self) -> int:
    """T, tokens of a row at most."""
    return self.model.config.max_length

  @property
  def encodes(self) -> bool:
    """Whether the decoder reads what an encoder says."""
    return self.model.config.cross

  @property
  def forbidden_V(self) -> np.ndarray:
    """bool[V], tokens that are never generated."""
    vocab_size = self.model.config.vocab_size
    assert vocab_size, 'the tokenizer sets model.vocab_size'
    forbidden_V = np.zeros(vocab_size, bool)
    forbidden_V[list(self.forbidden)] = True
    return forbidden_V

  def start(
    self,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    max_tokens: int,
    inputs: Sequence[np.ndarray] | None = None,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    latents: np.ndarray | None = None,
    media: Mapping[str, batch_lib.Media] | None = None,
  ) -> State:
    """Reads the prompts, and inputs where there is an encoder.

    Args:
      params: of the model.
      prompts: token ids of each row, special ones included; at most B.
      max_tokens: new tokens of a row at most; fewer where fewer fit.
      inputs: what the encoder reads for each row.
      seed: of the randomness.
      samples: a number for each row. What a row draws depends on the seed,
        this number and the position, never on the other rows.
      latents: z of each row, for a model that has one.
      media: what the encoder reads beside the inputs, or the decoder beside
        the prompts; of B rows.

    Raises:
      ConfigError: a prompt or an input is too long.
    """
    self.check_lengths(prompts, inputs)
    memory = memory_BSD = soft_BTD = None
    if self.encodes:
      memory = batch_lib.plain_sequence(
        *self.pad(inputs or (), self.memory_length)
      )
      memory_BSD = self.encode(
        params, dataclasses.replace(memory, media=media or {})
      )
    tokens_BT, lengths_B = self.pad(prompts, self.length)
    if media and not self.encodes:
      whole = batch_lib.plain_sequence(tokens_BT, lengths_B)
      soft_BTD = self.encode_media(
        params, dataclasses.replace(whole, media=media)
      )
    limits_B = np.minimum(lengths_B + max_tokens, self.length)
    samples_B = np.zeros(self.batch_size, np.int32)
    samples_B[: len(prompts)] = 0 if samples is None else samples
    latent_BZ = None
    if dim := self.model.config.latent.dim:
      latent_BZ = np.zeros((self.batch_size, dim), np.float32)
      latent_BZ[: len(prompts)] = latents
    return self.prefill(
      params,
      tokens_BT,
      lengths_B,
      limits_B.astype(np.int32),
      np.uint32(seed % 2**32),
      samples_B,
      memory,
      memory_BSD,
      latent_BZ,
      soft_BTD,
    )

  def check_lengths(
    self,
    prompts: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray] | None = None,
  ):
    """Raises ConfigError if one is too long, or leaves nothing to write."""
    for name, rows, most, limit in (
      ('model.max_length', prompts, self.length - 1, self.length),
      ('data.inputs_length', inputs or (), *(self.memory_length,) * 2),
    ):
      for row in rows:
        config_lib.check(
          len(row) <= most,
          f'generate.prompt has {len(row)} tokens; with {name}={limit} at '
          f'most {most} fit',
        )

  def decode(
    self, params: Any, state: State, sampler: sampling.Sampler, num_tokens: int
  ) -> State:
    """Up to `num_tokens` more tokens in every row; `state` is used up."""
    rows = sampler.rows(self.batch_size)
    return self.decode_loop(params, state, rows, np.int32(num_tokens))

  def pad(
    self, rows: Sequence[np.ndarray], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """int32[B, length] with the rows from the left, and int32[B] lengths."""
    assert len(rows) <= self.batch_size, 'more rows than the batch has'
    tokens_BT = np.full((self.batch_size, length), self.pad_id, np.int32)
    lengths_B = np.zeros(self.batch_size, np.int32)
    for i, row in enumerate(rows):
      tokens_BT[i, : len(row)] = row
      lengths_B[i] = len(row)
    return tokens_BT, lengths_B

  @functools.partial(jax.jit, static_argnums=0)
  def encode(self, params: Any, memory: batch_lib.Sequence) -> jax.Array:
    """The encoder's output, [B, S, D]."""
    memory_BSD, _ = self.model.apply(
      {'params': params}, memory, method='encode'
    )
    return memory_BSD

  @functools.partial(jax.jit, static_argnums=0)
  def encode_media(
    self, params: Any, sequence: batch_lib.Sequence
  ) -> jax.Array:
    """Soft tokens at the placeholders of prompts, [B, T, D]."""
    soft_BTD: Any = self.model.apply(
      {'params': params}, sequence, method='media_embeddings'
    )
    return soft_BTD

  @functools.partial(jax.jit, static_argnums=0)
  def prefill(
    self,
    params: Any,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    limits_B: jax.Array,
    seed: jax.Array,
    samples_B: jax.Array,
    memory: batch_lib.Sequence | None = None,
    memory_BSD: jax.Array | None = None,
    latent_BZ: jax.Array | None = None,
    soft_BTD: jax.Array | None = None,
  ) -> State:
    """The state after the prompts were read, chunk by chunk."""
    size = self.length if self.prefix else min(self.prefill_chunk, self.length)
    # Whole chunks: a slice at the end must not be moved to fit.
    padding = -self.length % size
    padded_BT = jnp.pad(
      tokens_BT, ((0, 0), (0, padding)), constant_values=self.pad_id
    )
    padded_BTD = None
    if soft_BTD is not None:
      padded_BTD = jnp.pad(soft_BTD, ((0, 0), (0, padding), (0, 0)))
    prefix_BT = None
    if self.prefix:
      prefix_BT = jnp.arange(self.length)[None, :] < lengths_B[:, None]

    def read(i, cache):
      tokens_BC = jax.lax.dynamic_slice_in_dim(padded_BT, i * size, size, 1)
      positions_1C = (i * size + jnp.arange(size))[None, :]
      sequence = batch_lib.Sequence(
        tokens_BC,
        jnp.broadcast_to(
          jnp.minimum(positions_1C, self.length - 1), tokens_BC.shape
        ),
        (positions_1C < lengths_B[:, None]).astype(jnp.int32),
      )
      soft_BCD = None
      if padded_BTD is not None:
        soft_BCD = jax.lax.dynamic_slice_in_dim(padded_BTD, i * size, size, 1)
      # The logits are not used, so they are not computed.
      return self.model.apply(
        {'params': params},
        sequence,
        memory=memory,
        prefix_BT=prefix_BT,
        latent_BZ=latent_BZ,
        soft_BTD=soft_BCD,
        cache=cache,
        method='decode',
      )[1]

    cache = gemini.init_cache(
      self.model.config, self.batch_size, self.length, self.memory_length
    )
    if memory_BSD is not None:
      keys: Any = self.model.apply(
        {'params': params}, memory_BSD, method='cross_cache'
      )
      cache = dataclasses.replace(cache, cross_attention=keys)
    chunks = (jnp.max(lengths_B) + size - 1) // size
    key = jax.random.key(seed)
    return State(
      tokens=tokens_BT,
      logprobs=jnp.zeros(tokens_BT.shape, jnp.float32),
      starts=lengths_B,
      lengths=lengths_B,
      limits=limits_B,
      done=lengths_B == 0,
      keys=jax.vmap(jax.random.fold_in, (None, 0))(key, samples_B),
      cache=jax.lax.fori_loop(0, chunks, read, cache),
      memory=memory,
      latent=latent_BZ,
    )

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
  def decode_loop(
    self,
    params: Any,
    state: State,
    sampler: sampling.Sampler,
    num_tokens: jax.Array,
  ) -> State:
    """`decode`, compiled once for any number of tokens."""

    def unfinished(carry):
      i, state = carry
      return (i < num_tokens) & ~jnp.all(state.done)

    def body(carry):
      i, state = carry
      scores_BV, logits_BV, state = self.decode_step(params, state)
      key_B = self.draw_keys(state)
      token_B = sampling.sample(key_B, scores_BV, sampler, self.forbidden_V)
      logprob_B = jnp.take_along_axis(
        jax.nn.log_softmax(logits_BV), token_B[:, None], axis=-1
      )[:, 0]
      return i + 1, state.append(token_B, logprob_B, token_B == self.eos_id)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]

  def decode_step(
    self, params: Any, state: State
  ) -> tuple[jax.Array, jax.Array, State]:
    """Scores and logits of each row's next token, float32[B, V] both.

    Tokens are chosen by the scores. The logits are the model's own; here both
    are the same.

    The last token of each row is read here. Where prefill has read it
    already, its cache entry is written again as it was.
    """
    logits_B1V, cache = self.model.apply(
      {'params': params},
      self.last(state),
      memory=state.memory,
      latent_BZ=state.latent,
      cache=state.cache,
      method='decode',
    )[:2]
    logits_BV = logits_B1V[:, 0]
    return logits_BV, logits_BV, dataclasses.replace(state, cache=cache)

  def draw_keys(self, state: State) -> jax.Array:
    """What each row's next token is drawn with, key[B]."""
    return jax.vmap(jax.random.fold_in)(state.keys, state.lengths)

  def last(self, state: State) -> batch_lib.Sequence:
    """The last token of each row, [B, 1]; rows that are done are padding."""
    last_B1 = jnp.maximum(state.lengths - 1, 0)[:, None]
    return batch_lib.Sequence(
      jnp.take_along_axis(state.tokens, last_B1, axis=1),
      last_B1,
      (~state.done)[:, None].astype(jnp.int32),
    )
