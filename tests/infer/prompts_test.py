"""A model is asked as it was trained: the same rows, up to the first target.

T length, V vocabulary.
"""

import dataclasses
import functools
import logging

import jax
import numpy as np
import pytest

import photo
import toy
from gemini_jax import config as config_lib
from gemini_jax.data import loader, sources, splits, tokenizer
from gemini_jax.data import task as task_lib
from gemini_jax.infer import generation, latents, request
from gemini_jax.infer import prompts as prompts_lib
from gemini_jax.models import gemini

# What examples may be, and the fields of the data that say so.
KINDS = {
  'text': {},
  'pairs': {'inputs_field': 'sound', 'targets_field': 'word'},
  'tasks': {'tasks': ('say {sound} -> {word} it is', 'no {word} -> {sound}')},
  'media': {
    'tasks': (
      'a {image:picture} and {audio:sound} {word} -> {word}',
      'no {word} -> {image:picture}',
    )
  },
  'drop_kinds': {
    'tasks': ('a {image:picture} and {audio:sound} -> {word}',),
    'drop_kinds': ('image',),
  },
}
OBJECTIVES = ('causal', 'prefix', 'seq2seq')
# The length of each text that is continued.
LENGTHS = (0, 1, 4)


class Blanks(tokenizer.Bytes):
  """Bytes, but two blanks in a row are one token."""

  def encode(self, text):
    ids = super().encode(text.replace('  ', '\0'))
    return np.where(ids == self._OFFSET, 259, ids).astype(np.int32)

  def serialized(self):
    return b'blanks'


TOKENIZER = Blanks()


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return photo.write(tmp_path_factory.mktemp('photos'), len(LENGTHS))


@functools.cache
def build(objective, latent=0):
  """(model, params) for an objective."""
  cross = objective == 'seq2seq'
  model = gemini.Gemini(
    photo.model(
      architecture='encoder_decoder' if cross else 'decoder',
      latent=config_lib.Latent(dim=latent),
      num_encoder_layers=1 if cross or latent else None,
    )
  )
  return model, toy.model_params(model)


def setting(records, objective, kind, latent=0, **fields):
  """The config of data of a kind."""
  model, _ = build(objective, latent)
  fields = KINDS[kind] | fields
  tasks = fields.pop('tasks', ())
  fields |= {'text_field': 'sound'} if kind == 'text' else {}
  return config_lib.Config(
    model=model.config,
    data=photo.data(
      records,
      *tasks,
      objective=objective,
      sequence_length=40,
      inputs_length=30,
      **fields,
    ),
    generate=config_lib.Generate(prefill_chunk=8),
  )


def rows_and_prompts(config, records):
  """The row of each example in training, and what is asked for its targets.

  A piece of text may be continued anywhere; of prefix and seq2seq, where the
  row is cut.
  """
  batch = loader.Loader(
    config.data, TOKENIZER, 'validation', batch_size=16, model=config.model
  )[0]
  prompts = []
  if not config.data.pairs:
    for row in range(len(LENGTHS)):
      if config.data.objective == 'causal':
        length = LENGTHS[row]
      elif config.data.objective == 'prefix':
        length = int(batch.prefix[row].sum()) - 1
      else:
        length = int(batch.encoder.segments[row].sum()) - 1
      prompts.append(f'{row}.wav'[:length])
  elif config.data.inputs_field:
    pairs = splits.pairs(config.data, 'validation', 9)
    prompts = [inputs for inputs, _ in pairs]
  else:
    (spec,) = config.data.validation
    source = sources.records(spec, config.data)
    for index in range(len(source)):
      for task in task_lib.from_config(config.data):
        prompts.append(
          request.from_record(
            config,
            TOKENIZER,
            task,
            source[index],
            folder=source.rows.folder,
          )
        )
  return batch, prompts


def firsts(config, batch, prompts):
  """Where each row predicts its first target."""
  if not config.data.pairs and config.data.objective == 'causal':
    return [len(prompt) for prompt in prompts]
  return np.argmax(batch.weights > 0, axis=1)[: len(prompts)].tolist()


CASES = [(objective, kind) for objective in OBJECTIVES for kind in KINDS]


@pytest.mark.parametrize(('objective', 'kind'), CASES)
def test_a_prompt_is_the_row_before_its_first_target(objective, kind, records):
  """Token by token, and in what the model then says comes next."""
  config = setting(records, objective, kind)
  model, params = build(objective)
  batch, prompts = rows_and_prompts(config, records)
  assert len(prompts) >= 3
  read = [
    prompts_lib.read_prompt(config, model, TOKENIZER, prompt)
    for prompt in prompts
  ]
  at = firsts(config, batch, prompts)
  for row, prompt in enumerate(read):
    stop = at[row] + 1
    tokens = batch.decoder.tokens[row, :stop]
    np.testing.assert_array_equal(prompt.tokens, tokens)
    # All of it is one segment from position 0.
    assert set(batch.decoder.segments[row, :stop]) == {1}
    assert batch.decoder.positions[row, :stop].tolist() == [*range(stop)]
    if objective == 'prefix':
      assert batch.prefix[row].sum() == stop == batch.prefix[row, :stop].sum()
    assert (prompt.inputs is None) == (batch.encoder is None)
    if batch.encoder is not None:
      real = batch.encoder.segments[row] > 0
      np.testing.assert_array_equal(
        prompt.inputs, batch.encoder.tokens[row][real]
      )
      assert prompt.inputs[-1] == TOKENIZER.eos_id
  full_BTV = np.asarray(forward(model, params, batch))
  decoder = generation.build_decoder(config, model, TOKENIZER, 16)
  asked = [prompt.request for prompt in read if prompt.request is not None]
  state = decoder.start(
    params,
    [prompt.tokens for prompt in read],
    max_tokens=1,
    inputs=[own.inputs for own in read if own.inputs is not None],
    media=request.stack_media(model.config, asked, 16),
  )
  scores_BV, *_ = step(decoder, params, state)
  for row, place in enumerate(at):
    expected_V = full_BTV[row, place]
    assert expected_V.std() > 0.3, 'a flat model shows nothing'
    np.testing.assert_allclose(scores_BV[row], expected_V, atol=2e-5)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
  return model.apply({'params': params}, batch)[0]


@functools.partial(jax.jit, static_argnums=0)
def posterior(model, params, batch):
  apply = functools.partial(model.apply, {'params': params})
  return apply(apply(batch, method='encoder_inputs'), method='posterior')


@functools.partial(jax.jit, static_argnums=0)
def step(decoder, params, state):
  return decoder.decode_step(params, state)


@pytest.mark.parametrize(
  ('objective', 'kind'),
  [('causal', 'text'), *(('seq2seq', kind) for kind in KINDS)],
)
def test_a_latent_is_of_the_row_that_its_encoder_learned_from(
  objective, kind, records
):
  config = setting(records, objective, kind, latent=3)
  model, params = build(objective, 3)
  batch, prompts = rows_and_prompts(config, records)
  expected = posterior(model, params, batch)
  if kind in ('text', 'pairs'):
    if objective == 'causal':
      prompts = [f'{row}.wav' for row in range(len(LENGTHS))]
    # Of nothing there is no z.
    keep = [i for i, prompt in enumerate(prompts) if prompt]
    found = latents.encode(
      config, model, params, TOKENIZER, [prompts[i] for i in keep]
    ).mean
  else:
    keep = range(len(prompts))
    calm = dataclasses.replace(config.generate, latent_temperature=0.0)
    config = dataclasses.replace(config, generate=calm)
    rows = [(prompt, 0) for prompt in prompts]
    found = latents.draw_request_latents(config, model, params, TOKENIZER, rows)
  assert len(keep) > 1
  np.testing.assert_allclose(found, expected.mean[np.array(keep)], atol=1e-5)
  assert np.std(found, axis=0).max() > 1e-3


class WithoutBos(Blanks):
  adds_bos = False

  def serialized(self):
    return b'without bos'


def test_a_text_may_begin_without_bos(records):
  """As the pretraining of some models; nothing is predicted from nothing."""
  config = setting(records, 'causal', 'text')
  model, _ = build('causal')
  batch = loader.Loader(
    config.data, WithoutBos(), 'validation', batch_size=16, model=config.model
  )[0]
  assert TOKENIZER.bos_id not in batch.decoder.tokens
  read = lambda text: prompts_lib.read_prompt(
    config, model, WithoutBos(), text
  ).tokens.tolist()
  for row, length in enumerate(LENGTHS):
    prompt = f'{row}.wav'[:length]
    tokens = batch.decoder.tokens[row, :length].tolist()
    assert read(prompt) == (tokens if length else [TOKENIZER.bos_id])
    assert batch.weights[row].sum() == len(f'{row}.wav')
    assert batch.targets[row, len(f'{row}.wav') - 1] == TOKENIZER.eos_id


def test_a_text_fills_in_the_task_that_reads_text(records):
  """As `evaluate.samples.prompts` are read."""
  config = setting(records, 'causal', 'tasks')
  model, _ = build('causal')
  ask = functools.partial(prompts_lib.read_prompt, config, model, TOKENIZER)
  with pytest.raises(config_lib.ConfigError, match='fits several tasks'):
    ask('dark')
  data = dataclasses.replace(config.data, tasks=KINDS['tasks']['tasks'][:1])
  one = dataclasses.replace(config, data=data)
  prompt = prompts_lib.read_prompt(one, model, TOKENIZER, 'dark')
  assert TOKENIZER.decode(prompt.tokens) == 'say dark'
  assert prompt.tokens[-1] == TOKENIZER.eos_id


def written(objective, kind, records, prompts, letters='wav.12', **fields):
  """Samples of a tokenizer that knows some letters."""
  config = setting(records, objective, kind)
  options = dataclasses.replace(config.generate, max_tokens=3, **fields)
  config = dataclasses.replace(config, generate=options)
  return generation.generate(
    config, *build(objective), tokenizer.Characters(letters), prompts
  )


@pytest.mark.parametrize(
  ('objective', 'kind'), [('causal', 'text'), ('causal', 'pairs')]
)
def test_what_no_tokenizer_knows_is_named_once(
  objective, kind, records, caplog
):
  prompts = ['', 'wav', 'wäv', 'äß…', 'ä']
  with caplog.at_level(logging.WARNING):
    samples = written(objective, kind, records, prompts, temperature=1.0)
  assert [sample.prompt for sample in samples] == prompts
  assert all(sample.tokens for sample in samples)
  (message,) = caplog.messages
  assert "does not know 'äß…'" in message
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    written(objective, kind, records, ['', 'wav'])
  assert not caplog.messages


@pytest.mark.parametrize('objective', ['causal', 'seq2seq'])
def test_a_prompt_that_is_too_long_is_counted(objective, records):
  field, most = ('model.max_length=40', 39)
  if objective == 'seq2seq':
    field, most = ('data.inputs_length=30', 30)
  with pytest.raises(
    config_lib.ConfigError,
    match=f'generate.prompt has 51 tokens; with {field} at most {most} fit',
  ):
    written(objective, 'text', records, ['w', 'w' * 50])
