"""Media are judged by what they show, by a classifier of real ones."""

import importlib.util

import numpy as np
import pytest

import evaluated
import photo
from gemini_jax.data import splits
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import judged_media
from gemini_jax.infer import media_generation

pytest.importorskip('PIL.Image', reason='needs gemini_jax[media]')
# Importing it takes a second.
pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('sklearn') is None, reason='needs gemini_jax[judge]'
)

LOADERS = {'validation': None}


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photos')
  return photo.write(folder, 60)


def run(path, workdir, *tasks, num_examples):
  """A run, the last of its tasks, and real records of that task."""
  opened = evaluated.run(
    path,
    workdir,
    *tasks,
    judged_media={'num_examples': num_examples, 'temperature': 0.5},
  )
  task = task_lib.from_config(opened.config.data)[-1]
  texts, values = judged_media._real_examples(opened, 'validation', task, 60)
  return opened, task, list(zip(texts, values, strict=True))


def paint_as(records, shift, monkeypatch):
  """Pictures of the word that is `shift` words on."""

  def paint(config, model, params, tokenizer, kind, requests, numbers):
    assert config.generate.temperature == 0.5
    # Equal texts ask for different media, and others by other draws.
    assert len(set(numbers)) == len(requests)
    assert config.generate.count == 1 and kind == config.generate.output
    samples = []
    for i, asked in enumerate(requests):
      index = (photo.WORDS.index(asked.text) + shift) % len(photo.WORDS)
      same = [values for word, values in records if word == photo.WORDS[index]]
      samples.append(
        media_generation.MediaSample(
          asked.text, same[i % len(same)], np.zeros((4, 3))
        )
      )
    return samples

  monkeypatch.setattr(media_generation, 'generate', paint)


@pytest.mark.parametrize('task', [evaluated.PAINTS, evaluated.SPEAKS])
def test_media_are_judged_by_what_they_show(task, path, tmp_path, monkeypatch):
  opened, judged, records = run(
    path, tmp_path, evaluated.READS, task, num_examples=30
  )
  results = []
  for shift in (0, 1):
    paint_as(records, shift, monkeypatch)
    results.append(judged_media.evaluate(opened, None, LOADERS, 7))
  right, wrong = (
    each[f'validation/{judged.name}_accuracy'] for each in results
  )
  assert right > 0.9
  assert wrong < 0.1
  page = tmp_path / f'samples/00000007-validation-{judged.name}.png'
  assert page.stat().st_size > 1000


def test_many_texts_are_only_shown(path, tmp_path, monkeypatch):
  opened, task, records = run(path, tmp_path, evaluated.PAINTS, num_examples=12)
  paint_as(records, 0, monkeypatch)
  monkeypatch.setattr(judged_media, '_MAX_CLASSES', 2)
  assert judged_media.evaluate(opened, None, LOADERS, 7) == {}
  page = tmp_path / f'samples/00000007-validation-{task.name}.png'
  assert page.stat().st_size > 1000


def test_some_records_are_at_even_distances(path):
  config = photo.data(path, evaluated.PAINTS)
  numbers = [
    record['picture'] for _, record in splits.spread_records(config, 'train', 4)
  ]
  assert numbers == ['0.png', '19.png', '39.png', '59.png']
