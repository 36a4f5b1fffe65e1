"""Texts from prompts: sampling and beam search, in batches that fit.

N samples, Z numbers in z, B rows, n new tokens.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.infer import (
  beam,
  capacity,
  control,
  decoding,
  decoding_state,
  sampling,
  speculative,
  text_stream,
)
from gemini_jax.infer import latents as latents_lib
from gemini_jax.infer import prompts as prompts_lib
from gemini_jax.infer import request as request_lib
from gemini_jax.infer import samples as samples_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import processes
from gemini_jax.weights import by_row, native_products

# Tokens that are decoded between two calls of `on_text`.
_STREAM_TOKENS = 8

# Called with the index of a sample and the text that was added to it.
OnText = Callable[[int, str], None]


class Row(NamedTuple):
  """One text to write.

  Attributes:
    prompt: what it continues or answers.
    number: of the sample, among those of the prompt.
    adapter: the name of the one that writes it; '': the model itself.
  """

  prompt: prompts_lib.Prompt
  number: int
  adapter: str = ''


def generate(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  prompts: Sequence[prompts_lib.Asked],
  on_text: OnText | None = None,
  latents: np.ndarray | None = None,
  controller: control.Controller | None = None,
  draft: speculative.Draft | None = None,
  adapters: by_row.Adapters | None = None,
) -> list[samples_lib.Sample]:
  """`generate.count` samples of each prompt, those of a prompt together.

  The same seed gives a prompt the same samples, whatever the other prompts and
  the size of a batch.

  Args:
    config: its sections `generate` and `data` (objective, inputs_length).
    model: what generates.
    params: of the model.
    tokenizer: of the model.
    prompts: texts to continue, or inputs to answer where the data are pairs;
      or inputs of tasks, or conversations.
    on_text: called with the index of a sample and the text that was added to
      it, while it grows. The pieces of a sample make up its text. A beam
      search calls it once a sample, at the end.
    latents: z of each sample, float32[N, Z]; None: as `generate.source` says,
      steered by the controller.
    controller: what `generate.steer` asks for; None where that is ''.
    draft: the model of `generate.draft`; None where that is ''.
    adapters: those of `generate.adapters`; None where there are none.

  Raises:
    ConfigError: a prompt is too long, more samples than beams are asked for,
      `generate.steer` has no controller, `generate.draft` does not go with the
      rest, or see `latents.draw_latents`.
  """
  options = config.generate
  _check(options, controller, draft, adapters)
  params = native_products.with_kernel(params, options.cpu_kernel)
  beams = options.beam_size
  read = [
    prompts_lib.read_prompt(config, model, tokenizer, prompt)
    for prompt in prompts
  ]
  count = options.count if beams == 1 else 1
  names = [''] * len(read) if adapters is None else adapters.of_prompts
  rows = [
    Row(prompt, number, name)
    for prompt, name in zip(read, names, strict=True)
    for number in range(count)
  ]
  if not rows:
    return []
  request_lib.warn_unknown(prompt.unknown for prompt in read)
  if latents is None:
    latents = _latents(config, model, params, tokenizer, rows, controller)
  decoder = _decoder(config, model, tokenizer, read, len(rows), draft)
  if controller is not None:
    decoder, params = controller.decoder(decoder, params)
  if draft is not None:
    decoder = speculative.Speculative.of(decoder, draft)
  write = _sample if beams == 1 else _search
  size = decoder.batch_size // beams
  samples = []
  for first in range(0, len(rows), size):
    batch = rows[first : first + size]
    batch_params = params
    if adapters is not None:
      batch_params = adapters.for_rows([row.adapter for row in batch], size)
    if draft is not None:
      batch_params = speculative.Params(batch_params, draft.params)
    samples += write(
      config,
      decoder,
      batch_params,
      tokenizer,
      batch,
      None if latents is None else latents[first : first + size],
      None if on_text is None else _from_index(on_text, len(samples)),
    )
  return samples


def _check(
  options: config_lib.Generate,
  controller: control.Controller | None,
  draft: Any,
  adapters: Any,
):
  """ConfigError for what is asked for and was not given."""
  config_lib.check(
    not options.steer or controller is not None,
    f'generate.steer={options.steer!r} needs a controller, which only '
    '--mode=generate trains; set it to ""',
  )
  for name, value, read in (
    ('draft', options.draft, draft),
    ('adapters', options.adapters, adapters),
  ):
    config_lib.check(
      not value or read is not None,
      f'generate.{name}={value!r} is read by --mode=generate alone; set it to '
      f'{type(value)()!r}',
    )
  beams = options.beam_size
  config_lib.check(
    beams == 1 or options.count <= beams,
    f'generate.count={options.count} must be at most '
    f'generate.beam_size={beams}',
  )


def _from_index(on_text: OnText, first: int) -> OnText:
  """`on_text` for samples that are counted from another one."""
  return lambda index, text: on_text(first + index, text)


def _latents(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[Row],
  controller: control.Controller | None,
) -> np.ndarray | None:
  """Z of each row, float32[N, Z]; None without a latent."""
  requests = [
    (row.prompt.request, row.number)
    for row in rows
    if row.prompt.request is not None
  ]
  if requests:
    return latents_lib.draw_request_latents(
      config, model, params, tokenizer, requests
    )
  options = config.generate
  needs_none = options.source == 'prompt' and not options.latent
  if needs_none and not model.config.latent.dim:
    return None
  # The beams of a prompt have the same z.
  count = options.count if options.beam_size == 1 else 1
  count *= 1 if controller is None else controller.num_candidates
  latents = []
  for prompt in (row.prompt for row in rows if row.number == 0):
    prompt_options = dataclasses.replace(
      options, prompt=prompt.text, count=count
    )
    z_NZ = latents_lib.draw_latents(
      dataclasses.replace(config, generate=prompt_options),
      model,
      params,
      tokenizer,
    )
    latents.append(z_NZ if controller is None else controller.steer(z_NZ))
  return np.concatenate(latents)


def _decoder(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  prompts: Sequence[prompts_lib.Prompt],
  num_rows: int,
  draft: speculative.Draft | None,
) -> decoding.Decoder:
  """A decoder with slots and rows for these prompts, as many as fit.

  Raises:
    ConfigError: a prompt is too long.
  """
  options = config.generate
  largest = build_decoder(config, model, tokenizer, 1)
  largest.check_lengths(
    [prompt.tokens for prompt in prompts],
    [prompt.inputs for prompt in prompts if prompt.inputs is not None],
  )
  longest = max(len(prompt.tokens) for prompt in prompts)
  if largest.length - longest < options.max_tokens:
    logging.info(
      'generate.max_tokens=%d: only %d new tokens fit after the longest '
      'prompt with model.max_length=%d',
      options.max_tokens,
      largest.length - longest,
      largest.length,
    )
  num_slots = capacity.slots(longest + options.max_tokens, largest.length)
  max_rows = capacity.max_rows(
    dataclasses.replace(config, model=model.config),
    num_slots,
    largest.memory_length,
    None if draft is None else draft.model.config,
  )
  beams = options.beam_size
  size = batch_lib.padded_size(num_rows, max(1, max_rows // beams))
  return dataclasses.replace(
    largest, batch_size=size * beams, num_slots=num_slots
  )


def build_decoder(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  batch_size: int,
) -> decoding.Decoder:
  """A decoder of a model for its tokenizer, with `model.max_length` slots."""
  # A tokenizer without padding may use eos for it; what ends a text is always
  # allowed.
  forbidden = {tokenizer.pad_id, tokenizer.bos_id}
  table_size = model.config.vocab_size
  assert table_size, 'the tokenizer sets model.vocab_size'
  forbidden.update(range(tokenizer.vocab_size, table_size))
  return decoding.Decoder(
    model,
    batch_size,
    pad_id=tokenizer.pad_id,
    eos_id=tokenizer.eos_id,
    end_ids=tuple(i for i in tokenizer.end_ids if i != tokenizer.eos_id),
    forbidden=tuple(sorted(forbidden - set(tokenizer.end_ids))),
    prefill_chunk=config.generate.prefill_chunk,
    memory_length=config.data.inputs_length if model.config.cross else 0,
    prefix=config.data.objective == 'prefix',
  )


def _media(
  decoder: decoding.Decoder,
  prompts: Sequence[prompts_lib.Prompt],
  num_rows: int,
) -> dict[str, batch_lib.Media]:
  """The media of the prompts, one row each, in a batch of `num_rows`."""
  requests = [p.request for p in prompts if p.request is not None]
  return request_lib.stack_media(decoder.model.config, requests, num_rows)


def _sample(
  config: config_lib.Config,
  decoder: decoding.Decoder,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[Row],
  latents: np.ndarray | None,
  on_text: OnText | None,
) -> list[samples_lib.Sample]:
  """A sample for each row of one batch."""
  options = config.generate
  prompts = [row.prompt for row in rows]
  state = decoder.start(
    params,
    [prompt.tokens for prompt in prompts],
    max_tokens=options.max_tokens,
    inputs=[prompt.inputs for prompt in prompts if prompt.inputs is not None],
    seed=options.seed,
    samples=[row.number for row in rows],
    latents=latents,
    media=_media(decoder, prompts, decoder.batch_size),
  )
  texts = [text_stream.TextStream(tokenizer, prompt) for prompt in prompts]
  num_tokens = decoder.length if on_text is None else _STREAM_TOKENS
  num_tokens = max(num_tokens, decoder.tokens_per_step)
  starts_B = lengths_B = processes.fetch(state.lengths)
  done = False
  while not done:
    state = decoder.decode(
      params, state, sampling.Sampler.from_config(options), num_tokens
    )
    # Only what is new leaves the device, and is decoded.
    new_Bn, new_lengths_B, done_B = processes.fetch(
      (
        decoding_state.window(state.tokens, lengths_B, num_tokens),
        state.lengths,
        state.done,
      )
    )
    for i, text in enumerate(texts):
      piece = text.push(new_Bn[i, : new_lengths_B[i] - lengths_B[i]])
      if done_B[i]:
        piece += text.finish()
      if piece and on_text is not None:
        on_text(i, piece)
    lengths_B, done = new_lengths_B, done_B.all()
  if isinstance(decoder, speculative.Speculative):
    logging.info('%s', speculative.report(decoder, state))  # pyright: ignore
  tokens_BT, logprobs_BT = processes.fetch((state.tokens, state.logprobs))
  return [
    samples_lib.Sample(
      prompt.text,
      texts[i].text,
      tuple(tokens_BT[i, starts_B[i] : lengths_B[i]].tolist()),
      tuple(logprobs_BT[i, starts_B[i] : lengths_B[i]].tolist()),
      () if latents is None else tuple(latents[i].tolist()),
      options.steer,
      rows[i].adapter,
    )
    for i, prompt in enumerate(prompts)
  ]


def _search(
  config: config_lib.Config,
  decoder: decoding.Decoder,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[Row],
  latents: np.ndarray | None,
  on_text: OnText | None,
) -> list[samples_lib.Sample]:
  """The best `generate.count` hypotheses of each prompt of one batch."""
  options = config.generate
  prompts = [row.prompt for row in rows]
  hypotheses = beam.search(
    decoder,
    params,
    [prompt.tokens for prompt in prompts],
    beam_size=options.beam_size,
    max_tokens=options.max_tokens,
    length_penalty=options.length_penalty,
    inputs=[prompt.inputs for prompt in prompts if prompt.inputs is not None],
    latents=latents,
    media=_media(decoder, prompts, decoder.batch_size // options.beam_size),
  )
  samples = []
  for i, prompt in enumerate(prompts):
    for hypothesis in hypotheses[i][: options.count]:
      text = text_stream.TextStream(tokenizer, prompt)
      text.push(hypothesis.tokens)
      text.finish()
      if text.text and on_text is not None:
        on_text(len(samples), text.text)
      samples.append(
        samples_lib.Sample(
          prompt.text,
          text.text,
          tuple(hypothesis.tokens.tolist()),
          tuple(hypothesis.logprobs.tolist()),
          () if latents is None else tuple(latents[i].tolist()),
          options.steer,
          rows[i].adapter,
        )
      )
  return samples
