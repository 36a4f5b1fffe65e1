"""Rows hold the media of their own record, at as many placeholders."""

import dataclasses
import json
import os

import jax
import numpy as np
import PIL.Image
import pytest

import photo
from gemini_jax import config as config_lib
from gemini_jax.data import loader, media, tokenizer

READS = 'read = {image:picture} and {audio:sound} -> {word}'
PAINTS = 'paint = {word} -> {image:picture}'
BYTES = tokenizer.Bytes()
MODEL = photo.model()
LAYOUTS = {
  'causal': {},
  'prefix': {'objective': 'prefix'},
  'seq2seq': {'objective': 'seq2seq'},
}


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return photo.write(tmp_path_factory.mktemp('photos'))


def make(records, *tasks, split='validation', seed=0, model=MODEL, **fields):
  return loader.Loader(
    photo.data(records, *tasks, **fields), BYTES, split, seed, model=model
  )


def all_rows(made):
  batches = [made[t] for t in range(len(made))]
  return jax.tree.map(lambda *xs: np.concatenate(xs), *batches)


def text_of(tokens):
  return BYTES.decode([t for t in tokens if t < BYTES.vocab_size])


def reading(batch):
  """The sequence that holds the inputs."""
  return batch.encoder if batch.encoder is not None else batch.decoder


@pytest.mark.parametrize('layout', LAYOUTS)
def test_rows_hold_what_their_record_says(records, layout):
  batch = all_rows(make(records, READS, **LAYOUTS[layout]))
  sequence = reading(batch)
  lines = [json.loads(line) for line in records.read_text().splitlines()]
  for row, line in enumerate(lines):
    for kind, field in (('image', 'picture'), ('audio', 'sound')):
      value, size = media.read(
        kind, line[field], MODEL, folder=str(records.parent)
      )
      own = sequence.media[kind]
      assert np.array_equal(own.values[row, 0], value)
      assert own.sizes[row, 0].tolist() == size.tolist()
      places = sequence.tokens[row] == MODEL.placeholder(kind)
      assert places.sum() == MODEL.tokens_of(kind, size.tolist()) > 0
    chosen = batch.targets[row][batch.weights[row] > 0]
    assert text_of(chosen[:-1]) == line['word'] and chosen[-1] == BYTES.eos_id
    assert ' and ' in text_of(sequence.tokens[row])
  if layout == 'seq2seq':
    assert not batch.decoder.media


@pytest.mark.parametrize('layout', LAYOUTS)
def test_written_media_are_targets(records, layout):
  batch = all_rows(make(records, PAINTS, **LAYOUTS[layout]))
  own = batch.decoder.media['image']
  assert own.sizes.tolist() == [[[8, 8]]] * 12
  places = batch.targets == MODEL.placeholder('image')
  assert (places.sum(axis=1) == 4).all()
  assert (batch.weights[places] == 1).all()
  # The decoder reads each one step after it was the target.
  read = batch.decoder.tokens == MODEL.placeholder('image')
  assert np.array_equal(read[:, 1:], places[:, :-1])
  if layout == 'seq2seq':
    assert not batch.encoder.media


def test_tasks_are_mixed_and_told_apart(records):
  made = make(records, READS, PAINTS)
  assert made.task_names == {'read': 0, 'paint': 1}
  assert made.num_records == 24 and made.writes_media
  alone = [made.of_task(number) for number in (0, 1)]
  assert [own.num_records for own in alone] == [12, 12]
  assert [own.writes_media for own in alone] == [False, True]
  one, other = map(all_rows, alone)
  assert (one.decoder.media['audio'].sizes > 0).all()
  assert (other.decoder.media['audio'].sizes == 0).all()
  # The same shapes, so that one program reads both.
  shapes = lambda batch: jax.tree.map(np.shape, batch)
  assert shapes(made[0]) == shapes(alone[0][0]) == shapes(alone[1][0])


def test_batches_are_pure_and_vary_with_the_epoch(records):
  varied = {
    'media_dropout': 0.5,
    'inputs_dropout': 0.3,
    'augment': config_lib.Augment(crop_padding=2, gain_db=10.0),
  }
  one, two = (
    make(records, READS, PAINTS, split='train', **varied) for _ in range(2)
  )
  same = lambda a, b: all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
  first = [one[t] for t in (0, 5, 17)]
  assert all(map(same, first, reversed([two[t] for t in (17, 5, 0)])))
  assert not same(one[0], one[6])


@pytest.mark.parametrize('layout', LAYOUTS)
def test_dropped_media_leave_no_trace(records, layout):
  layout = LAYOUTS[layout]
  made = make(records, READS, split='train', media_dropout=0.6, **layout)
  counts = {'image': 0, 'audio': 0, 'both': 0}
  for t in range(12):
    batch = made[t]
    sequence = reading(batch)
    there = {
      kind: (sequence.tokens == MODEL.placeholder(kind)).any(axis=1)
      for kind in ('image', 'audio')
    }
    for kind in there:
      sizes = sequence.media[kind].sizes[:, 0]
      assert np.array_equal((sizes > 0).all(axis=1), there[kind])
      values = sequence.media[kind].values[~there[kind]]
      assert not values.any()
    assert (there['image'] | there['audio']).all()
    # No hole is left: positions count on.
    lengths = (sequence.segments > 0).sum(axis=1)
    assert (sequence.positions.max(axis=1) == lengths - 1).all()
    for row in range(4):
      chosen = batch.targets[row][batch.weights[row] > 0]
      assert text_of(chosen[:-1]) in photo.WORDS
    counts['both'] += (there['image'] & there['audio']).sum()
    counts['image'] += (~there['audio']).sum()
    counts['audio'] += (~there['image']).sum()
  assert all(count > 4 for count in counts.values()), counts


def test_a_kind_is_left_out_of_evaluation(records):
  batch = all_rows(make(records, READS, drop_kinds=('image',)))
  assert not (batch.decoder.tokens == MODEL.placeholder('image')).any()
  assert (batch.decoder.tokens == MODEL.placeholder('audio')).any(axis=1).all()
  # What is written stays.
  batch = all_rows(make(records, PAINTS, drop_kinds=('image',)))
  assert (batch.decoder.media['image'].sizes > 0).all()


def test_blind_rows_read_nothing(records):
  made = make(records, PAINTS, split='train', inputs_dropout=0.5)
  texts = [text_of(row[1:]) for t in range(9) for row in made[t].decoder.tokens]
  blind = [not any(w in text for w in photo.WORDS) for text in texts]
  assert 8 < sum(blind) < 28
  evaluated = all_rows(make(records, PAINTS, inputs_dropout=0.5))
  assert all(
    any(w in text_of(row) for w in photo.WORDS)
    for row in evaluated.decoder.tokens
  )


def test_only_inputs_are_varied(records):
  shifted = {'augment': config_lib.Augment(crop_padding=3)}
  plain = make(records, PAINTS, split='train', shuffle=False)[0]
  varied = make(records, PAINTS, split='train', shuffle=False, **shifted)[0]
  own = lambda batch: batch.decoder.media['image'].values
  assert np.array_equal(own(plain), own(varied))
  plain = make(records, READS, split='train', shuffle=False)[0]
  varied = make(records, READS, split='train', shuffle=False, **shifted)[0]
  assert not np.array_equal(own(plain), own(varied))


def test_unusable_media_are_counted(tmp_path):
  records = photo.write(tmp_path)
  (tmp_path / '3.png').write_bytes(b'no picture')
  (tmp_path / '4.wav').write_bytes(b'')
  (tmp_path / '5.png').unlink()
  made = make(records, READS, PAINTS, max_unusable=0.25)
  assert made.num_records == 24 - 3 - 2
  (line,) = made.describe()
  assert "2 'picture': not a picture" in line
  assert "2 'picture': a missing file" in line
  assert "1 'sound': an empty file" in line


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('change', ['smaller', 'gone'])
def test_a_file_that_changed_after_it_was_tokenized_is_told(
  tmp_path, layout, change
):
  records = photo.write(tmp_path)
  tasks = (READS, PAINTS)
  all_rows(make(records, *tasks, **LAYOUTS[layout]))
  if change == 'gone':
    (tmp_path / '1.png').unlink()
  else:
    PIL.Image.new('L', (8, 4)).save(tmp_path / '1.png')
  again = make(records, *tasks, **LAYOUTS[layout])
  with pytest.raises(config_lib.ConfigError, match='jsonl has changed: '):
    all_rows(again)
  # Another list of the same, and all is read again.
  os.utime(records, (1, 1))
  again = make(records, *tasks, max_unusable=0.1, **LAYOUTS[layout])
  assert len(all_rows(again).targets) >= 22


def test_numbers_are_named(records):
  named = make(records, '{image:picture} -> {level}', label_names=photo.WORDS)
  batch = all_rows(named)
  chosen = [r[w > 0] for r, w in zip(batch.targets, batch.weights, strict=True)]
  assert [text_of(row[:-1]) for row in chosen[:3]] == list(photo.WORDS)
  with pytest.raises(config_lib.ConfigError, match="'level' is not text"):
    make(records, '{image:picture} -> {level}')


def test_permuted_fields_are_of_other_records_in_training_alone(records):
  """Each value as often as before, beside any picture; no pixel is changed."""

  def found(split, *permuted):
    made = make(
      *(records, '{image:picture} -> {word}'),
      split=split,
      shuffled_fields=permuted,
      seed=1,
      objective='seq2seq',
    )
    batches = [made[t] for t in range(3)]
    return sorted(
      (picture.sum(dtype=int), text_of(tokens[weights > 0]))
      for batch in batches
      for picture, tokens, weights in zip(
        batch.encoder.media['image'].values,
        batch.targets,
        batch.weights,
        strict=True,
      )
    )

  true, permuted = found('train'), found('train', 'word')
  assert [light for light, _ in true] == [light for light, _ in permuted]
  assert sorted(word for _, word in true) == sorted(w for _, w in permuted)
  others = sum(a != b for a, b in zip(true, permuted, strict=True))
  assert len(true) == 12 and others >= 5
  assert found('validation') == found('validation', 'word')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('ways', [('mixup',), ('cutmix',), ('mixup', 'cutmix')])
def test_what_is_mixed_is_the_same_on_any_number_of_processes(
  records, ways, layout
):
  """Mixed with another of the source, not of the rows that are loaded."""
  fields = {'split': 'train', 'seed': 3, **LAYOUTS[layout]}
  mixes = config_lib.Augment(**{f'{way}_alpha': 0.9 for way in ways})
  plain = make(records, READS, **fields)
  whole = make(records, READS, augment=mixes, **fields)
  data = photo.data(records, READS, augment=mixes, **LAYOUTS[layout])
  parts = [
    loader.Loader(data, BYTES, 'train', 3, rows=np.array(own), model=MODEL)
    for own in ([0, 1], [2], [3])
  ]
  changed, shares = [], []
  for t in range(4):
    pieces = [part[t] for part in parts]
    expected = jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)
    jax.tree.map(np.testing.assert_array_equal, whole[t], expected)
    for kind in ('image', 'audio'):
      mixed, own = (reading(batch[t]).media[kind] for batch in (whole, plain))
      np.testing.assert_array_equal(mixed.sizes, own.sizes)
      differs = (mixed.values != own.values).reshape(4, -1)
      changed += differs.any(axis=1).tolist()
      if kind == 'image':
        # Each keeps the larger share: those of other words are 200 apart.
        moved = np.mean(mixed.values, (2, 3, 4)) - np.mean(
          own.values, (2, 3, 4)
        )
        assert np.abs(moved).max() < 105
        shares += differs.mean(axis=1)[differs.any(axis=1)].tolist()
  assert 0.3 < np.mean(changed) < 1
  # MixUp changes nearly all pixels of a picture, CutMix at most half of them.
  kinds = {'mixup' if share > 0.6 else 'cutmix' for share in shares}
  assert kinds == set(ways)


def test_only_examples_of_the_same_task_are_mixed(records):
  """The others have nothing to mix with."""
  both = records.with_name('both.jsonl')
  both.write_text(records.read_text() + '{"one": "dark", "other": "l"}\n' * 12)
  mixes = config_lib.Augment(mixup_alpha=0.9)
  tasks = READS, 'swap = {one} -> {other}'
  made = make(both, *tasks, split='train', augment=mixes)
  sizes = [reading(made[t]).media['image'].sizes for t in range(6)]
  assert 0 < np.mean(np.concatenate(sizes) > 0) < 1


def test_sources_may_hold_examples_of_one_task_alone(records, tmp_path):
  words = tmp_path / 'words.jsonl'
  words.write_text('{"one": "dark", "other": "light"}\n' * 3)
  made = make(
    *(records, READS, 'swap = {one} -> {other}'),
    validation=(f'jsonl:{records}', f'jsonl:{words}'),
  )
  assert made.task_names == {'read': 0, 'swap': 1}
  numbers = [made.of_task(number).num_records for number in (0, 1)]
  assert numbers == [12, 3]
  alone = make(records, READS, 'swap = {one} -> {other}')
  assert alone.task_names == {'read': 0}


def test_lists_of_several_folders_need_whole_paths(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    photo.write(tmp_path / name, 3)
  made = make(tmp_path / 'a/records.jsonl', READS)
  assert made.num_records == 3
  with pytest.raises(config_lib.ConfigError, match='in several folders'):
    make(tmp_path / '*/records.jsonl', READS, cache_dir=str(tmp_path / 'cache'))


@pytest.mark.parametrize(
  ('tasks', 'model', 'fields', 'message'),
  [
    (
      (READS,),
      MODEL,
      {'shuffled_fields': ('words',)},
      "'words' is not a field of data.tasks",
    ),
    ((READS,), photo.model(audio=config_lib.Audio()), {}, 'reads no audio'),
    (
      (PAINTS,),
      photo.model(
        image=dataclasses.replace(
          MODEL.image, autoencoder=config_lib.Autoencoder()
        )
      ),
      {},
      'writes no image; set model.image.autoencoder.dim',
    ),
    ((READS,), MODEL, {'pack': True}, 'holds media; set data.pack=False'),
    (
      ('{word} -> {word}: {image:picture}',),
      MODEL,
      {},
      r'targets with a medium \(image\) can hold nothing',
    ),
  ],
)
def test_what_the_model_cannot_do_is_refused(
  records, tasks, model, fields, message
):
  with pytest.raises(config_lib.ConfigError, match=message):
    make(records, *tasks, model=model, **fields)


def test_a_resume_with_other_tasks_is_refused(records):
  state = make(records, READS).state(3)
  with pytest.raises(config_lib.ConfigError, match=r'data\.drop_kinds was'):
    make(records, READS, drop_kinds=('image',)).check(state)


def test_a_larger_limit_is_heeded_by_what_was_tokenized(tmp_path):
  records = photo.write(tmp_path)
  with pytest.raises(config_lib.ConfigError, match=r'data\.max_media_pixels'):
    make(records, READS, max_media_pixels=10)
  assert make(records, READS).num_records == 12


def test_media_are_part_of_the_content(tmp_path):
  """Other pictures of the same size and words are other data."""
  for name, seed in (('a', 0), ('same', 0), ('other', 1)):
    (tmp_path / name).mkdir()
    photo.write(tmp_path / name, seed=seed)
    if name == 'other':
      for path in (tmp_path / 'a').glob('*.wav'):
        (tmp_path / name / path.name).write_bytes(path.read_bytes())
  made = {
    name: make(tmp_path / name / 'records.jsonl', READS, split='train')
    for name in ('a', 'same', 'other')
  }
  state = made['a'].state(3)
  assert made['same'].check(state) == 3
  with pytest.raises(config_lib.ConfigError, match='had other records'):
    made['other'].check(state)
  # Earlier versions named the source and did not know what media hold.
  (digest,) = state['fingerprint'].pop('data.train')
  state['fingerprint']['data.train[0]=jsonl:a'] = digest.split()[0]
  assert made['a'].check(state) == 3
