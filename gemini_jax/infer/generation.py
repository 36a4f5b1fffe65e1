"""From prompts to texts."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.infer import beam, decoding, sampling
from gemini_jax.infer import latents as latents_lib
from gemini_jax.infer import prompts as prompts_lib
from gemini_jax.infer import request as request_lib
from gemini_jax.infer import samples as samples_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import processes
from gemini_jax.steer import controller as controller_lib

# Rows that are generated together: as many as have caches of so many bytes,
# within these limits.
_CACHE_BYTES, _LEAST_ROWS, _MOST_ROWS = 2**28, 8, 64
# Tokens between two looks at them when someone is reading along.
_STREAM_TOKENS = 8


def neutral(options: config_lib.Generate, **fields: Any) -> config_lib.Generate:
  """`options` for prompts of an evaluation, which no wish of a user changes."""
  blank = {'prompt': '', 'source': 'prompt', 'latent': (), 'steer': ''}
  return dataclasses.replace(options, **(blank | fields))


def generate(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  prompts: Sequence[str | request_lib.Request],
  on_text: Callable[[int, str], None] | None = None,
  latents: np.ndarray | None = None,
  guide: controller_lib.Guide | None = None,
) -> list[samples_lib.Sample]:
  """`generate.count` samples of each prompt, those of a prompt together.

  The same seed gives a prompt the same samples, whatever the other prompts.

  Args:
    config: its sections `generate` and `data` (objective, inputs_length).
    model: what generates.
    params: of the model.
    tokenizer: of the model.
    prompts: texts to continue, or inputs to answer where the data are pairs;
      or inputs of tasks.
    on_text: called with the index of a sample and the text that was added to
      it, while it grows. The pieces of a sample make its text. A beam search
      knows its text only at the end.
    latents: z of each sample, float32[N, Z]; None: as `generate.source` and
      `generate.steer` say.
    guide: to what `generate.steer` asks for; None: learned from the data.

  Raises:
    ConfigError: a prompt is too long, or more samples than beams are asked;
      or see `origin.latents` and `guide.examples`.
  """
  options = config.generate
  if options.steer and guide is None:
    examples = controller_lib.examples(config)
    guide = controller_lib.learn(config, model, params, tokenizer, examples)
  beams = options.beam_size
  config_lib.check(
    beams == 1 or options.count <= beams,
    f'generate.count={options.count} must be at most '
    f'generate.beam_size={beams}',
  )
  read = [
    prompts_lib.read_prompt(config, model, tokenizer, prompt)
    for prompt in prompts
  ]
  rows = [
    (prompt, number)
    for prompt in read
    for number in range(1 if beams > 1 else options.count)
  ]
  if not rows:
    return []
  request_lib.warn(prompt.unknown for prompt in read)
  if latents is None:
    requests = [(p.request, n) for p, n in rows if p.request is not None]
    if requests:
      latents = latents_lib.of_requests(
        config, model, params, tokenizer, requests
      )
    else:
      texts = [prompt.text for prompt in read]
      latents = _latents(config, model, params, tokenizer, texts, guide)
  # A power of two, so that few sizes are ever compiled.
  batch_size = min(
    max(1, _fitting_rows(model.config) // beams),
    1 << (len(rows) - 1).bit_length(),
  )
  decoder = build_decoder(config, model, tokenizer, batch_size * beams)
  if guide is not None:
    decoder, params = guide.decoder(decoder, params)
  decoder.check_lengths(
    [prompt.tokens for prompt in read],
    [prompt.inputs for prompt in read if prompt.inputs is not None],
  )
  fits = decoder.length - max(len(prompt.tokens) for prompt in read)
  if fits < options.max_tokens:
    logging.info(
      'generate.max_tokens=%d: only %d new tokens fit after the longest '
      'prompt with model.max_length=%d',
      options.max_tokens,
      fits,
      decoder.length,
    )
  samples = []
  for first in range(0, len(rows), batch_size):
    part = rows[first : first + batch_size]
    own = None if latents is None else latents[first : first + batch_size]
    if beams > 1:
      for sample in _search(config, decoder, params, tokenizer, part, own):
        if on_text is not None and sample.text:
          on_text(len(samples), sample.text)
        samples.append(sample)
      continue
    written = [''] * len(part)
    current = []
    for current in _sample(
      config, decoder, params, tokenizer, part, own, on_text is not None
    ):
      for i, (sample, done) in enumerate(current):
        # The last character may be half written until the row is done.
        text = sample.text if done else sample.text.rstrip('\ufffd')
        if on_text is not None and len(text) > len(written[i]):
          on_text(first + i, text[len(written[i]) :])
          written[i] = text
    samples += [sample for sample, _ in current]
  return samples


def _fitting_rows(config: config_lib.Model) -> int:
  """Rows that are generated together at most, a power of two."""
  cache = jax.eval_shape(
    lambda: gemini.init_cache(config, 1, config.max_length)
  )
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
  rows = min(max(_CACHE_BYTES // size, _LEAST_ROWS), _MOST_ROWS)
  return 1 << (rows.bit_length() - 1)


def _latents(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  prompts: Sequence[str],
  guide: controller_lib.Guide | None,
) -> np.ndarray | None:
  """Z of every sample, those of a prompt together; None without a latent."""
  options = config.generate
  plain = options.source == 'prompt' and not options.latent
  if plain and not model.config.latent.dim:
    return None
  found = []
  for prompt in prompts:
    # The beams of a prompt have one z.
    count = options.count if options.beam_size == 1 else 1
    count *= 1 if guide is None else guide.draws
    own = dataclasses.replace(options, prompt=prompt, count=count)
    z_NZ = latents_lib.latents(
      dataclasses.replace(config, generate=own), model, params, tokenizer
    )
    found.append(z_NZ if guide is None else guide.steer(z_NZ))
  return np.concatenate(found)


def build_decoder(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  batch_size: int,
) -> decoding.Decoder:
  """The decoder of a model and its tokenizer."""
  # A tokenizer without padding may lend eos for it; eos is always allowed.
  forbidden = {tokenizer.pad_id, tokenizer.bos_id}
  rows = model.config.vocab_size
  assert rows, 'the tokenizer sets model.vocab_size'
  forbidden.update(range(getattr(tokenizer, 'vocab_size', rows), rows))
  return decoding.Decoder(
    model,
    batch_size,
    pad_id=tokenizer.pad_id,
    eos_id=tokenizer.eos_id,
    forbidden=tuple(sorted(forbidden - {tokenizer.eos_id})),
    prefill_chunk=config.generate.prefill_chunk,
    memory_length=config.data.inputs_length if model.config.cross else 0,
    prefix=config.data.objective == 'prefix',
  )


def _media(
  decoder: decoding.Decoder, rows: Sequence[tuple[prompts_lib.Prompt, int]]
) -> dict[str, batch_lib.Media]:
  """What stands at the placeholders of the rows' prompts."""
  requests = [prompt.request for prompt, _ in rows]
  own = [r for r in requests if r is not None]
  return request_lib.stack(decoder.model.config, own, decoder.batch_size)


def _sample(
  config: config_lib.Config,
  decoder: decoding.Decoder,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[tuple[prompts_lib.Prompt, int]],
  latents: np.ndarray | None,
  stream: bool,
) -> Iterator[list[tuple[samples_lib.Sample, bool]]]:
  """The rows as they grow, each with whether it is done."""
  options = config.generate
  sampler = sampling.Sampler.from_config(options)
  state = decoder.start(
    params,
    [prompt.tokens for prompt, _ in rows],
    max_tokens=options.max_tokens,
    inputs=[row.inputs for row, _ in rows if row.inputs is not None],
    seed=options.seed,
    samples=[number for _, number in rows],
    latents=latents,
    media=_media(decoder, rows),
  )
  num_tokens = _STREAM_TOKENS if stream else options.max_tokens
  done_B = np.zeros(1, bool)
  while not done_B.all():
    state = decoder.decode(params, state, sampler, num_tokens)
    tokens_BT, logprobs_BT, lengths_B, done_B = processes.fetch(
      (state.tokens, state.logprobs, state.lengths, state.done)
    )
    grown = []
    for i, (prompt, _) in enumerate(rows):
      span = slice(len(prompt.tokens), int(lengths_B[i]))
      sample = _to_sample(
        tokenizer,
        prompt,
        tokens_BT[i, span],
        logprobs_BT[i, span],
        None if latents is None else latents[i],
        options.steer,
      )
      grown.append((sample, bool(done_B[i])))
    yield grown


def _search(
  config: config_lib.Config,
  decoder: decoding.Decoder,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[tuple[prompts_lib.Prompt, int]],
  latents: np.ndarray | None,
) -> list[samples_lib.Sample]:
  """The best `generate.count` hypotheses of each prompt."""
  options = config.generate
  found = beam.search(
    decoder,
    params,
    [prompt.tokens for prompt, _ in rows],
    beam_size=options.beam_size,
    max_tokens=options.max_tokens,
    length_penalty=options.length_penalty,
    inputs=[row.inputs for row, _ in rows if row.inputs is not None],
    latents=latents,
    media=_media(decoder, [r for r in rows for _ in range(options.beam_size)]),
  )
  return [
    _to_sample(
      tokenizer,
      prompt,
      best.tokens,
      best.logprobs,
      None if latents is None else latents[i],
      options.steer,
    )
    for i, ((prompt, _), hypotheses) in enumerate(zip(rows, found, strict=True))
    for best in hypotheses[: options.count]
  ]


def _to_sample(
  tokenizer: tokenizer_lib.Tokenizer,
  prompt: prompts_lib.Prompt,
  tokens: np.ndarray,
  logprobs: np.ndarray,
  latent: np.ndarray | None,
  steer: str,
) -> samples_lib.Sample:
  ids = tokens[:-1] if tokens[-1:] == tokenizer.eos_id else tokens
  text = tokenizer.decode(ids.tolist())
  if prompt.prefix:
    # Together, as some tokenizers drop the space at the start of a text.
    whole = [*prompt.tokens[1:].tolist(), *ids.tolist()]
    text = tokenizer.decode(whole)[len(prompt.prefix) :]
  return samples_lib.Sample(
    prompt.text,
    text,
    tuple(tokens.tolist()),
    tuple(logprobs.tolist()),
    () if latent is None else tuple(latent.tolist()),
    steer,
  )
