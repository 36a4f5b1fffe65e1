"""Captions are compared with the texts of their own records."""

import dataclasses

import pytest

import evaluated
import photo
from gemini_jax.evaluate import captions
from gemini_jax.infer import generation
from gemini_jax.infer import samples as samples_lib

pytest.importorskip('sacrebleu', reason='needs gemini_jax[captions]')
PIL = pytest.importorskip('PIL.Image', reason='needs gemini_jax[media]')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photos')
  return photo.write(folder, 60)


def run(path, workdir, *tasks, num_examples):
  options = {'captions': {'num_examples': num_examples}}
  return evaluated.run(path, workdir, *tasks, **options)


def test_captions_are_those_of_their_records(path, tmp_path, monkeypatch):
  opened = run(
    path, tmp_path, evaluated.READS, evaluated.PAINTS, num_examples=7
  )
  seen = []

  def answer(config, model, params, tokenizer, prompts):
    assert config.generate.temperature == 0
    assert params == 'params'
    seen.extend(prompts)
    word = lambda prompt: prompt.text.split(', ')[1]
    texts = [f'{word(prompt)} it is, {word(prompt)}' for prompt in prompts]
    texts = [right(text) for text in texts]
    return [samples_lib.Sample('', text, (), ()) for text in texts]

  monkeypatch.setattr(generation, 'generate', answer)
  right = lambda text: text
  loaders = {'validation': None}
  metrics = captions.evaluate(opened, 'params', loaders, 5)
  assert set(metrics) == {'validation/read_bleu', 'validation/read_cider'}
  assert metrics['validation/read_bleu'] == pytest.approx(100)
  assert len(seen) == 7 and all('image' in prompt.media for prompt in seen)
  with PIL.open(tmp_path / 'samples/00000005-validation-read.png') as page:
    # Seven pictures in a row.
    assert page.width > 900
  best = metrics['validation/read_cider']
  # Of other records.
  right = lambda text: text.replace(
    text.split()[0], {'dark': 'light'}.get(text.split()[0], 'dark')
  )
  metrics = captions.evaluate(opened, 'params', loaders, 5)
  assert metrics['validation/read_bleu'] < 60
  assert metrics['validation/read_cider'] < best / 2


def test_what_is_dropped_or_too_long_is_not_captioned(
  path, tmp_path, monkeypatch
):
  opened = run(path, tmp_path, evaluated.READS, num_examples=60)
  asked = []

  def answer(config, model, params, tokenizer, prompts):
    asked.append(prompts)
    return [samples_lib.Sample('', 'dark', (), ()) for _ in prompts]

  monkeypatch.setattr(generation, 'generate', answer)
  data = dataclasses.replace(opened.config.data, drop_kinds=('image',))
  opened.config = dataclasses.replace(opened.config, data=data)
  loaders = {'validation': None}
  captions.evaluate(opened, 'params', loaders, 5)
  assert len(asked[0]) == 60
  assert not any('image' in prompt.media for prompt in asked[0])
  # ' is middle, middle' and what stands about it has 20 tokens.
  model = dataclasses.replace(opened.config.model, max_length=20)
  opened.config = dataclasses.replace(
    opened.config,
    model=model,
    data=dataclasses.replace(data, sequence_length=20),
  )
  captions.evaluate(opened, 'params', loaders, 5)
  texts = {prompt.text for prompt in asked[1]}
  assert texts == {' is dark, dark', ' is light, light'}
