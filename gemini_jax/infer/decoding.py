"""Decoding with a cache: prefill, and one step that all methods share.

B rows, T slots of the decoder's cache, C tokens of a prefill chunk, S encoder
length, D width, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.infer import decoding_state, sampling
from gemini_jax.layers import attention
from gemini_jax.models import gemini, transformer
from gemini_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Decoder:
  """A model with the sizes that its compiled functions have.

  `encode`, `prefill`, `insert`, `release` and the loop of `decode` compile once
  for equal fields, whatever the prompts. Parameters are always arguments, on
  whatever devices they are. Rows never attend to one another, nor to padding.

  Attributes:
    model: decoder-only or encoder-decoder.
    batch_size: B; fewer prompts leave rows free.
    pad_id: fills empty places.
    eos_id: ends a row.
    end_ids: others that end a row.
    forbidden: ids that are never generated.
    prefill_chunk: C, tokens of a prompt that are read at once.
    memory_length: S, of an encoder-decoder.
    prefix: attention within the prompt is bidirectional, so it is read in one
      piece.
    num_slots: T, slots of the cache; None: `model.max_length`.
  """

  model: gemini.Gemini
  batch_size: int
  pad_id: int
  eos_id: int
  end_ids: tuple[int, ...] = ()
  forbidden: tuple[int, ...] = ()
  prefill_chunk: int = 64
  memory_length: int = 0
  prefix: bool = False
  num_slots: int | None = None

  def __post_init__(self):
    config = self.model.config
    config_lib.check(
      config.position != 'learned' or self.memory_length <= config.max_length,
      f'data.inputs_length={self.memory_length} must be at most '
      f"model.max_length={config.max_length} with model.position='learned'",
    )

  @property
  def length(self) -> int:
    """T, tokens that a row can have."""
    return self.num_slots or self.model.config.max_length

  @property
  def tokens_per_step(self) -> int:
    """The most tokens by which a step makes a row longer."""
    return 1

  @property
  def encodes(self) -> bool:
    """Whether the decoder attends to the output of an encoder."""
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
  ) -> decoding_state.State:
    """The state after reading the prompts, and inputs with an encoder.

    Args:
      params: of the model.
      prompts: token ids of each row, special ones included; at most B.
      max_tokens: new tokens of a row; fewer where fewer fit.
      inputs: what the encoder reads for each row.
      seed: of the randomness.
      samples: a number for each row. The draws of a row depend on the seed,
        this number and the position, and not on the other rows.
      latents: z of each row, for a model that has one.
      media: at the placeholders of the inputs, with an encoder, or else of the
        prompts; of B rows.

    Raises:
      ConfigError: a prompt or an input is too long.
    """
    self.check_lengths(prompts, inputs)
    memory = memory_BSD = soft_BTD = None
    if self.encodes:
      memory = batch_lib.plain_sequence(
        *batch_lib.pad_rows(
          inputs or (), self.batch_size, self.memory_length, self.pad_id
        )
      )
      memory_BSD = self.encode(
        params, dataclasses.replace(memory, media=media or {})
      )
    tokens_BT, lengths_B = batch_lib.pad_rows(
      prompts, self.batch_size, self.length, self.pad_id
    )
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
      if prompts:
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
    """Raises ConfigError for a row that is too long or leaves no free slot."""
    for name, rows, limit, size in (
      ('model.max_length', prompts, self.length - 1, self.length),
      ('data.inputs_length', inputs or (), *(self.memory_length,) * 2),
    ):
      for row in rows:
        config_lib.check(
          len(row) <= limit,
          f'generate.prompt has {len(row)} tokens; with {name}={size} at '
          f'most {limit} fit',
        )

  def decode(
    self,
    params: Any,
    state: decoding_state.State,
    sampler: sampling.Sampler,
    num_tokens: int,
  ) -> decoding_state.State:
    """Up to `num_tokens` more tokens in each row; `state` is used up."""
    rows = sampler.rows(self.batch_size)
    return self.decode_loop(params, state, rows, np.int32(num_tokens))

  def insert(
    self,
    params: Any,
    state: decoding_state.State,
    row: int,
    prompt: np.ndarray,
    *,
    inputs: np.ndarray | None = None,
    latent: np.ndarray | None = None,
    sample: int = 0,
    **kwargs: Any,
  ) -> decoding_state.State:
    """The state with a new prompt in a free row; `state` is used up.

    The other rows are not changed: they go on as if alone. The prompt is
    read by a batch of one row.

    Args:
      params: of the model.
      state: of a batch of this decoder.
      row: index of a row that was released or never used.
      prompt: token ids, special ones included.
      inputs: what the encoder reads.
      latent: z of the row, for a model that has one.
      sample: the row's number, as in `samples` of `start`.
      **kwargs: `max_tokens`, `seed` and `media` of `start`.

    Raises:
      ConfigError: the prompt or the inputs are too long.
    """
    single = dataclasses.replace(self, batch_size=1)
    row_state = single.start(
      params,
      [prompt],
      inputs=None if inputs is None else [inputs],
      latents=None if latent is None else latent[None],
      samples=[sample],
      **kwargs,
    )
    return decoding_state.insert(state, row_state, np.int32(row))

  def release(
    self, state: decoding_state.State, row: int
  ) -> decoding_state.State:
    """The state with a row free for another prompt; `state` is used up."""
    return decoding_state.release(state, np.int32(row))

  def empty_cache(self) -> transformer.Cache:
    """A cache without entries, laid out on the mesh by the rules."""
    cache = gemini.init_cache(
      self.model.config, self.batch_size, self.length, self.memory_length
    )
    return jax.tree.map(
      lambda leaf: sharding.constrain(leaf, attention.CACHE_AXES), cache
    )

  @functools.partial(jax.jit, static_argnums=0)
  def encode(self, params: Any, memory: batch_lib.Sequence) -> jax.Array:
    """The encoder's output, [B, S, D]."""
    memory_BSD, _ = gemini.apply(self.model, params, memory, method='encode')
    return memory_BSD

  @functools.partial(jax.jit, static_argnums=0)
  def encode_media(
    self, params: Any, sequence: batch_lib.Sequence
  ) -> jax.Array:
    """Soft tokens at placeholders, 0 elsewhere, [B, T, D]."""
    soft_BTD: Any = gemini.apply(
      self.model, params, sequence, method='media_embeddings'
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
  ) -> decoding_state.State:
    """The state after reading the prompts, chunk by chunk."""
    size = self.length if self.prefix else min(self.prefill_chunk, self.length)
    # Whole chunks: dynamic_slice would move one that reaches past the end.
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
      # The logits are not used, so XLA does not compute them.
      return gemini.apply(
        self.model,
        params,
        sequence,
        memory=memory,
        prefix_BT=prefix_BT,
        latent_BZ=latent_BZ,
        soft_BTD=soft_BCD,
        cache=cache,
        method='decode',
      )[1]

    num_chunks = (jnp.max(lengths_B) + size - 1) // size
    cache = self.empty_cache()
    if memory_BSD is not None:
      keys: Any = gemini.apply(
        self.model, params, memory_BSD, method='cross_cache'
      )
      cache = dataclasses.replace(cache, cross_attention=keys)
    key = jax.random.key(seed)
    state = decoding_state.State(
      tokens=tokens_BT,
      logprobs=jnp.zeros(tokens_BT.shape, jnp.float32),
      starts=lengths_B,
      lengths=lengths_B,
      limits=limits_B,
      done=lengths_B == 0,
      keys=jax.vmap(jax.random.fold_in, (None, 0))(key, samples_B),
      cache=jax.lax.fori_loop(0, num_chunks, read, cache),
      memory=memory,
      latent=latent_BZ,
    )
    return decoding_state.constrain(state)

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
  def decode_loop(
    self,
    params: Any,
    state: decoding_state.State,
    sampler: sampling.Sampler,
    num_tokens: jax.Array,
  ) -> decoding_state.State:
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
      return i + 1, state.append(token_B, logprob_B, self.ends(token_B))

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]

  def decode_step(
    self, params: Any, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, decoding_state.State]:
    """Scores and logits of each row's next token, float32[B, V] each.

    Tokens are chosen by the scores; reported log-probabilities are those of the
    model's logits. Here both are the same.

    This reads the last token of each row. Where prefill has read it already,
    its cache entry is overwritten with the same values.
    """
    logits_B1V, cache = gemini.apply(
      self.model,
      params,
      self.last(state),
      memory=state.memory,
      latent_BZ=state.latent,
      cache=state.cache,
      method='decode',
    )[:2]
    logits_BV = logits_B1V[:, 0]
    return logits_BV, logits_BV, dataclasses.replace(state, cache=cache)

  def ends(self, token_B: jax.Array) -> jax.Array:
    """bool[B], tokens that end their row."""
    ends_1E = jnp.array([[self.eos_id, *self.end_ids]])
    return jnp.any(token_B[:, None] == ends_1E, axis=1)

  def draw_keys(self, state: decoding_state.State) -> jax.Array:
    """The random key of each row's next token, key[B]."""
    return jax.vmap(jax.random.fold_in)(state.keys, state.lengths)

  def last(self, state: decoding_state.State) -> batch_lib.Sequence:
    """The last token of each row, [B, 1]; padding in rows that are done."""
    last_B1 = jnp.maximum(state.lengths - 1, 0)[:, None]
    return batch_lib.Sequence(
      jnp.take_along_axis(state.tokens, last_B1, axis=1),
      last_B1,
      (~state.done)[:, None].astype(jnp.int32),
    )
