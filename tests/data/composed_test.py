"""Noisy digits and moving clothes: what is the same, and what is random."""

import io

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.data import composed, readers, sources
from gemini_jax.data import prepared as prepared_lib

PIL = pytest.importorskip('PIL.Image', reason='needs gemini_jax[media]')


def png(values):
  file = io.BytesIO()
  PIL.fromarray(values).save(file, 'PNG')
  return file.getvalue()


@pytest.fixture
def prepared(monkeypatch):
  """Small data sets instead of those of TFDS."""
  rng = np.random.default_rng(0)
  sounds = [
    {'audio': rng.integers(-9000, 9000, 400 + i, np.int16), 'label': i % 10}
    for i in range(20)
  ]
  clothes = [
    {
      'image': png(rng.integers(1, 256, (28, 28), np.uint8)),
      'label': i % 10,
    }
    for i in range(40)
  ]
  found = {'spoken_digit': sounds, 'fashion_mnist': clothes}

  def tfds(where, split, config):
    assert config.data_dir == 'there'
    names = {'label': tuple('abcdefghij')}
    return readers.Rows(found[where], f'{where} {split}', None, names)

  monkeypatch.setattr(prepared_lib, 'read', tfds)
  return found


def read(spec):
  config = config_lib.Data(
    train=(spec,), data_dir='there', tasks=('{label} -> {label}',)
  )
  return sources.records(spec, config)


def test_a_picture_and_a_sound_are_of_the_same_digit(prepared):
  sklearn = pytest.importorskip('sklearn.datasets')
  clean = sklearn.load_digits()
  means = np.stack(
    [clean['images'][clean['target'] == digit].mean(0) for digit in range(10)]
  )
  found = read('digits:train')
  assert len(found) == 8 * len(prepared['spoken_digit'])
  seen = np.zeros((10, 8, 8))
  for i, record in enumerate(found):
    sound = prepared['spoken_digit'][i // 8]
    assert record['label'] == sound['label']
    assert record['image'].dtype == np.uint8
    assert record['audio'].dtype == np.int16
    # The sound is there, below the noise.
    likeness = np.corrcoef(record['audio'], sound['audio'])[0, 1]
    assert 0.1 < likeness < 0.7
    seen[record['label']] += record['image']
  flat = lambda x: (x - x.mean(0)).reshape(10, -1)
  np.testing.assert_array_equal(
    np.argmax(flat(seen) @ flat(means).T, axis=1), np.arange(10)
  )


def test_records_are_functions_of_their_number_and_split(prepared):
  train, again, test = map(
    read, ('digits:train', 'digits:train#[5:]', 'digits:test')
  )
  np.testing.assert_array_equal(train[7]['audio'], again[2]['audio'])
  assert len(test) == 4 * len(prepared['spoken_digit'])
  pools = [
    {picture.tobytes() for own in each.rows.records.pictures for picture in own}
    for each in (train, test)
  ]
  assert min(map(len, pools)) > 100 and not pools[0] & pools[1]
  # The same sound here, of other noise.
  assert not np.array_equal(train[0]['audio'], test[0]['audio'])
  assert train.fingerprint != test.fingerprint


def test_clothes_move_straight_on(prepared):
  found = read('moving:train')
  directions = []
  for record, item in zip(found, prepared['fashion_mnist'], strict=True):
    assert record['label'] == item['label']
    picture = np.asarray(PIL.open(io.BytesIO(item['image'])))
    corners = []
    for frame in record['video']:
      rows, columns = (np.flatnonzero(frame.any(axis)) for axis in (1, 0))
      np.testing.assert_array_equal(
        frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], picture
      )
      corners.append((rows[0], columns[0]))
    (step,) = set(map(tuple, np.diff(corners, axis=0)))
    assert tuple(np.sign(step)) == composed.DIRECTIONS[record['direction']]
    directions.append(record['direction'])
  assert set(directions) == set(composed.DIRECTIONS)
  assert found.names['label'][3] == 'd'


def test_shuffled_frames_are_the_same_frames(prepared):
  straight, shuffled = read('moving:test'), read('moving:test,shuffled')
  moved = 0
  for one, other in zip(straight, shuffled, strict=True):
    assert one['direction'] == other['direction']
    key = lambda record: sorted(frame.tobytes() for frame in record['video'])
    assert key(one) == key(other)
    moved += not np.array_equal(one['video'], other['video'])
  assert moved > len(straight) / 2
  assert straight.fingerprint != shuffled.fingerprint


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('digits:validation', "'validation' is not a split; write train or test"),
    ('moving:all', "'all' is not a split; write train or test"),
    ('moving:train,mixed', 'write moving:train or moving:train,shuffled'),
  ],
)
def test_other_splits_are_refused(prepared, spec, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    read(spec)
