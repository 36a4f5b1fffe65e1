"""A task says what is read and written; what is not one is refused."""

import pytest

from gemini_jax import config as config_lib
from gemini_jax.data import task


def kinds_and_values(pieces):
  return [(piece.kind, piece.value) for piece in pieces]


def test_a_task_is_read():
  found = task.parse('caption = {image:photo} in {language}: -> {text}.')
  assert found.name == 'caption'
  inputs, targets = map(kinds_and_values, found.parts)
  assert inputs == [
    ('image', 'photo'),
    ('literal', ' in '),
    ('text', 'language'),
    ('literal', ':'),
  ]
  assert targets == [('text', 'text'), ('literal', '.')]
  assert found.fields == ('photo', 'language', 'text')
  assert found.kinds('inputs') == ('image',) and found.kinds('targets') == ()


def test_equals_signs_of_literals_are_no_names():
  assert task.parse('{a} = {b} -> {c}').name == ''
  assert task.parse('x={a} -> {c}').name == 'x'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{a}', 'must be INPUTS -> TARGETS'),
    ('{a} -> b', 'must be INPUTS -> TARGETS'),
    ('-> {a}', 'must be INPUTS -> TARGETS'),
    ('{a} -> {b} -> {c}', 'must be INPUTS -> TARGETS'),
    ('{image: a} {c} -> {b}', "'{image: a} ' is not a field"),
    ('{c} -> {my-field}{b}', "'{my-field}' is not a field"),
    ('{imge:a} -> {b}', "'imge' is not a kind of field; did you mean image?"),
  ],
)
def test_what_is_no_task_is_refused(text, message):
  with pytest.raises(config_lib.ConfigError) as caught:
    task.parse(text)
  assert message in str(caught.value) and repr(text) in str(caught.value)


def test_tasks_of_a_config():
  (plain,) = task.from_config(config_lib.Data(text_field='body'))
  assert kinds_and_values(plain.targets) == [('text', 'body')]
  (pair,) = task.from_config(
    config_lib.Data(inputs_field='a', targets_field='b')
  )
  assert pair.fields == ('a', 'b') and len(pair.parts) == 2
  (preference,) = task.from_config(
    config_lib.Data(inputs_field='a', targets_field='b', rejected_field='c')
  )
  assert preference.fields == ('a', 'b', 'c')
  assert preference.parts[:2] == pair.parts
  # The key of a token cache holds it: of other tasks as before.
  assert 'rejected' in repr(preference) and 'rejected' not in repr(pair)
  two = task.from_config(
    config_lib.Data(tasks=('x = {a} -> {b}', '{b} -> {audio:c}'))
  )
  assert [own.name for own in two] == ['x', '']
  with pytest.raises(config_lib.ConfigError, match='different names'):
    task.from_config(
      config_lib.Data(tasks=('x = {a} -> {b}', 'x = {b} -> {a}'))
    )


def test_inputs_without_a_kind():
  own = task.parse('{image:a} and {audio:b} -> {image:c}')
  left = own.drop_kinds(['image'])
  assert kinds_and_values(left.inputs) == [
    ('literal', ' and '),
    ('audio', 'b'),
  ]
  assert left.targets == own.targets and own.drop_kinds(()) == own
  plain = task.Task('', own.targets)
  assert plain.drop_kinds(['image']) == plain and plain.inputs is None


def test_the_most_media_of_a_kind():
  tasks = [
    task.parse('{image:a}{image:b}{audio:c} -> {d}'),
    task.parse('{image:a} -> {image:b}'),
  ]
  assert task.max_media(tasks, ('inputs',)) == {'image': 2, 'audio': 1}
  assert task.max_media(tasks, ('targets',)) == {'image': 1}
  assert task.max_media(tasks, ('inputs', 'targets')) == {
    'image': 2,
    'audio': 1,
  }
