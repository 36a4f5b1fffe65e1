"""What is written is compared with what is right, and only that counts."""

import dataclasses
import types

import numpy as np
import pytest

import photo
from gemini_jax import config as config_lib
from gemini_jax.data import splits, tokenizer
from gemini_jax.evaluate import media_metrics
from gemini_jax.infer import generation, media_generation
from gemini_jax.infer import samples as samples_lib
from gemini_jax.models import gemini

pytest.importorskip('sacrebleu', reason='needs gemini_jax[captions]')
pytest.importorskip('sklearn', reason='needs gemini_jax[judge]')
PIL = pytest.importorskip('PIL.Image', reason='needs gemini_jax[media]')

READS = 'read = {image:picture} is {word}, {word} -> {word} it is, {word}'
PAINTS = 'paint = {word} -> {image:picture}'
SPEAKS = 'speak = {word} -> {audio:sound}'


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photos')
  return photo.write(folder, 60)


def run(path, workdir, *tasks, **evaluated):
  config = config_lib.Config(
    model=photo.model(),
    data=photo.data(path, *tasks),
    eval=config_lib.Eval(**evaluated),
  )
  (workdir / 'samples').mkdir()
  return types.SimpleNamespace(
    config=config,
    model=gemini.Gemini(config.model),
    tokenizer=tokenizer.Bytes(),
    workdir=workdir,
  )


def test_captions_are_those_of_their_records(path, tmp_path, monkeypatch):
  own = run(path, tmp_path, READS, PAINTS, captions=7)
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
  found = media_metrics.captions(own, 'params', 'validation', 5)
  assert set(found) == {'validation/read_bleu', 'validation/read_cider'}
  assert found['validation/read_bleu'] == pytest.approx(100)
  assert len(seen) == 7 and all('image' in prompt.media for prompt in seen)
  with PIL.open(tmp_path / 'samples/00000005-validation-read.png') as page:
    # Seven pictures in a row.
    assert page.width > 900
  best = found['validation/read_cider']
  # Of other records.
  right = lambda text: text.replace(
    text.split()[0], {'dark': 'light'}.get(text.split()[0], 'dark')
  )
  found = media_metrics.captions(own, 'params', 'validation', 5)
  assert found['validation/read_bleu'] < 60
  assert found['validation/read_cider'] < best / 2


def test_what_is_left_out_or_too_long_is_not_captioned(
  path, tmp_path, monkeypatch
):
  own = run(path, tmp_path, READS, captions=60)
  asked = []

  def answer(config, model, params, tokenizer, prompts):
    asked.append(prompts)
    return [samples_lib.Sample('', 'dark', (), ()) for _ in prompts]

  monkeypatch.setattr(generation, 'generate', answer)
  data = dataclasses.replace(own.config.data, drop_kinds=('image',))
  own.config = dataclasses.replace(own.config, data=data)
  media_metrics.captions(own, 'params', 'validation', 5)
  assert len(asked[0]) == 60
  assert not any('image' in prompt.media for prompt in asked[0])
  # ' is middle, middle' and what stands about it has 20 tokens.
  model = dataclasses.replace(own.config.model, max_length=20)
  own.config = dataclasses.replace(
    own.config, model=model, data=dataclasses.replace(data, sequence_length=20)
  )
  media_metrics.captions(own, 'params', 'validation', 5)
  texts = {prompt.text for prompt in asked[1]}
  assert texts == {' is dark, dark', ' is light, light'}


def paint_as(records, shift, monkeypatch):
  """Pictures of the word that is `shift` words on."""

  def paint(config, model, params, tokenizer, kind, requests, numbers):
    # Equal texts ask for different media, and others by other draws.
    assert len(set(numbers)) == len(requests)
    assert config.generate.count == 1 and kind == config.generate.output
    found = []
    for i, own in enumerate(requests):
      index = (photo.WORDS.index(own.text) + shift) % len(photo.WORDS)
      same = [values for word, values in records if word == photo.WORDS[index]]
      found.append(
        media_generation.MediaSample(
          own.text, same[i % len(same)], np.zeros((4, 3))
        )
      )
    return found

  monkeypatch.setattr(media_generation, 'generate', paint)


@pytest.mark.parametrize('task', [PAINTS, SPEAKS])
def test_media_are_judged_by_what_they_show(task, path, tmp_path, monkeypatch):
  own = run(path, tmp_path, READS, task, judged=30)
  (judged,) = media_metrics.judged_tasks(own.config)
  texts, values = media_metrics._real(own, 'validation', judged, 60)
  records = list(zip(texts, values, strict=True))
  results = []
  for shift in (0, 1):
    paint_as(records, shift, monkeypatch)
    results.append(media_metrics.appraise(own, None, 'validation', 7))
  right, wrong = (
    each[f'validation/{judged.name}_accuracy'] for each in results
  )
  assert right > 0.9
  assert wrong < 0.1
  page = tmp_path / f'samples/00000007-validation-{judged.name}.png'
  assert page.stat().st_size > 1000


def test_many_texts_are_only_shown(path, tmp_path, monkeypatch):
  own = run(path, tmp_path, PAINTS, judged=12)
  (task,) = media_metrics.judged_tasks(own.config)
  texts, values = media_metrics._real(own, 'validation', task, 60)
  paint_as(list(zip(texts, values, strict=True)), 0, monkeypatch)
  monkeypatch.setattr(media_metrics, '_CLASSES', 2)
  assert media_metrics.appraise(own, None, 'validation', 7) == {}
  page = tmp_path / f'samples/00000007-validation-{task.name}.png'
  assert page.stat().st_size > 1000


@pytest.mark.parametrize(
  ('tasks', 'evaluated', 'message'),
  [
    ((READS,), {'judged': 3}, r'eval\.judged=3 needs a task'),
    ((PAINTS,), {'captions': 3}, r'eval\.captions=3 needs a task'),
    ((), {'captions': 3}, r'eval\.captions=3 needs a task'),
  ],
)
def test_what_cannot_be_judged_is_refused(tasks, evaluated, message):
  config = config_lib.Config(
    model=photo.model(),
    data=config_lib.Data(tasks=tasks, pack=False, sequence_length=24),
    eval=config_lib.Eval(**evaluated),
  )
  with pytest.raises(config_lib.ConfigError, match=message):
    media_metrics.check(config)


def test_some_records_are_at_even_distances(path):
  config = photo.data(path, PAINTS)
  numbers = [
    record['picture'] for _, record in splits.spread_records(config, 'train', 4)
  ]
  assert numbers == ['0.png', '19.png', '39.png', '59.png']
