"""Batch t is a function of t, and every target is seen once an epoch."""

import collections
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from gemini_jax import config
from gemini_jax.data import (
  fields,
  loader,
  splits,
  tokenizer,
  tokenizer_training,
)

PREPARED = pathlib.Path(__file__).parents[2] / '../shared/tfds'
BYTES = tokenizer.Bytes()
WORDS = {
  'inputs_field': 'inputs',
  'targets_field': 'targets',
  'train': ('reverse:200#[:90%]',),
  'validation': ('reverse:200#[90%:]',),
}
# The word itself is worse than the word reversed.
PREFERENCES = {**WORDS, 'rejected_field': 'inputs'}
LAYOUTS = {
  'packed': {},
  'unpacked': {'pack': False},
  'ordered': {'shuffle': False},
  'prefix text': {'objective': 'prefix'},
  'seq2seq text': {'objective': 'seq2seq'},
  'pairs': WORDS,
  'prefix pairs': {**WORDS, 'objective': 'prefix', 'pack': False},
  'seq2seq pairs': {**WORDS, 'objective': 'seq2seq'},
  'preferences': PREFERENCES,
  'unpacked preferences': {**PREFERENCES, 'pack': False},
  'seq2seq preferences': {**PREFERENCES, 'objective': 'seq2seq'},
}


@pytest.fixture(autouse=True)
def corpus(tmp_path):
  """60 files of 0 to 199 characters, one of 3,000."""
  rng = np.random.default_rng(0)
  letters = np.array(list('abcdefghijklmnopqrstuvwxyz '))
  for name, sizes in (('a', [*range(0, 200, 5), 3000]), ('b', [400] * 20)):
    (tmp_path / name).mkdir()
    for i, size in enumerate(sizes):
      text = ''.join(rng.choice(letters, size))
      (tmp_path / name / f'{i:03}.txt').write_text(text)


@pytest.fixture
def make(tmp_path):
  def make(split='train', seed=0, made=BYTES, **fields):
    options = {
      key: fields.pop(key) for key in ('rows', 'eval_batch') if key in fields
    }
    if 'eval_batch' in options:
      options['batch_size'] = options.pop('eval_batch')
    values = {
      'train': (f'text:{tmp_path}/a/*.txt',),
      'validation': (f'text:{tmp_path}/b/*.txt',),
      'batch_size': 4,
      'sequence_length': 64,
      'inputs_length': 64,
      'cache_dir': str(tmp_path / 'cache'),
      # One of the files is empty.
      'max_unusable': 0.05,
    } | fields
    data = config.Data(**values)
    return loader.Loader(data, made, split, seed, **options)

  return make


def same(a, b):
  return all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def rows_of(batch, rows):
  return jax.tree.map(lambda leaf: leaf[rows], batch)


def rows_of_epoch(made, epoch):
  """Every row of one epoch as a batch, whatever the batch size."""
  first, last = epoch * made.num_rows, (epoch + 1) * made.num_rows
  size = made.batch_size
  batches = [made[t] for t in range(first // size, -(-last // size))]
  whole = jax.tree.map(lambda *xs: np.concatenate(xs), *batches)
  skip = first - first // size * size
  return jax.tree.map(lambda x: x[skip : skip + made.num_rows], whole)


def pieces(batch):
  """(inputs, targets) of each segment, as tuples of ids."""
  for row in range(len(batch.targets)):
    segments = batch.decoder.segments[row]
    for number in range(1, segments.max() + 1):
      at = segments == number
      yield (
        tuple(batch.decoder.tokens[row][at].tolist()),
        tuple(batch.targets[row][at].tolist()),
      )


@pytest.mark.parametrize('layout', LAYOUTS)
def test_batches_are_pure(make, layout):
  one, two = make(**LAYOUTS[layout]), make(**LAYOUTS[layout])
  times = [0, 7, 123, 1, 10**6]
  first = [one[t] for t in times]
  second = [two[t] for t in reversed(times)]
  assert all(map(same, first, reversed(second)))
  ordered = [x for name, x in LAYOUTS[layout].items() if name == 'shuffle']
  other = make(seed=1, **LAYOUTS[layout])
  assert same(other[0], one[0]) == (ordered == [False])


def test_a_fresh_process_makes_the_same_batch(make, tmp_path):
  made = make(objective='prefix')
  code = f"""
from gemini_jax import config
from gemini_jax.data import loader, tokenizer
data = config.Data(
  train=('text:{tmp_path}/a/*.txt',), cache_dir='{tmp_path}/cache',
  objective='prefix', batch_size=4, sequence_length=64, inputs_length=64,
  max_unusable=0.05)
made = loader.Loader(data, tokenizer.Bytes(), 'train')
print(made[33].decoder.tokens.sum(), made[33].prefix.sum())
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  batch = made[33]
  expected = [batch.decoder.tokens.sum(), batch.prefix.sum()]
  assert list(map(int, done.stdout.split())) == expected


@pytest.mark.parametrize('layout', ['packed', 'unpacked', 'ordered'])
def test_each_target_of_a_text_is_seen_once_an_epoch(make, layout):
  made = make(**LAYOUTS[layout])
  expected = collections.Counter()
  for text in splits.texts(made.config, 'train'):
    tokens = [1, *BYTES.encode(text).tolist(), 2]
    expected.update(itertools.pairwise(tokens))
  orders = []
  for epoch in range(3):
    batch = rows_of_epoch(made, epoch)
    seen = collections.Counter()
    for inputs, targets in pieces(batch):
      seen.update(zip(inputs, targets, strict=True))
    assert seen == expected
    assert batch.weights.sum() == made.num_targets == sum(expected.values())
    orders.append(batch.targets.tobytes())
  # Every epoch has its own windows and order, unless there is none.
  assert len(set(orders)) == (1 if layout == 'ordered' else 3)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_segments_and_positions_belong_to_the_pieces(make, layout):
  batch = rows_of_epoch(make(**LAYOUTS[layout]), 1)
  for sequence in (batch.decoder, batch.encoder):
    if sequence is None:
      continue
    for segments, positions in zip(
      sequence.segments, sequence.positions, strict=True
    ):
      used = segments[segments > 0]
      assert np.array_equal(np.unique(used), np.arange(1, used.max() + 1))
      assert (np.diff(used) >= 0).all() and (segments[len(used) :] == 0).all()
      for number in np.unique(used):
        own = positions[segments == number]
        assert np.array_equal(own, np.arange(len(own)))
  assert not batch.weights[batch.decoder.segments == 0].any()
  if batch.encoder is not None:
    assert np.array_equal(
      batch.encoder.segments.max(1), batch.decoder.segments.max(1)
    )


@pytest.mark.parametrize('layout', ['pairs', 'prefix pairs', 'seq2seq pairs'])
def test_pairs_come_whole_and_once(make, layout):
  made = make(**LAYOUTS[layout])
  batch = rows_of_epoch(made, 2)
  found = []
  for row in range(len(batch.targets)):
    segments = batch.decoder.segments[row]
    for number in range(1, segments.max() + 1):
      at = segments == number
      asked = at & (batch.weights[row] > 0)
      target = BYTES.decode(batch.targets[row][asked])
      assert batch.targets[row][asked][-1] == BYTES.eos_id
      if batch.encoder is None:
        shown = batch.decoder.tokens[row][at][: -asked.sum() + 1 or None]
      else:
        own = batch.encoder.segments[row] == number
        shown = batch.encoder.tokens[row][own]
      found.append((BYTES.decode(shown), target))
  assert all(word[::-1] == target for word, target in found)
  assert len({word for word, _ in found}) == len(found) == 180
  if layout != 'prefix pairs':
    assert made.num_rows < 150
  assert made.num_bytes == sum(len(target) for _, target in found)


def test_pairs_that_are_too_long_are_counted(make):
  made = make(**WORDS, sequence_length=40)
  limit = (40 - 2) // 2
  words = list(splits.texts(made.config, 'train'))[::2]
  expected = sum(len(word) > limit for word in words)
  assert made.num_records == 180 - expected and 0 < expected < 180
  assert f'{expected} unusable: {expected} too long' in made.describe()[0]
  with pytest.raises(config.ConfigError, match='every record is too long'):
    make(**WORDS, sequence_length=5)


@pytest.mark.parametrize('layout', [x for x in LAYOUTS if 'preferences' in x])
def test_what_is_preferred_and_what_is_not_have_the_same_place(make, layout):
  made = make(**LAYOUTS[layout])
  whole = rows_of_epoch(made, 1)
  answers = []
  for batch in (whole, whole.rejected):
    weights = batch.weights * (batch.targets != BYTES.eos_id)
    texts = {
      (row, number): BYTES.decode(batch.targets[row][at & (weights[row] > 0)])
      for row in range(len(batch.targets))
      for number in range(1, batch.decoder.segments[row].max() + 1)
      for at in [batch.decoder.segments[row] == number]
    }
    answers.append(texts)
  assert answers[0].keys() == answers[1].keys()
  assert all(answers[1][at][::-1] == text for at, text in answers[0].items())
  assert len(set(answers[0].values())) == len(answers[0]) == 180
  assert made.num_records == 180
  packed = 'unpacked' not in layout
  assert made.num_rows == 180 or (packed and made.num_rows < 150)
  # Of the preferred targets alone.
  assert made.num_targets == whole.weights.sum()


def test_a_preference_fits_as_a_whole(make, tmp_path):
  long = {'prompt': 'a', 'chosen': 'b' * 20, 'rejected': 'c' * 99}
  records = [long, {**long, 'rejected': 'd'}, {'prompt': 'a', 'chosen': 'b'}]
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (tmp_path / 'pairs.jsonl').write_text(lines)
  made = make(
    train=(f'jsonl:{tmp_path}/pairs.jsonl',),
    inputs_field='prompt',
    targets_field='chosen',
    rejected_field='rejected',
    max_unusable=0.5,
  )
  assert made.num_records == 1 and made.num_bytes == 20
  assert "2 unusable: 1 no field 'rejected', 1 too long" in made.describe()[0]
  batch = made[0]
  assert BYTES.encode('d')[0] in batch.rejected.targets
  assert BYTES.encode('c')[0] not in batch.rejected.targets


@pytest.mark.parametrize(
  'layout', ['packed', 'seq2seq pairs', 'mixture', 'preferences']
)
def test_processes_share_the_global_batch(make, layout, tmp_path):
  both = tuple(f'text:{tmp_path}/{name}/*.txt' for name in 'ab')
  fields = LAYOUTS.get(layout, {'train': both, 'mixture_weights': (0.3, 0.7)})
  whole = make(**fields)
  shares = [np.array(rows) for rows in ((0, 1), (2, 3), (1, 3), (2,))]
  for rows in shares:
    part = make(rows=rows, **fields)
    assert part.batch_size == 4
    assert part.state(3) == whole.state(3)
    for t in (0, 5, 61):
      assert same(part[t], rows_of(whole[t], rows))


def test_a_mixture_keeps_its_shares_and_its_epochs(make, tmp_path):
  (tmp_path / 'upper').mkdir()
  for i in range(10):
    (tmp_path / 'upper' / f'{i}.txt').write_text('X' * (64 * 3 - 1))
  made = make(
    train=(f'text:{tmp_path}/b/*.txt', f'text:{tmp_path}/upper/*.txt'),
    mixture_weights=(0.75, 0.25),
  )
  upper = BYTES.encode('X')[0]
  rows = np.concatenate([(made[t].targets == upper).any(1) for t in range(60)])
  given = np.cumsum(rows)
  assert np.abs(given - 0.25 * np.arange(1, len(rows) + 1)).max() < 1
  # 30 rows of the second source are an epoch: each target once.
  first = np.flatnonzero(rows)[:30]
  targets = np.concatenate([made[t].targets for t in range(60)])[first]
  assert (targets == upper).sum() == 10 * (64 * 3 - 1)


@pytest.mark.parametrize('eval_batch', [1, 4, 7, 1000])
def test_evaluation_sees_each_target_once(make, eval_batch, tmp_path):
  specs = tuple(f'text:{tmp_path}/{name}/*.txt' for name in 'ab')
  made = make('validation', validation=specs, eval_batch=eval_batch)
  batches = [made[t] for t in range(len(made))]
  assert all(batch.targets.shape == (eval_batch, 64) for batch in batches)
  seen = np.concatenate([b.targets[b.weights > 0] for b in batches])
  texts = list(splits.texts(made.config, 'validation'))
  expected = [[*BYTES.encode(text), 2] for text in texts]
  assert seen.tolist() == list(itertools.chain(*expected))
  assert made.num_bytes == sum(map(len, texts))
  assert made.num_targets == made.num_bytes + made.num_records
  with pytest.raises(IndexError):
    made[len(made)]


def test_processes_without_rows_evaluate_padding(make):
  parts = [
    make('validation', eval_batch=512, rows=rows)
    for rows in (np.arange(256), np.arange(256, 512))
  ]
  assert [len(part) for part in parts] == [1, 1]
  assert parts[0][0].weights.sum() == parts[0].num_targets
  assert not parts[1][0].weights.any()


def test_what_was_left_out_is_told(make, tmp_path):
  lines = ['{"text": "abc"}', '{"text": ""}', '{', '{"text": 3}']
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  made = make(train=(f'jsonl:{tmp_path}/a.jsonl',), max_unusable=0.75)
  assert made.num_records == 1 and made.num_bytes == 3
  assert made.describe()[0].startswith(
    f"data.train[0]=jsonl:{tmp_path}/a.jsonl: 1 records, 3 unusable: 1 'text' "
    "is empty, 1 'text' is not text, 1 invalid JSON; 4 tokens"
  )


def test_a_source_without_anything_usable_is_an_error(make, tmp_path):
  (tmp_path / 'a.jsonl').write_text('{\n{"txt": 1}\n')
  for _ in range(2):  # The second finds an empty corpus in the cache.
    with pytest.raises(config.ConfigError) as error:
      make('validation', validation=(f'jsonl:{tmp_path}/a.jsonl',))
    assert str(error.value) == (
      f'data.validation[0]=jsonl:{tmp_path}/a.jsonl: no record is usable, '
      "2 unusable: 1 invalid JSON, 1 no field 'text'; record 0 (a.jsonl:1): "
      "invalid JSON: '{\\n'; record 1 (a.jsonl:2): no field 'text': {'txt': 1}"
    )
  with pytest.raises(config.ConfigError, match=r'data\.test=\(\) names no sou'):
    make('test')


def test_a_state_returns_to_its_batch(make):
  made = make()
  state = json.loads(json.dumps(made.state(17)))
  assert make().check(state) == 17


def test_a_state_of_other_data_is_refused(make, tmp_path):
  state = make().state(3)
  with pytest.raises(
    config.ConfigError, match=r'data\.sequence_length was 64, is 32;'
  ):
    make(sequence_length=32).check(state)
  with pytest.raises(config.ConfigError, match=r'train\.seed was 0, is 5;'):
    make(seed=5).check(state)
  with pytest.raises(config.ConfigError, match='tokenizer was '):
    make(made=tokenizer.Characters('abc')).check(state)
  (tmp_path / 'a' / '020.txt').write_text('changed')
  with pytest.raises(
    config.ConfigError,
    match=r'data\.train had other records: data\.train\[0\]=text:',
  ):
    make().check(state)


def test_the_same_records_at_another_place_resume(make, tmp_path):
  state = make().state(3)
  shutil.copytree(tmp_path / 'a', tmp_path / 'elsewhere')
  moved = make(train=(f'text:{tmp_path}/elsewhere/*.txt',))
  assert moved.check(json.loads(json.dumps(state))) == 3
  both = [f'text:{tmp_path}/{name}/*.txt' for name in ('a', 'b')]
  state = make(train=tuple(both)).state(3)
  with pytest.raises(
    config.ConfigError, match=r'data\.train had other records'
  ):
    make(train=tuple(reversed(both))).check(state)
  with pytest.raises(config.ConfigError, match=r'was 2 sources, is 1 sources'):
    make().check(state)


def test_a_state_of_an_earlier_version_resumes(make, tmp_path):
  """It had the digest of a source under the source's name."""
  specs = [f'text:{tmp_path}/a/{i:03}.txt' for i in range(1, 12)]
  made = make(train=tuple(specs))
  state = made.state(3)
  digests = state['fingerprint'].pop('data.train')
  assert len(set(digests)) == len(specs)
  state['fingerprint'] |= {
    f'data.train[{i}]={spec}': digest
    for i, (spec, digest) in enumerate(zip(specs, digests, strict=True))
  }
  # Sorted by name, [10] stands before [2].
  state = json.loads(json.dumps(state, sort_keys=True))
  assert made.check(state) == 3
  (tmp_path / 'a' / '002.txt').write_text('changed')
  with pytest.raises(config.ConfigError, match=r'other records: .*\[1\]=text'):
    make(train=tuple(specs)).check(state)


def test_augmentations_of_an_earlier_version_resume(make, tmp_path):
  """Those that came later were off; others are a change."""
  (tmp_path / 'a.jsonl').write_text('{"a": "b", "c": "d"}\n' * 9)
  fields = {'train': (f'jsonl:{tmp_path}/a.jsonl',), 'tasks': ('{a} -> {c}',)}
  made = make(augment=config.Augment(noise_db=(5.0, 9.0)), **fields)
  state = made.state(3)
  text = state['fingerprint']['data.augment']
  state['fingerprint']['data.augment'] = text.replace('cutmix_alpha=0.0, ', '')
  assert state['fingerprint']['data.augment'] != text
  assert made.check(state) == 3
  for other in ({'noise_db': (5.0, 8.0)}, {'cutmix_alpha': 0.5}):
    augment = config.Augment(**{'noise_db': (5.0, 9.0)} | other)
    with pytest.raises(config.ConfigError, match=r'data\.augment was Augment'):
      make(augment=augment, **fields).check(state)


def test_changes_may_be_accepted(make, caplog):
  state = json.loads(json.dumps(make().state(7)))
  changed = make(batch_size=2, seed=5)
  accepted = ['data.batch_size']
  with pytest.raises(config.ConfigError) as error:
    changed.check(state, accepted)
  assert str(error.value) == (
    'the data are not those of the checkpoint: train.seed was 0, is 5; to '
    'resume with the new values, set --config.train.accept_changes='
    "\"('data.batch_size', 'train.seed')\""
  )
  assert changed.check(state, [*accepted, 'train.seed']) == 7
  assert 'data.batch_size was 4, is 2' in caplog.text
  other = make(made=tokenizer.Characters('abc'), batch_size=2)
  with pytest.raises(config.ConfigError) as error:
    other.check(state, [*accepted, 'data.train'])
  assert 'tokenizer was ' in str(error.value)
  assert 'accept_changes' not in str(error.value)


def test_every_name_that_a_state_has_may_be_accepted(make, tmp_path):
  lines = ''.join(f'{{"a": "b", "c": "{i}"}}\n' for i in range(9))
  (tmp_path / 'a.jsonl').write_text(lines)
  made = make(train=(f'jsonl:{tmp_path}/a.jsonl',), tasks=('{a} -> {c}',))
  names = set(made.state(0)['fingerprint']) - {'tokenizer'}
  assert len(names) == 17
  config.Train(accept_changes=tuple(names))
  with pytest.raises(
    config.ConfigError, match=r"'data\.batchsize' is not .* data\.batch_size"
  ):
    config.Train(accept_changes=('data.batchsize',))


def test_too_many_unusable_records_are_an_error(make, tmp_path):
  """Whether they are read or were tokenized before, by whoever reads them."""
  path = tmp_path / 'a.jsonl'
  bad = ['{"text": "a",', '{"text": ["b"]}', '7', '{"txt": "c"}']
  # What is merely empty does not count.
  empty = ['{"text": ""}'] * 9
  path.write_text('\n'.join(['{"text": "good"}'] * 96 + bad + empty))
  train = (f'jsonl:{path}',)
  texts = lambda limit: splits.texts(
    config.Data(train=train, max_unusable=limit), 'train'
  )
  for read in (
    lambda: make(train=train, max_unusable=0.03),
    lambda: make(train=train, max_unusable=0.03),
    lambda: list(texts(0.03)),
  ):
    with pytest.raises(config.ConfigError) as error:
      read()
    assert str(error.value) == (
      f"data.train[0]=jsonl:{path}: of 100 examples, 13 unusable: 9 'text' is "
      "empty, 1 'text' is not text, 1 invalid JSON, 1 no field 'text', 1 not a "
      'JSON object, more than data.max_unusable=0.03 allows; record 96 '
      '(a.jsonl:97): invalid JSON: \'{"text": "a",\\n\'; record 97 '
      "(a.jsonl:98): 'text' is not text: "
      "{'text': ['b']}; record 98 (a.jsonl:99): not a JSON object: '7\\n'; "
      'repair or remove them, or set data.max_unusable to the share that may '
      'be skipped'
    )
  assert make(train=train, max_unusable=0.04).num_records == 96
  assert len(list(texts(0.04))) == 96
  path.write_text('{"text": "good"}\n' * 99 + bad[0])
  assert make(train=train, max_unusable=0.01).num_records == 99


def test_unusable_records_of_a_deduplicated_source(make, tmp_path):
  lines = [json.dumps({'text': f'paragraph {i}'}) for i in range(40)]
  (tmp_path / 'a.jsonl').write_text('\n'.join([*lines, '{', '{']))
  train = (f'jsonl:{tmp_path}/a.jsonl',)
  fields = {'train': train, 'validation': (), 'deduplicate': True}
  with pytest.raises(config.ConfigError, match='of 42 examples, 2 unusable'):
    make(**fields, max_unusable=0.01)
  assert make(**fields, max_unusable=0.05).num_records == 40


def test_a_mistake_of_ours_is_no_unusable_record(make, monkeypatch):
  def wrong(*arguments):
    raise ValueError('a mistake')

  monkeypatch.setattr(fields, 'text_of', wrong)
  with pytest.raises(ValueError, match='a mistake'):
    make()


def test_a_touched_file_with_the_same_text_resumes(make, tmp_path):
  state = make().state(3)
  path = tmp_path / 'a' / '020.txt'
  path.write_bytes(path.read_bytes())
  assert make().check(state) == 3


@pytest.mark.parametrize('num_prefetch', [0, 3])
def test_iterating_in_the_background_keeps_the_order(make, num_prefetch):
  made = make()
  batches = itertools.islice(loader.iterate(made, 5, num_prefetch), 20)
  assert all(same(b, made[5 + i]) for i, b in enumerate(batches))
  validation = make('validation')
  found = list(loader.iterate(validation, 2, num_prefetch))
  assert len(found) == len(validation) - 2
  assert not list(loader.iterate(validation, len(validation), num_prefetch))


def test_errors_of_the_background_arrive(make, monkeypatch):
  made = make()
  monkeypatch.setattr(made, '_locate', lambda rows: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    next(loader.iterate(made, 0, 2))


def test_deduplicated_splits_load(make):
  made = make(
    train=('python:pydoc_data.topics#[!9::10]',),
    validation=('python:pydoc_data.topics#[9::10]',),
    deduplicate=True,
  )
  (line,) = made.describe()
  assert 'kept ' in line and 'paragraphs' in line
  texts = list(splits.texts(made.config, 'train'))
  assert made.num_bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.skipif(
  not PREPARED.is_dir(), reason='no prepared data sets in ../shared/tfds'
)
def test_tiny_shakespeare_is_split_as_nanogpt_does(make):
  fields = {
    'train': ('tfds:tiny_shakespeare#train',),
    'validation': ('tfds:tiny_shakespeare#validation+test',),
    'data_dir': str(PREPARED),
    'sequence_length': 256,
  }
  data = config.Data(**fields)
  characters = tokenizer_training.build(
    config.Tokenizer(kind='characters'), lambda: splits.texts(data, 'train')
  )
  assert characters.vocab_size == 4 + 65
  train = make(made=characters, **fields)
  validation = make('validation', made=characters, **fields)
  assert (train.num_bytes, validation.num_bytes) == (1_003_854, 111_540)
  assert 'unknown' not in validation.describe()[0]
