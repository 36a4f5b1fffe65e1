"""Nothing of what is evaluated stands in what is trained on."""

import re

import pytest

from gemini_jax import config
from gemini_jax.data import deduplication, sources, splits

TOPICS = 'python:pydoc_data.topics'


def flat(text):
  return ' '.join(text.split())


def runs(text, length):
  text = flat(text)
  return {text[i : i + length] for i in range(len(text) - length + 1)}


def paragraphs(text):
  return {flat(part) for part in re.split(r'\n\s*\n', text) if flat(part)}


def split_topics(**fields):
  data = config.Data(
    train=(f'{TOPICS}#[!9::10]',), validation=(f'{TOPICS}#[9::10]',), **fields
  )
  return [
    '\n\n'.join(splits.texts(data, name)) for name in ('train', 'validation')
  ]


def test_no_run_of_validation_stands_in_training():
  train, validation = split_topics(deduplicate=True)
  assert not paragraphs(train) & paragraphs(validation)
  # Joined by the test, passages that are apart could make a run of their own.
  shared = runs(train, deduplication.RUN + 10) & runs(
    validation, deduplication.RUN + 10
  )
  assert not shared
  assert 0.05 < len(validation) / len(train) < 0.2
  assert len(train) > 200_000


def test_the_same_split_leaks_without_it():
  """The control: the data do repeat themselves."""
  train, validation = split_topics()
  assert runs(train, 500) & runs(validation, 500)


def test_repeats_are_found_in_other_white_space_and_inside_paragraphs():
  line = 'a long enough line that is repeated word by word, more or less'
  seen = set()
  first = deduplication.unique_paragraphs(f'one\n\n{line}\n\ntwo', seen)
  assert first == ['one', line, 'two']
  wrapped = line.replace(' ', '\n  ')
  again = deduplication.unique_paragraphs(
    f'new\n\n   {wrapped}\n\nalso {line}!\n\none', seen
  )
  assert again == ['new']


def test_a_run_across_paragraphs_is_found():
  parts = ['twenty letters at all', 'and twenty more here', 'and a third one!!']
  seen = set()
  deduplication.unique_paragraphs(' '.join(parts), seen)
  kept = deduplication.unique_paragraphs('\n\n'.join(parts), seen)
  assert len(' '.join(kept)) < deduplication.RUN


def test_training_gives_way_to_evaluation_in_another_file(tmp_path):
  shared = 'this sentence of the test file stands in the training file too.'
  (tmp_path / 'train.txt').write_text(f'only here\n\n{shared}\n\nthe end')
  (tmp_path / 'test.txt').write_text(shared)
  data = config.Data(
    train=(f'text:{tmp_path}/train.txt',),
    test=(f'text:{tmp_path}/test.txt',),
    deduplicate=True,
  )
  assert list(splits.texts(data, 'test')) == [shared]
  assert list(splits.texts(data, 'train')) == ['only here\n\nthe end']


def test_the_report_counts_what_was_dropped(tmp_path):
  (tmp_path / 'a.txt').write_text('same\n\nsame\n\nother')
  spec = f'text:{tmp_path}/a.txt'
  data = config.Data(train=(spec,), deduplicate=True)
  _, report = deduplication.sources_without_repeats(data)[spec]
  assert report.describe() == 'kept 2 of 3 paragraphs, 9 of 13 bytes'


def test_slices_count_passages(tmp_path):
  text = '\n\n'.join(f'{i} ' + chr(97 + i) * 999 for i in range(8))
  (tmp_path / 'a.txt').write_text(text)
  specs = [f'text:{tmp_path}/a.txt{part}' for part in ('#[:3]', '#[3:]')]
  data = config.Data(
    train=(specs[0],), validation=(specs[1],), deduplicate=True
  )
  found = deduplication.sources_without_repeats(data)
  sizes = [len(found[spec][0]) for spec in specs]
  assert sizes == [3, 1]
  assert isinstance(found[specs[0]][0], sources.Source)


def test_pairs_are_refused():
  with pytest.raises(config.ConfigError, match=r'data\.deduplicate=True'):
    config.Data(deduplicate=True, inputs_field='a', targets_field='b')
