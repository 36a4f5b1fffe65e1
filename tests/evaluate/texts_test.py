"""Texts are compared with the references of their own records."""

import json
import types

import pytest

import tiny
from gemini_jax.data import tokenizer
from gemini_jax.evaluate import texts
from gemini_jax.infer import generation
from gemini_jax.infer import samples as samples_lib
from gemini_jax.train import run_report

pytest.importorskip('sacrebleu', reason='needs gemini_jax[tasks]')

WORDS = ('eins', 'zwei', 'drei', 'vier', 'sieben', 'acht', 'zehn', 'elf')


def opened(workdir, num_records=40, **options):
  """A run of pairs: numbers of words, and the same backwards."""
  lines = []
  for i in range(num_records):
    words = [WORDS[(i * k + k) % 8] for k in range(1, 5 + i % 5)]
    pair = {'en': ' '.join(words), 'de': ' '.join(words[::-1])}
    lines.append(f'{json.dumps(pair)}\n')
  (workdir / 'pairs.jsonl').write_text(''.join(lines))
  config = tiny.config(
    model={'architecture': 'encoder_decoder', 'max_length': 64},
    data={
      'objective': 'seq2seq',
      'inputs_field': 'en',
      'targets_field': 'de',
      'test': (f'jsonl:{workdir}/pairs.jsonl',),
      'sequence_length': 48,
      'inputs_length': 38,
    },
    evaluate={'evaluators': ('texts',), 'texts': options},
    generate={'temperature': 0.7, 'beam_size': 2, 'count': 2},
  )
  return types.SimpleNamespace(
    config=config,
    model=types.SimpleNamespace(config=config.model),
    tokenizer=tokenizer.Bytes(),
    workdir=workdir,
  )


def answer_with(monkeypatch, answer):
  """Lets the model answer so; the options and inputs that it is asked with."""
  seen = []

  def generate(config, model, params, tokenizer, prompts):
    seen.append((config.generate, [prompt.text for prompt in prompts]))
    return [
      samples_lib.Sample(prompt.text, answer(prompt.text), (), ())
      for prompt in prompts
    ]

  monkeypatch.setattr(generation, 'generate', generate)
  return seen


def backwards(text):
  return ' '.join(text.split()[::-1])


def test_right_answers_score_100_but_for_inputs_that_are_too_long(
  tmp_path, monkeypatch
):
  run = opened(tmp_path, num_examples=None, beam_size=5, length_penalty=1.0)
  texts.check(run.config)
  seen = answer_with(monkeypatch, backwards)
  metrics = texts.evaluate(run, 'params', {'validation': 0, 'test': 0}, 7)
  options, inputs = seen[0]
  assert (options.beam_size, options.length_penalty) == (5, 1.0)
  assert (options.max_tokens, options.count) == (48, 1)
  # Inputs of about the same length are answered together.
  assert [*map(len, inputs)] == sorted(map(len, inputs))
  assert 20 < len(inputs) < 40
  file = tmp_path / 'reports/00000007-test-texts.json'
  report = json.loads(file.read_text())
  assert len(report['details']) == 40
  for line in report['details']:
    is_read = line['inputs'] in inputs
    assert line['text'] == (line['reference'] if is_read else '')
  # The brevity penalty of what is not answered.
  assert set(metrics) == {
    f'test/{name}{end}'
    for name in ('bleu', 'chrf')
    for end in ('', '_low', '_high')
  }
  assert 20 < metrics['test/bleu'] < 99
  assert report['metrics'] == {
    name.removeprefix('test/'): value for name, value in metrics.items()
  }
  text = run_report.compose(tmp_path, run.config, 7, [])
  assert f'bleu: `{report["notes"]["bleu"]}`' in text
  assert 'tok:13a' in text


def test_wrong_answers_score_little(tmp_path, monkeypatch):
  run = opened(tmp_path, num_examples=10, metrics=('bleu',))
  seen = answer_with(monkeypatch, lambda text: text)
  metrics = texts.evaluate(run, 'params', {'test': 0}, 7)
  assert len(seen[0][1]) <= 10 and seen[0][0].beam_size == 1
  assert metrics['test/bleu'] < 30
  assert 'test/chrf' not in metrics
