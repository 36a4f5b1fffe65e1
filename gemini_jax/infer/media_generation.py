"""Pictures and sounds that a model writes, one z after the other.

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

from gemini_jax import config as config_lib
from gemini_jax.data import transforms
from gemini_jax.infer import (
  decoding,
  decoding_state,
  latents,
  request,
  sampling,
)
from gemini_jax.models import gemini, media_embeddings, mixture
from gemini_jax.parallel import processes

# Rows that are written together at most.
_MOST_ROWS = 64


@dataclasses.dataclass(frozen=True)
class MediaSample:
  """What a model wrote.

  Attributes:
    prompt: what it was given.
    values: a picture uint8[H, W, C], or a log-mel spectrogram float32[F, M].
    z: float32[n, Z], what it was written as.
  """

  prompt: str
  values: np.ndarray
  z: np.ndarray


@flax.struct.dataclass
class Params:
  """Of a model, and of how it draws z.

  Attributes:
    model: of the model.
    temperature: of the deviations of z; 0: the likeliest normal's mean.
    guidance: how much likelier the inputs must make z; 0: off.
  """

  model: Any
  temperature: Any
  guidance: Any


@dataclasses.dataclass(frozen=True)
class MediaDecoder(decoding.Decoder):
  """A decoder whose rows are media of one kind.

  Attributes:
    kind: of the media.
    guided: whether the second half of the rows are the first without inputs;
      they are given what the first half writes.
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
    return dataclasses.replace(state, written=jnp.zeros(shape, jnp.float32))

  def decode_step(
    self, params: Params, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, decoding_state.State]:
    """As `Decoder.decode_step`; z of the next token is in the state."""
    assert state.written is not None
    apply: Any = functools.partial(self.model.apply, {'params': params.model})
    rows_B = jnp.arange(self.batch_size)
    last = self.last(state)
    z_B1Z = state.written[rows_B, last.positions[:, 0]][:, None]
    there_B1 = last.tokens == self.model.config.placeholder(self.kind)
    soft_B1D = apply(self.kind, z_B1Z, method=_embed_latents)
    x_B1D, cache, _ = apply(
      last,
      memory=state.memory,
      latent_BZ=state.latent,
      soft_BTD=jnp.where(there_B1[..., None], soft_B1D, 0),
      cache=state.cache,
      method='decode_hidden',
    )
    logits_BV = apply(x_B1D, method='logits')[:, 0]
    scores_BV = self.restrict(logits_BV, state)
    density = jax.tree.map(
      lambda leaf: leaf[:, 0], apply(self.kind, x_B1D, method=_density)
    )
    # Not those that the tokens are drawn with.
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.draw_keys(state), 1)
    if self.guided:
      half = self.batch_size // 2
      own, plain = (
        jax.tree.map(lambda leaf, part=part: leaf[part], density)
        for part in (slice(half), slice(half, None))
      )
      draw = lambda own, plain, key: mixture.guided(
        own, plain, key, params.temperature, weight=params.guidance
      )
      twice = lambda leaf: jnp.concatenate([leaf, leaf])
      z_BZ = twice(jax.vmap(draw)(own, plain, keys_B[:half]))
      scores_BV = twice(scores_BV[:half])
    else:
      draw = lambda own, key: mixture.sample(own, key, params.temperature)
      z_BZ = jax.vmap(draw)(density, keys_B)
    written = state.written.at[rows_B, state.lengths].set(z_BZ, mode='drop')
    state = dataclasses.replace(state, cache=cache, written=written)
    return scores_BV, logits_BV, state

  def draw_keys(self, state: decoding_state.State) -> jax.Array:
    """By the place in the medium: a row and its twin draw the same."""
    count_B = state.lengths - state.starts
    return jax.vmap(jax.random.fold_in)(state.keys, count_B)

  def restrict(
    self, logits_BV: jax.Array, state: decoding_state.State
  ) -> jax.Array:
    """-inf for what cannot come next: a picture is whole, a sound may end."""
    config = self.model.config
    most = config.soft_tokens(self.kind)
    count_B1 = (state.lengths - state.starts)[:, None]
    goes_on_B1 = count_B1 < most
    ends_B1 = ~goes_on_B1 if self.kind == 'image' else count_B1 > 0
    ids_1V = jnp.arange(logits_BV.shape[1])[None]
    allowed_BV = (ids_1V == config.placeholder(self.kind)) & goes_on_B1
    allowed_BV |= (ids_1V == self.eos_id) & ends_B1
    return jnp.where(allowed_BV, logits_BV, -jnp.inf)

  @functools.partial(jax.jit, static_argnums=0)
  def decode_latents(
    self, params: Params, state: decoding_state.State
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What was written, [B, H, W, C] or [B, F, M, 1]; z [B, N, Z]; counts."""
    assert state.written is not None
    config = self.model.config
    slots_1N = jnp.arange(config.soft_tokens(self.kind))[None]
    at_BN = jnp.minimum(state.starts[:, None] + slots_1N, self.length - 1)
    tokens_BN = jnp.take_along_axis(state.tokens, at_BN, axis=1)
    real_BN = tokens_BN == config.placeholder(self.kind)
    count_B = jnp.sum(real_BN, axis=1)
    z_BNZ = jnp.take_along_axis(state.written, at_BN[..., None], axis=1)
    z_BNZ = jnp.where(real_BN[..., None], z_BNZ, 0)
    sizes_B2 = None
    if self.kind == 'audio':
      rows, columns = media_embeddings.patch(config, self.kind)
      sizes_B2 = jnp.stack(
        [count_B * rows, jnp.where(count_B > 0, columns, 0)], axis=-1
      )
    values: Any = self.model.apply(
      {'params': params.model},
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


def paint(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: Any,
  kind: str,
  requests: Sequence[request.Request],
  numbers: Sequence[int] | None = None,
) -> list[MediaSample]:
  """`generate.count` media for each request, those of a request together.

  The same seed gives a request the same media, whatever the others are; equal
  requests get the same ones, unless `numbers` differ.

  Args:
    config: its sections `generate` and `data`.
    model: what writes them.
    params: of the model.
    tokenizer: of the model.
    kind: of what is written.
    requests: inputs of tasks that write that kind.
    numbers: of the one medium that each request gets instead, among all that
      it could get.

  Raises:
    ConfigError: the inputs and what is written do not fit the model.
  """
  options = config.generate
  guided = options.guidance > 0
  rows = [(own, i) for own in requests for i in range(options.count)]
  if numbers is not None:
    rows = list(zip(requests, numbers, strict=True))
  size = min(_MOST_ROWS, 1 << max(len(rows) - 1, 0).bit_length())
  cross = model.config.cross
  painter = MediaDecoder(
    model,
    size * (2 if guided else 1),
    pad_id=tokenizer.pad_id,
    eos_id=tokenizer.eos_id,
    prefill_chunk=options.prefill_chunk,
    memory_length=config.data.inputs_length if cross else 0,
    prefix=config.data.objective == 'prefix',
    kind=kind,
    guided=guided,
  )
  request.warn(own.unknown for own in requests)
  num = model.config.soft_tokens(kind)
  own_params = Params(
    params, np.float32(options.temperature), np.float32(options.guidance)
  )
  found = []
  for first in range(0, len(rows), size):
    part = together = rows[first : first + size]
    if guided:
      # The twins stand in the second half.
      blank = request.Request('', np.zeros(0, np.int32))
      together = [*part, *[(blank, 0)] * (size - len(part))]
      together += [(blank, number) for _, number in part]
    read = [own for own, _ in together]
    asked = [
      transforms.question(own.tokens, config.data, tokenizer) for own in read
    ]
    longest = max(len(own.decoder) for own in asked)
    config_lib.check(
      longest + num <= painter.length,
      f'the inputs have {longest} tokens and a written {kind} {num}: together '
      f'more than model.max_length={painter.length}',
    )
    state = painter.start(
      own_params,
      [own.decoder for own in asked],
      max_tokens=num + 1,
      inputs=[own.encoder for own in asked if own.encoder is not None],
      seed=options.seed,
      samples=[number for _, number in together],
      latents=latents.of_requests(config, model, params, tokenizer, together),
      media=request.stack(model.config, read, painter.batch_size),
    )
    state = painter.decode(
      own_params, state, sampling.Sampler.from_config(options), num + 1
    )
    values, z, counts = processes.fetch(
      painter.decode_latents(own_params, state)
    )
    for i, (own, _) in enumerate(part):
      found.append(
        MediaSample(
          own.text,
          _finished(config.model, kind, values[i], int(counts[i])),
          z[i, : counts[i]],
        )
      )
  return found


def _finished(
  config: config_lib.Model, kind: str, values: np.ndarray, count: int
) -> np.ndarray:
  """A picture's bytes, or the part of a spectrogram that was written."""
  if kind == 'image':
    pixels = np.round((values + 1) * 127.5)
    return np.clip(pixels, 0, 255).astype(np.uint8)
  return values[: count * config.audio.patch, :, 0]
