"""Classes of examples and of words: which there are, and where they lie."""

import dataclasses
import json

import numpy as np
import pytest

import byte_pair
from gemini_jax import config as config_lib
from gemini_jax.data import (
  classes,
  fields,
  loader,
  tokenizer,
  transforms,
  unusable,
)

WORDS = ('ab', 'c', 'Größe', '你好', 'x-y', '🙂!', 'tokens')
CLASS = '{text} -> {class:label}'
TAGS = '{words:words} -> {tags:tags}'


def write(path, records):
  path.write_text(''.join(f'{json.dumps(r)}\n' for r in records))
  return f'jsonl:{path}'


def make(tmp_path, records, task=CLASS, **fields):
  """A resolved config of records."""
  spec = write(tmp_path / 'records.jsonl', records)
  data = config_lib.Data(
    **{
      'train': (spec,),
      'tasks': (task,),
      'objective': 'prefix',
      'sequence_length': 48,
      'cache_dir': str(tmp_path / 'cache'),
      'prefetch': 0,
      **fields,
    }
  )
  return classes.resolve(config_lib.Config(data=data), None)


def labelled(labels):
  return [
    {'text': f'text {i}', 'label': label} for i, label in enumerate(labels)
  ]


@pytest.mark.parametrize(
  ('labels', 'names'),
  [
    ('cab', ('a', 'b', 'c')),
    ([10, 9, 2], ('2', '9', '10')),
    (['10', '9', 'x'], ('10', '9', 'x')),
  ],
)
def test_the_classes_of_the_training_data(tmp_path, labels, names):
  config = make(tmp_path, labelled(labels))
  assert config.data.label_names == names
  assert config.model.num_classes == len(names)
  # A run that goes on has those that it began with.
  data = dataclasses.replace(config.data, label_names=(), train=('jsonl:no',))
  begun = config_lib.Config(data=data)
  assert classes.resolve(begun, config).data.label_names == names


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'labels': 'aaa'}, 'has 1 classes'),
    ({'label_names': ('a', 'b', 'a')}, 'each once'),
    ({'tasks': (CLASS, '{text} -> {label}')}, 'one output'),
    ({'tasks': (TAGS,), 'objective': 'seq2seq'}, 'prefix, not seq2seq'),
  ],
)
def test_classes_that_cannot_be(tmp_path, change, message):
  records = labelled(change.pop('labels', 'ab'))
  architecture = 'decoder'
  if 'objective' in change:
    architecture = 'encoder_decoder'
  spec = write(tmp_path / 'records.jsonl', records)
  fields = {'tasks': (CLASS,), 'objective': 'prefix'} | change
  data = config_lib.Data(train=(spec,), **fields)
  config = config_lib.Config(
    data=data, model=config_lib.Model(architecture=architecture)
  )
  with pytest.raises(config_lib.ConfigError, match=message):
    classes.resolve(config, None)


@pytest.mark.parametrize(
  'task',
  [
    '{class:label} -> {text}',
    '{text} -> {class:label} {other}',
    '{text} -> {tags:tags}',
    '{words:words} and {text} -> {tags:tags}',
  ],
)
def test_tasks_that_cannot_be(tmp_path, task):
  with pytest.raises(config_lib.ConfigError, match=r'data\.tasks'):
    make(tmp_path, labelled('ab'), task)


def test_labels_out_of_range_and_classes_without_examples(tmp_path):
  with pytest.raises(config_lib.ConfigError, match='none of the 2 classes'):
    load(make(tmp_path, labelled('abcab'), label_names=('a', 'b')))
  with pytest.raises(config_lib.ConfigError, match='none of the 2 classes'):
    load(make(tmp_path, labelled([0, 1, 7]), label_names=('a', 'b')))
  with pytest.raises(config_lib.ConfigError, match=r'no example of 1 .*z'):
    load(make(tmp_path, labelled('abab'), label_names=('a', 'b', 'z')))


@pytest.mark.parametrize('labels', [[1, 2, 5, 3, 4], ['1', '2', '5', '3', '4']])
def test_a_number_is_the_class_of_its_name(tmp_path, labels):
  """Stars from 1 to 5 as JSON's numbers or as a table's text."""
  config = make(tmp_path, labelled(labels), shuffle=False, pack=False)
  assert config.data.label_names == ('1', '2', '3', '4', '5')
  batch = load(config)[0]
  targets = batch.targets[batch.weights > 0][:5]
  assert [int(label) - 1 for label in labels] == targets.tolist()
  # Without names like it a number is a place among them.
  config = make(
    tmp_path, labelled([1, 0, 1, 0, 1]), label_names=('no', 'yes'), pack=False
  )
  index = fields.ClassIndex(config.data.label_names)
  assert [index.number('label', value) for value in (1, 0)] == [1, 0]
  # A source has its own order.
  index = fields.ClassIndex(('no', 'yes'), ('yes', 'no'))
  assert [index.number('label', value) for value in (1, 0)] == [0, 1]


def test_classes_do_not_name_inputs(tmp_path):
  records = [{'text': f'{i}', 'age': i, 'label': 'ab'[i % 2]} for i in range(2)]
  with pytest.raises(config_lib.ConfigError, match="'age' is not text"):
    load(make(tmp_path, records, '{age} {text} -> {class:label}'))


def load(config, words=None, **kwargs):
  return loader.Loader(
    config.data, words or tokenizer.Bytes(), 'train', model=config.model,
    **kwargs,
  )  # fmt: skip


@pytest.mark.parametrize('objective', ['prefix', 'causal', 'seq2seq'])
@pytest.mark.parametrize('pack', [True, False])
def test_the_last_that_is_read_names_the_class(tmp_path, objective, pack):
  rng = np.random.default_rng(0)
  labels = [str(label) for label in rng.integers(0, 3, 40)]
  records = [
    {'text': ' '.join(rng.choice(WORDS, rng.integers(1, 4))), 'label': label}
    for label in labels
  ]
  spec = write(tmp_path / 'r.jsonl', records)
  data = config_lib.Data(
    train=(spec,),
    tasks=(CLASS,),
    objective=objective,
    pack=pack,
    sequence_length=64,
    inputs_length=64,
    batch_size=4,
    cache_dir=str(tmp_path / 'cache'),
  )
  architecture = 'encoder_decoder' if objective == 'seq2seq' else 'decoder'
  config = classes.resolve(
    config_lib.Config(
      data=data, model=config_lib.Model(architecture=architecture)
    ),
    None,
  )
  found, words = [], tokenizer.Bytes()
  batches = load(config)
  for index in range(-(-batches.num_rows // 4)):
    batch = batches[index]
    read = batch.encoder or batch.decoder
    rows, places = np.nonzero(batch.weights)
    for row, place in zip(rows, places, strict=True):
      segment = batch.decoder.segments[row, place]
      of_text = np.flatnonzero(read.segments[row] == segment)
      text = read.tokens[row, of_text]
      if objective == 'seq2seq':
        assert batch.decoder.tokens[row, place] == words.bos_id
      else:
        # It reads the eos after the text.
        assert place == of_text[-1]
      assert text[-1] == words.eos_id
      found.append((words.decode(text), str(batch.targets[row, place])))
  expected = [(r['text'], r['label']) for r in records]
  # The last batch of an epoch is filled with rows of the next one.
  assert set(found) == set(expected) and len(found) >= len(expected)


@pytest.mark.parametrize('kind', ['bytes', 'characters', 'bpe', 'library'])
def test_the_last_token_of_a_word_names_its_tag(kind, tmp_path):
  rng = np.random.default_rng(1)
  texts = [' '.join(rng.choice(WORDS, 6)) for _ in range(30)]
  words = {
    'bytes': tokenizer.Bytes,
    'characters': lambda: tokenizer.Characters(' '.join(WORDS)),
    'bpe': lambda: byte_pair.sentencepiece_model('bpe'),
    'library': lambda: byte_pair.make(tmp_path),
  }[kind]()
  for text in texts:
    tags = rng.integers(0, 5, 6).tolist()
    tokens, tagged = transforms.classified(
      (text,), transforms.Classes(tuple(tags), are_of_words=True), words
    )
    assert tokens[0] == words.bos_id
    assert tokens[-2:].tolist() == [words.eos_id] * 2
    (places,) = np.nonzero(tagged)
    assert (tagged[places] - 1).tolist() == tags
    # What is read up to there ends with the word.
    for number, place in enumerate(places):
      read = words.decode(tokens[1:place])
      assert read == ' '.join(text.split()[: number + 1])


def test_a_word_needs_a_token_and_a_tag():
  words = tokenizer.Bytes()
  two = transforms.Classes((0, 1), are_of_words=True)
  with pytest.raises(unusable.UnusableError, match='3 words have 2 tags'):
    transforms.classified(('a b c',), two, words)
  # A tokenizer that joins two words, and one that drops one.
  for spans in ([[0, 3]], [[0, 2]]):
    with pytest.raises(unusable.UnusableError, match="word '"):
      transforms.last_tokens('a b', np.array(spans))


def test_rare_classes_count_more(tmp_path):
  labels = [*'aaaaaabbb', 'c']
  config = make(
    tmp_path, labelled(labels), class_weights='balanced', batch_size=5
  )
  batches = load(config)
  weights = np.zeros(3)
  for index in range(40):
    batch = batches[index]
    used = batch.weights > 0
    np.add.at(weights, batch.targets[used], batch.weights[used])
  np.testing.assert_allclose(weights / weights.sum(), 1 / 3, atol=0.02)
  expected = [10 / 3 / 6, 10 / 3 / 3, 10 / 3 / 1]
  batch = batches[0]
  for name, value in enumerate(expected):
    of_class = (batch.targets == name) & (batch.weights > 0)
    np.testing.assert_allclose(batch.weights[of_class], value, rtol=1e-6)
