"""Generated pictures and sounds: sequences of z, then the autoencoder.

B rows, T slots, D width, V vocabulary, N soft tokens of the largest medium, Z
numbers in a z, H x W pixels of C channels, F frames of M bands.
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
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.data import transforms
from gemini_jax.infer import (
  capacity,
  decoding,
  decoding_state,
  latents,
  sampling,
)
from gemini_jax.infer import request as request_lib
from gemini_jax.models import gemini, media_embeddings, mixture
from gemini_jax.parallel import processes


@dataclasses.dataclass(frozen=True)
class MediaSample:
  """A generated medium.

  Attributes:
    prompt: text of the request.
    values: a picture uint8[H, W, C], or a log-mel spectrogram float32[F, M].
    z: float32[n, Z], what the autoencoder decoded.
  """

  prompt: str
  values: np.ndarray
  z: np.ndarray


@flax.struct.dataclass
class Params:
  """Parameters of a model and of how z is drawn.

  Attributes:
    model: of the model.
    temperature: multiplies the deviations of z; 0: the mean of the likeliest
      component.
    guidance: weight of classifier-free guidance; 0: off.
  """

  model: Any
  temperature: Any
  guidance: Any


@dataclasses.dataclass(frozen=True)
class MediaDecoder(decoding.Decoder):
  """A decoder whose rows are media of one kind.

  Attributes:
    kind: of the media.
    guided: whether the second half of the rows repeats the first without
      inputs, for classifier-free guidance; it gets the tokens and z that the
      first half generates.
  """

  kind: str = 'image'
  guided: bool = False

  def start(
    self, params: Params, *args: Any, **kwargs: Any
  ) -> decoding_state.State:
    """As `Decoder.start`."""
    state = super().start(params.model, *args, **kwargs)
    dim = media_embeddings.part(self.model.config, self.kind).autoencoder.dim
    shape = (self.batch_size, self.length, dim)
    return dataclasses.replace(
      state, media_latents=jnp.zeros(shape, jnp.float32)
    )

  def decode_step(
    self, params: Params, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, decoding_state.State]:
    """As `Decoder.decode_step`; the state also gets z of the next token."""
    assert state.media_latents is not None
    apply: Any = functools.partial(gemini.apply, self.model, params.model)
    rows_B = jnp.arange(self.batch_size)
    last = self.last(state)
    z_B1Z = state.media_latents[rows_B, last.positions[:, 0]][:, None]
    is_medium_B1 = last.tokens == self.model.config.placeholder(self.kind)
    soft_B1D = apply(self.kind, z_B1Z, method=_embed_latents)
    x_B1D, cache, _ = apply(
      last,
      memory=state.memory,
      latent_BZ=state.latent,
      soft_BTD=jnp.where(is_medium_B1[..., None], soft_B1D, 0),
      cache=state.cache,
      method='decode_hidden',
    )
    logits_BV = apply(x_B1D, method='logits')[:, 0]
    scores_BV = self.restrict(logits_BV, state)
    density = jax.tree.map(
      lambda leaf: leaf[:, 0], apply(self.kind, x_B1D, method=_density)
    )
    # Other keys than those of the tokens.
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.draw_keys(state), 1)
    if self.guided:
      half = self.batch_size // 2
      conditional, unconditional = (
        jax.tree.map(lambda leaf, part=part: leaf[part], density)
        for part in (slice(half), slice(half, None))
      )
      draw = lambda conditional, unconditional, key: mixture.guided(
        conditional,
        unconditional,
        key,
        params.temperature,
        weight=params.guidance,
      )
      twice = lambda leaf: jnp.concatenate([leaf, leaf])
      z_BZ = twice(jax.vmap(draw)(conditional, unconditional, keys_B[:half]))
      scores_BV = twice(scores_BV[:half])
    else:
      draw = lambda density, key: mixture.sample(
        density, key, params.temperature
      )
      z_BZ = jax.vmap(draw)(density, keys_B)
    media_latents = state.media_latents.at[rows_B, state.lengths].set(
      z_BZ, mode='drop'
    )
    state = dataclasses.replace(state, cache=cache, media_latents=media_latents)
    return scores_BV, logits_BV, state

  def draw_keys(self, state: decoding_state.State) -> jax.Array:
    """By the position in the medium, so that both halves draw the same."""
    count_B = state.lengths - state.starts
    return jax.vmap(jax.random.fold_in)(state.keys, count_B)

  def restrict(
    self, logits_BV: jax.Array, state: decoding_state.State
  ) -> jax.Array:
    """-inf for tokens that cannot come next.

    A picture has all of its soft tokens; a sound may end after the first.
    """
    config = self.model.config
    limit = config.soft_tokens(self.kind)
    count_B1 = (state.lengths - state.starts)[:, None]
    goes_on_B1 = count_B1 < limit
    ends_B1 = ~goes_on_B1 if self.kind == 'image' else count_B1 > 0
    ids_1V = jnp.arange(logits_BV.shape[1])[None]
    allowed_BV = (ids_1V == config.placeholder(self.kind)) & goes_on_B1
    allowed_BV |= (ids_1V == self.eos_id) & ends_B1
    return jnp.where(allowed_BV, logits_BV, -jnp.inf)

  @functools.partial(jax.jit, static_argnums=0)
  def decode_latents(
    self, params: Params, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Media, [B, H, W, C] or [B, F, M, 1]; their z, [B, N, Z]; counts of z."""
    assert state.media_latents is not None
    config = self.model.config
    slots_1N = jnp.arange(config.soft_tokens(self.kind))[None]
    at_BN = jnp.minimum(state.starts[:, None] + slots_1N, self.length - 1)
    tokens_BN = jnp.take_along_axis(state.tokens, at_BN, axis=1)
    real_BN = tokens_BN == config.placeholder(self.kind)
    count_B = jnp.sum(real_BN, axis=1)
    z_BNZ = jnp.take_along_axis(state.media_latents, at_BN[..., None], axis=1)
    z_BNZ = jnp.where(real_BN[..., None], z_BNZ, 0)
    sizes_B2 = None
    if self.kind == 'audio':
      rows, columns = media_embeddings.patch(config, self.kind)
      sizes_B2 = jnp.stack(
        [count_B * rows, jnp.where(count_B > 0, columns, 0)], axis=-1
      )
    values: Any = gemini.apply(
      self.model,
      params.model,
      self.kind,
      z_BNZ,
      sizes_B2,
      method=_decode_latents,
    )
    return values, z_BNZ, count_B


def _embed_latents(
  model: gemini.Gemini, kind: str, z_BTZ: jax.Array
) -> jax.Array:
  return model.perception.embed_latents(kind, z_BTZ)


def _density(model: gemini.Gemini, kind: str, x_BTD: jax.Array) -> Any:
  return model.perception.density(kind, x_BTD)


def _decode_latents(
  model: gemini.Gemini, kind: str, z_BNZ: jax.Array, sizes_B2: Any
) -> jax.Array:
  return model.perception.decode_latents(kind, z_BNZ, sizes_B2)


def generate(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  kind: str,
  requests: Sequence[request_lib.Request],
  numbers: Sequence[int] | None = None,
) -> list[MediaSample]:
  """`generate.count` media for each request, those of a request together.

  The same seed gives a request the same media, whatever the others are; equal
  requests get the same ones, unless `numbers` differ.

  Args:
    config: its sections `generate` and `data`.
    model: of the run.
    params: of the model.
    tokenizer: of the model.
    kind: of the media to generate.
    requests: inputs of tasks that write that kind.
    numbers: one for each request, which then gets one medium instead of
      `generate.count`: the one with that number.

  Raises:
    ConfigError: inputs and medium together do not fit into the model.
  """
  options = config.generate
  rows = [(request, i) for request in requests for i in range(options.count)]
  if numbers is not None:
    rows = list(zip(requests, numbers, strict=True))
  request_lib.warn_unknown(request.unknown for request in requests)
  decoder = _decoder(config, model, tokenizer, kind, rows)
  size = decoder.batch_size // (2 if decoder.guided else 1)
  samples = []
  for first in range(0, len(rows), size):
    samples += _generate_batch(
      config, decoder, params, tokenizer, rows[first : first + size]
    )
  return samples


def _decoder(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  kind: str,
  rows: Sequence[tuple[request_lib.Request, int]],
) -> MediaDecoder:
  """A decoder with slots and rows for these requests, as many as fit."""
  guided = config.generate.guidance > 0
  prompts = [
    transforms.question(request.tokens, config.data, tokenizer).decoder
    for request, _ in rows
  ]
  longest = max(map(len, prompts), default=0)
  num, limit = model.config.soft_tokens(kind), model.config.max_length
  config_lib.check(
    longest + num <= limit,
    f'the inputs have {longest} tokens and a generated {kind} {num}: together '
    f'more than model.max_length={limit}',
  )
  num_slots = capacity.slots(longest + num + 1, limit)
  memory_length = config.data.inputs_length if model.config.cross else 0
  max_rows = capacity.max_rows(
    dataclasses.replace(config, model=model.config), num_slots, memory_length
  )
  copies = 2 if guided else 1
  return MediaDecoder(
    model,
    copies * batch_lib.padded_size(len(rows), max(1, max_rows // copies)),
    pad_id=tokenizer.pad_id,
    eos_id=tokenizer.eos_id,
    prefill_chunk=config.generate.prefill_chunk,
    memory_length=memory_length,
    prefix=config.data.objective == 'prefix',
    num_slots=num_slots,
    kind=kind,
    guided=guided,
  )


def _generate_batch(
  config: config_lib.Config,
  decoder: MediaDecoder,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[tuple[request_lib.Request, int]],
) -> list[MediaSample]:
  """A medium for each row of one batch."""
  options, model = config.generate, decoder.model
  batch = list(rows)
  if decoder.guided:
    # The second half repeats the first without its inputs.
    blank = request_lib.Request('', np.zeros(0, np.int32))
    batch += [(blank, 0)] * (decoder.batch_size // 2 - len(rows))
    batch += [(blank, number) for _, number in rows]
  requests = [request for request, _ in batch]
  questions = [
    transforms.question(request.tokens, config.data, tokenizer)
    for request in requests
  ]
  media_params = Params(
    params, np.float32(options.temperature), np.float32(options.guidance)
  )
  max_tokens = model.config.soft_tokens(decoder.kind) + 1
  state = decoder.start(
    media_params,
    [question.decoder for question in questions],
    max_tokens=max_tokens,
    inputs=[q.encoder for q in questions if q.encoder is not None],
    seed=options.seed,
    samples=[number for _, number in batch],
    latents=latents.draw_request_latents(
      config, model, params, tokenizer, batch
    ),
    media=request_lib.stack_media(model.config, requests, decoder.batch_size),
  )
  state = decoder.decode(
    media_params, state, sampling.Sampler.from_config(options), max_tokens
  )
  values, z, counts = processes.fetch(
    decoder.decode_latents(media_params, state)
  )
  return [
    MediaSample(
      request.text,
      _finished(model.config, decoder.kind, values[i], int(counts[i])),
      z[i, : counts[i]],
    )
    for i, (request, _) in enumerate(rows)
  ]


def _finished(
  config: config_lib.Model, kind: str, values: np.ndarray, count: int
) -> np.ndarray:
  """A picture as bytes, or the part of a spectrogram that was generated."""
  if kind == 'image':
    pixels = np.round((values + 1) * 127.5)
    return np.clip(pixels, 0, 255).astype(np.uint8)
  return values[: count * config.audio.patch, :, 0]
