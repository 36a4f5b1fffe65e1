"""From prompts to texts."""

import dataclasses
import itertools
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import transforms
from gemini_jax.infer import beam, decoding, sampling
from gemini_jax.infer import latents as latents_lib
from gemini_jax.infer import request as request_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import processes
from gemini_jax.steer import controller as controller_lib

# Rows that are generated together: as many as have caches of so many bytes,
# within these limits.
_CACHE_BYTES, _LEAST_ROWS, _MOST_ROWS = 2**28, 8, 64
# Tokens between two looks at them when someone is reading along.
_STREAM_TOKENS = 8


class Tokenizer(Protocol):
  """What generation asks of a tokenizer."""

  pad_id: int
  bos_id: int
  eos_id: int

  def encode(self, text: str) -> np.ndarray:
    """Ids of `text`, without special ones."""
    ...

  def decode(self, ids: Any) -> str:
    """Text of `ids`; U+FFFD for what is not a character (yet)."""
    ...


@dataclasses.dataclass(frozen=True)
class Sample:
  """One text that a model wrote.

  Attributes:
    prompt: what it was given.
    text: what it wrote.
    tokens: generated ids, with eos if it came.
    logprobs: natural log-probability of each under the model itself, before
      temperature and filters.
    latent: the z that it was written from; () without one.
    steer: what it should be, as `generate.steer` says.
  """

  prompt: str
  text: str
  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  latent: tuple[float, ...] = ()
  steer: str = ''

  @property
  def logprob(self) -> float:
    """Log-probability of all its tokens."""
    return sum(self.logprobs)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt as the model reads it."""

  text: str
  # What the decoder starts from, and what the encoder reads.
  tokens: np.ndarray
  inputs: np.ndarray | None
  # Text of the tokens that the output continues; '' where it answers them.
  prefix: str
  # Where it is the inputs of a task.
  request: request_lib.Request | None = None
  # Characters of it that the tokenizer does not know.
  unknown: str = ''


def neutral(options: config_lib.Generate, **fields: Any) -> config_lib.Generate:
  """`options` for prompts of an evaluation, which no wish of a user changes."""
  blank = {'prompt': '', 'source': 'prompt', 'latent': (), 'steer': ''}
  return dataclasses.replace(options, **(blank | fields))


def generate(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: Tokenizer,
  prompts: Sequence[str | request_lib.Request],
  on_text: Callable[[int, str], None] | None = None,
  latents: np.ndarray | None = None,
  guide: controller_lib.Guide | None = None,
) -> list[Sample]:
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
  read = [read_prompt(config, model, tokenizer, prompt) for prompt in prompts]
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
  tokenizer: Tokenizer,
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
  tokenizer: Tokenizer,
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


def read_prompt(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: Tokenizer,
  prompt: str | request_lib.Request,
) -> Prompt:
  """The tokens of a prompt, laid out as the training data are.

  Where those are tasks, a text fills in the one that reads text.

  Raises:
    ConfigError: no task, or more than one, reads text and writes it.
  """
  if isinstance(prompt, str) and config.data.tasks:
    options = dataclasses.replace(config.generate, prompt=prompt)
    filled = dataclasses.replace(config, generate=options)
    prompt = request_lib.fill(filled, tokenizer)
  if isinstance(prompt, request_lib.Request):
    question = transforms.question(prompt.tokens, config.data, tokenizer)
    return Prompt(prompt.text, *question, '', prompt, prompt.unknown)
  ids = np.asarray(tokenizer.encode(prompt), np.int32)
  texts = dataclasses.replace(config.generate, prompt=prompt).texts
  unknown = request_lib.unknown(tokenizer, texts)
  continues = not (config.data.pairs or model.config.cross)
  if continues and config.generate.source not in ('prompt', 'prior'):
    # The text is in z; the decoder begins from nothing.
    ids = ids[:0]
  question = transforms.question(ids, config.data, tokenizer)
  prefix = tokenizer.decode(ids) if continues else ''
  return Prompt(prompt, *question, prefix, unknown=unknown)


def _media(
  decoder: decoding.Decoder, rows: Sequence[tuple[Prompt, int]]
) -> dict[str, batch_lib.Media]:
  """What stands at the placeholders of the rows' prompts."""
  requests = [prompt.request for prompt, _ in rows]
  own = [r for r in requests if r is not None]
  return request_lib.stack(decoder.model.config, own, decoder.batch_size)


def _sample(
  config: config_lib.Config,
  decoder: decoding.Decoder,
  params: Any,
  tokenizer: Tokenizer,
  rows: Sequence[tuple[Prompt, int]],
  latents: np.ndarray | None,
  stream: bool,
) -> Iterator[list[tuple[Sample, bool]]]:
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
  tokenizer: Tokenizer,
  rows: Sequence[tuple[Prompt, int]],
  latents: np.ndarray | None,
) -> list[Sample]:
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
  tokenizer: Tokenizer,
  prompt: Prompt,
  tokens: np.ndarray,
  logprobs: np.ndarray,
  latent: np.ndarray | None,
  steer: str,
) -> Sample:
  ids = tokens[:-1] if tokens[-1:] == tokenizer.eos_id else tokens
  text = tokenizer.decode(ids.tolist())
  if prompt.prefix:
    # Together, as some tokenizers drop the space at the start of a text.
    whole = [*prompt.tokens[1:].tolist(), *ids.tolist()]
    text = tokenizer.decode(whole)[len(prompt.prefix) :]
  return Sample(
    prompt.text,
    text,
    tuple(tokens.tolist()),
    tuple(logprobs.tolist()),
    () if latent is None else tuple(latent.tolist()),
    steer,
  )


def claim(path: pathlib.Path) -> pathlib.Path:
  """Makes an empty file where none was: name.png, or name-2.png and so on.

  Only the first process makes one; the others get `path`.
  """
  if not processes.is_process_zero():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  for number in itertools.count(1):
    free = path if number == 1 else path.with_stem(f'{path.stem}-{number}')
    try:
      free.open('x').close()
    except FileExistsError:
      continue
    return free
  raise AssertionError('some number is free')


def write_samples(path: pathlib.Path, samples: Sequence[Sample]):
  """Writes one JSON object a sample, replacing what was there.

  Every process has the samples; the first writes them.
  """
  if not processes.is_process_zero():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = []
  for sample in samples:
    line = {
      'prompt': sample.prompt,
      'text': sample.text,
      'logprob': sample.logprob,
      'tokens': list(sample.tokens),
    }
    if sample.steer:
      line['steer'] = sample.steer
    if sample.latent:
      line['z'] = list(sample.latent)
    lines.append(json.dumps(line, ensure_ascii=False) + '\n')
  host.replace_file(path, ''.join(lines).encode())
