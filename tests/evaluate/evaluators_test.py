"""Evaluators are named in the config, and refused where they cannot run."""

import types

import pytest

import photo
from gemini_jax import config as config_lib
from gemini_jax.evaluate import (
  caption_metrics,
  evaluators,
  independent_classifier,
  text_metrics,
)

READS = 'read = {image:picture} -> {word}'
PAINTS = 'paint = {word} -> {image:picture}'
TASKS = {'pack': False, 'sequence_length': 24, 'validation': ('jsonl:a',)}
TEXT = {'validation': ('text:a',), 'test': ('text:b',)}
PAIRS = {'inputs_field': 'a', 'targets_field': 'b'}


def config(data, *names, **options):
  model = photo.model() if 'tasks' in data else config_lib.Model()
  return config_lib.from_config_dict(
    {
      'model': vars(model),
      'data': data,
      'evaluate': {'evaluators': names, **options},
    }
  )


@pytest.fixture(autouse=True)
def _extras(monkeypatch):
  """As if every extra were installed."""
  monkeypatch.setattr(caption_metrics, 'check', lambda: None)
  monkeypatch.setattr(independent_classifier, 'check', lambda: None)
  monkeypatch.setattr(text_metrics, 'check', lambda names: None)


REFUSED = {
  'unknown': (
    TEXT,
    ('exact_macth',),
    "'exact_macth' is not an evaluator; did ",
  ),
  'twice': (TEXT, ('likelihood',) * 2, "'likelihood' is there twice"),
  'no split': (PAIRS, ('exact_match',), 'exact_match needs data.validation or'),
  'no pairs': (TEXT, ('exact_match',), 'exact_match needs pairs; set data.inp'),
  'packed': (TEXT, ('likelihood',), 'likelihood needs one sequence in each ro'),
  'no test split': (
    {'validation': ('text:a',), 'pack': False},
    ('likelihood',),
    'likelihood needs data.test',
  ),
  'no prompts': ({}, ('samples',), 'samples needs evaluate.samples.prompts'),
  'no vectors': (TEXT, ('retrieval',), 'retrieval needs vectors of both sides'),
  'nothing is written': (
    {'tasks': (READS,), **TASKS},
    ('judged_media',),
    'judged_media needs a task of data.tasks that reads text',
  ),
  'no text is written': (
    {'tasks': (PAINTS,), **TASKS},
    ('captions',),
    'captions needs a task of data.tasks that writes text',
  ),
  'nothing is answered': (TEXT, ('texts',), 'texts needs inputs and a text'),
  'two bleus': (
    {'tasks': (READS, PAINTS), **TASKS},
    ('captions', 'texts'),
    'captions and texts both give a bleu; take one',
  ),
  'no tasks': (TEXT, ('captions',), 'captions needs a task of data.tasks that'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_served_is_refused(case):
  data, names, message = REFUSED[case]
  with pytest.raises(config_lib.ConfigError) as error:
    evaluators.check(config(data, *names))
  assert str(error.value).startswith(f'evaluate.evaluators: {message}')


@pytest.mark.parametrize(
  ('data', 'names'),
  [
    ({}, ()),
    (TEXT | PAIRS, ('exact_match', 'texts')),
    ({'tasks': (READS, PAINTS), **TASKS}, ('texts',)),
    (TEXT | {'pack': False}, ('likelihood',)),
    ({'tasks': (READS, PAINTS), **TASKS}, ('judged_media', 'captions')),
  ],
)
def test_what_can_be_served_is_accepted(data, names):
  evaluators.check(config(data, *names))


def test_prompts_are_all_that_samples_need():
  evaluators.check(config({}, 'samples', samples={'prompts': ('a',)}))


@pytest.mark.parametrize(
  ('metrics', 'message'),
  [
    ((), 'evaluate.texts.metrics=() must be different metrics, one at least'),
    (('bleu', 'bleu'), "evaluate.texts.metrics=('bleu', 'bleu') must be diff"),
    (('blue',), "evaluate.texts.metrics[0]='blue' must be one of bleu, "),
  ],
)
def test_metrics_of_texts_are_known_and_different(metrics, message):
  with pytest.raises(config_lib.ConfigError) as error:
    evaluators.check(config(TEXT | PAIRS, 'texts', texts={'metrics': metrics}))
  assert str(error.value).startswith(message)


def test_a_new_evaluator_is_a_function_and_a_name(monkeypatch):
  """They run in the order of their names, on parameters."""
  calls = []

  def evaluate(run, params, loaders, step):
    calls.append((run.config.evaluate.evaluators, params, loaders, step))
    return {'validation/number': float(len(calls))}

  added = {
    'one': evaluators.Evaluator(evaluate, needs_held_out=False),
    'two': evaluators.Evaluator(
      lambda *args: evaluate(*args) | {'validation/two': 2.0},
      needs_held_out=False,
    ),
  }
  monkeypatch.setattr(evaluators, 'EVALUATORS', evaluators.EVALUATORS | added)
  asked = config({}, 'two', 'one')
  evaluators.check(asked)
  run = types.SimpleNamespace(config=asked)
  evaluators.check_run(run)
  results = evaluators.evaluate(run, 'params', {}, 7)
  assert results == {'validation/number': 2.0, 'validation/two': 2.0}
  assert calls == [(('two', 'one'), 'params', {}, 7)] * 2
