"""A request is one task's inputs; what does not fill them in is refused."""

import dataclasses

import numpy as np
import pytest

import photo
from gemini_jax import config as config_lib
from gemini_jax.data import image, tokenizer
from gemini_jax.data import task as task_lib
from gemini_jax.infer import request

READS = 'read = {image:picture} and {audio:sound} -> {word}'
NAMES = '{image:picture} -> {word}'
TRANSLATES = 'two = {image:picture} in {word} -> {text}'
PAINTS = 'paint = {word} -> {image:picture}'
BYTES = tokenizer.Bytes()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('photos')
  photo.write(path, 2)
  return path


def config(*tasks, **generate):
  return config_lib.Config(
    model=photo.model(),
    data=config_lib.Data(tasks=tasks, pack=False, sequence_length=24),
    generate=config_lib.Generate(**generate),
  )


def test_a_task_is_filled_in(folder):
  own = config(READS, PAINTS, image=f'{folder}/0.png', audio=f'{folder}/1.wav')
  found = request.from_options(own, BYTES)
  picture = image.read(f'{folder}/0.png', own.model.image)
  assert np.array_equal(found.media['image'][0].values, picture.values)
  ids = found.tokens.tolist()
  assert ids[:4] == [own.model.placeholder('image')] * 4
  count = own.model.tokens_of('audio', found.media['audio'][0].size.tolist())
  assert ids[-count:] == [own.model.placeholder('audio')] * count
  assert BYTES.decode(ids[4:-count]) == ' and '
  assert '0.png' in found.text and '1.wav' in found.text
  painted = request.from_options(
    config(READS, PAINTS, prompt='dark', output='image'), BYTES
  )
  assert BYTES.decode(painted.tokens) == 'dark' and not painted.media


def test_a_name_tells_tasks_apart(folder):
  picture = f'{folder}/0.png'
  own = config(NAMES, TRANSLATES, image=picture, task='two', prompt='dark')
  text = request.from_options(own, BYTES).tokens[4:]
  assert BYTES.decode(text) == ' in dark'


@pytest.mark.parametrize(
  ('tasks', 'generate', 'message'),
  [
    (
      (NAMES,),
      {'prompt': 'dark'},
      'is none of the tasks of this model: {image',
    ),
    ((PAINTS,), {'prompt': 'x', 'output': 'audio'}, "'audio' of text is none"),
    ((PAINTS,), {'task': 'pant'}, "generate.task='pant' with"),
    (
      (f'paint = {PAINTS}',),
      {'task': 'paint', 'prompt': 'dark'},
      "generate.task='paint' with generate.output='text' is none",
    ),
    ((NAMES, TRANSLATES), {'image': '0.png'}, 'fits several tasks; set gen'),
    ((PAINTS,), {'output': 'image'}, 'reads prompt; set generate.prompt'),
    (
      (NAMES,),
      {'image': '0.png', 'prompt': 'dark'},
      "generate.prompt='dark' is not read by the task '{image:picture} -> ",
    ),
    (
      (NAMES,),
      {'image': 'nowhere.png'},
      "generate.image='nowhere.png': a missing file",
    ),
    ((NAMES,), {'image': 'records.jsonl'}, 'not a picture'),
    (
      ('{image:a}{image:b} -> {word}',),
      {'image': '0.png'},
      'reads several of one kind',
    ),
  ],
)
def test_what_does_not_fit_is_refused(
  folder, monkeypatch, tasks, generate, message
):
  monkeypatch.chdir(folder)
  with pytest.raises(config_lib.ConfigError) as caught:
    request.from_options(config(*tasks, **generate), BYTES)
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_requests_are_stacked(folder):
  own = config(READS)
  task = task_lib.parse(READS)
  record = {'picture': f'{folder}/0.png', 'sound': f'{folder}/0.wav'}
  one = request.from_record(own, BYTES, task, record)
  plain = request.Request('', one.tokens)
  found = request.stack_media(own.model, [plain, one], 3)
  assert sorted(found) == ['audio', 'image']
  for kind, stacked in found.items():
    values, size = one.media[kind][0]
    assert np.array_equal(stacked.values[1, 0], values)
    assert np.array_equal(stacked.sizes[1, 0], size)
    assert not stacked.values[[0, 2]].any() and not stacked.sizes[[0, 2]].any()
  assert request.stack_media(own.model, [plain], 2) == {}


def test_numbers_are_named():
  own = dataclasses.replace(config('{level} -> {image:picture}'))
  task = task_lib.from_config(own.data)[0]
  names = {'level': photo.WORDS}
  found = request.from_record(own, BYTES, task, {'level': 2}, names=names)
  assert found.text == 'light' == BYTES.decode(found.tokens)
