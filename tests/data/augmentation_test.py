"""Augmented examples differ from what they were in the way that was asked."""

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.data import augmentation

RATE = 8000
EVERYTHING = config_lib.Augment(
  crop_padding=2,
  flip=True,
  randaugment_ops=2,
  time_masks=2,
  frequency_masks=2,
  noise_db=(10.0, 20.0),
  gain_db=6.0,
  time_shift_seconds=0.01,
)
SHAPES = {
  'image': ((16, 20, 3), (10, 13)),
  'audio': ((4000,), (2500,)),
  'video': ((5, 16, 20, 1), (3, 10, 13)),
}


def generator(seed=0):
  return np.random.default_rng(seed)


def canvas(kind, seed=0):
  """Values of a kind, 0 beyond their extent, and that."""
  shape, size = SHAPES[kind]
  kind_of = np.int16 if kind == 'audio' else np.uint8
  values = np.zeros(shape, kind_of)
  region = tuple(map(slice, size))
  values[region] = generator(seed).integers(1, 256, values[region].shape)
  return values, np.array(size, np.int32)


@pytest.mark.parametrize('kind', SHAPES)
def test_only_the_extent_changes(kind):
  values, size = canvas(kind)
  before = values.copy()
  outside = np.ones(values.shape, bool)
  outside[tuple(map(slice, size))] = False
  values[outside] = 77
  changed = 0
  for seed in range(20):
    found = augmentation.apply(
      kind, values, size, EVERYTHING, generator(seed), RATE
    )
    assert (found.shape, found.dtype) == (values.shape, values.dtype)
    assert (found[outside] == 77).all()
    changed += (found[~outside] != values[~outside]).any()
  assert changed > 15
  np.testing.assert_array_equal(values[~outside], before[~outside])


@pytest.mark.parametrize('kind', SHAPES)
def test_the_same_seed_gives_the_same_example(kind):
  values, size = canvas(kind)
  first, again, other = (
    augmentation.apply(kind, values, size, EVERYTHING, generator(seed), RATE)
    for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize('kind', SHAPES)
def test_by_default_nothing_changes(kind):
  values, size = canvas(kind)
  found = augmentation.apply(
    kind, values, size, config_lib.Augment(), generator(), RATE
  )
  np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize('kind', SHAPES)
def test_where_nothing_is_nothing_changes(kind):
  values, size = canvas(kind)
  found = augmentation.apply(
    kind, values, 0 * size, EVERYTHING, generator(), RATE
  )
  np.testing.assert_array_equal(found, values)


# Pictures.


def test_a_mirrored_picture_mirrored_is_itself():
  values, _ = canvas('image')
  once = augmentation.mirror(values)
  assert (once[:, 0] == values[:, -1]).all() and (once != values).any()
  np.testing.assert_array_equal(augmentation.mirror(once), values)


def test_half_of_the_pictures_are_mirrored():
  values, size = canvas('image')
  augment = config_lib.Augment(flip=True)
  rng = generator()
  mirrored = 0
  for _ in range(200):
    found = augmentation.apply('image', values, size, augment, rng)
    inside = values[:10, :13]
    if (found == values).all():
      continue
    np.testing.assert_array_equal(found[:10, :13], inside[:, ::-1])
    mirrored += 1
  assert 70 < mirrored < 130


def test_a_crop_moves_by_up_to_the_padding_and_repeats_the_edge():
  values = generator().integers(0, 256, (2, 9, 8, 3), np.uint8)
  rng, seen = generator(), set()
  for _ in range(300):
    found = augmentation.crop(values, rng, 2)
    for down in range(-2, 3):
      for right in range(-2, 3):
        rows = np.clip(np.arange(9) + down, 0, 8)
        columns = np.clip(np.arange(8) + right, 0, 7)
        if (found == values[:, rows][:, :, columns]).all():
          seen.add((down, right))
  assert len(seen) == 25


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', augmentation.OPERATIONS)
def test_each_operation_keeps_the_shape_and_does_more_at_more(
  name, channels, monkeypatch
):
  only = {name: augmentation.OPERATIONS[name]}
  monkeypatch.setattr(augmentation, 'OPERATIONS', only)
  ramp = np.linspace(60, 190, 24)
  values = (ramp[:, None] / 2 + ramp / 2)[..., None] + np.arange(channels) * 9
  values[::2, ::2] += 12  # Something to sharpen.
  values = values.astype(np.uint8)
  far = lambda magnitude: np.mean(
    [
      np.abs(
        augmentation.randaugment(values, generator(seed), 1, magnitude)
        - values.astype(float)
      ).mean()
      for seed in range(6)
    ]
  )
  found = augmentation.randaugment(values, generator(), 1, 5)
  assert (found.shape, found.dtype) == (values.shape, np.uint8)
  if name == 'identity' or (name == 'color' and channels == 1):
    assert far(10) == 0
  elif name in ('autocontrast', 'equalize'):
    assert far(0) == far(10) > 5
  else:
    assert far(0) < 0.5 and far(10) > max(far(2), 0.02)


def test_what_is_moved_in_has_the_background_s_colour(monkeypatch):
  operations = {
    name: operation
    for name, operation in augmentation.OPERATIONS.items()
    if name.startswith(('shear', 'translate', 'rotate'))
  }
  monkeypatch.setattr(augmentation, 'OPERATIONS', operations)
  values = np.full((24, 24, 3), (250, 240, 20), np.uint8)
  values[8:16, 8:16] = 0
  for seed in range(30):
    found = augmentation.randaugment(values, generator(seed), 1, 5)
    assert (found[[0, 0, -1, -1], [0, -1, 0, -1]] == (250, 240, 20)).all()


def test_frames_of_a_video_are_changed_alike():
  frame, _ = canvas('image')
  values = np.stack([frame] * 4)
  size = np.array([4, 10, 13])
  augment = config_lib.Augment(crop_padding=3, flip=True, randaugment_ops=3)
  for seed in range(20):
    found = augmentation.apply('video', values, size, augment, generator(seed))
    for other in found[1:]:
      np.testing.assert_array_equal(other, found[0])


# Two rows.


@pytest.mark.parametrize('kind', SHAPES)
def test_mixing_weighs_both_and_leaves_what_one_does_not_reach(kind):
  values, size = canvas(kind, 0)
  others, _ = canvas(kind, 1)
  other_size = size - 1
  weights = []
  for seed in range(50):
    found, weight = augmentation.mixup(
      values, size, others, other_size, generator(seed), 0.4
    )
    both = tuple(map(slice, other_size))
    expected = values.astype(float)
    expected[both] = weight * values[both] + (1 - weight) * others[both]
    np.testing.assert_allclose(found, expected, atol=0.5)
    weights.append(weight)
  assert 0 <= min(weights) < 0.2 and 0.8 < max(weights) <= 1


@pytest.mark.parametrize('kind', SHAPES)
def test_a_part_is_cut_from_the_other(kind):
  """One box, the same in all frames, where both reach; the rest stays."""
  values, size = canvas(kind)
  values = (values != 0).astype(np.uint8)
  others = 2 * values
  other_size = size - 1
  for seed in range(100):
    found, share = augmentation.cutmix(
      values, size, others, other_size, generator(seed), 1.0
    )
    is_other = found == 2
    assert ((found == values) | is_other).all()
    places = np.argwhere(is_other)
    if len(places):
      low, high = places.min(axis=0), places.max(axis=0) + 1
      region = tuple(map(slice, low, high))
      assert is_other[region].all()
      assert (high[: size.size] <= other_size).all()
      assert low[: size.size - 2].sum() == 0
    inside = is_other[tuple(map(slice, size))]
    assert share == pytest.approx(1 - inside.mean())


@pytest.mark.parametrize('kind', SHAPES)
def test_the_share_that_is_cut_is_drawn_and_then_clipped(kind):
  """Of a span of length r, r - r^2/4 is inside; of a box, its square."""
  values, size = canvas(kind)
  shares = [
    augmentation.cutmix(values, size, values, size, generator(seed), 1.0)[1]
    for seed in range(2000)
  ]
  mean = 7 / 12 if kind == 'audio' else 1 - (1 / 2 - 1 / 5 + 1 / 48)
  assert np.mean(shares) == pytest.approx(mean, abs=0.02)


def test_the_weight_s_spread_follows_alpha():
  """Var of Beta(a, a) is 1 / (4 (2 a + 1))."""
  values, size = canvas('audio')
  for alpha in (0.2, 1.0, 8.0):
    rng = generator()
    weights = [
      augmentation.mixup(values, size, values, size, rng, alpha)[1]
      for _ in range(2000)
    ]
    np.testing.assert_allclose(
      np.var(weights), 1 / (4 * (2 * alpha + 1)), rtol=0.1
    )


# Sounds.


def test_noise_is_as_far_below_the_sound_as_drawn():
  samples = 3000 * np.sin(np.arange(40_000) / 9)
  for decibels in (-5.0, 0.0, 12.0, 30.0):
    found = augmentation.noise(samples, generator(), decibels, decibels)
    ratio = np.mean(samples**2) / np.mean((found - samples) ** 2)
    np.testing.assert_allclose(10 * np.log10(ratio), decibels, atol=0.2)
  rng, drawn = generator(), []
  for _ in range(200):
    found = augmentation.noise(samples[:4000], rng, 5.0, 15.0)
    power = np.mean((found - samples[:4000]) ** 2)
    drawn.append(10 * np.log10(np.mean(samples[:4000] ** 2) / power))
  assert 4.7 < min(drawn) < 6 and 14 < max(drawn) < 15.3
  assert not augmentation.noise(np.zeros(50), generator(), 0, 0).any()


def test_time_masks_silence_spans_of_at_most_the_longest():
  samples = np.ones(1000)
  shares = []
  for seed in range(200):
    found = augmentation.mask_times(samples, generator(seed), 1, 300)
    changes = np.flatnonzero(np.diff(np.pad(found, 1, constant_values=1)))
    assert len(changes) in (0, 2)
    shares.append(1 - found.mean())
  assert max(shares) <= 0.3
  np.testing.assert_allclose(np.mean(shares), 0.15, atol=0.02)
  np.testing.assert_allclose(max(shares), 0.3, atol=0.02)
  assert samples.all()
  # Longer than the sound.
  assert augmentation.mask_times(samples[:5], generator(), 3, 99).shape == (5,)


def test_frequency_masks_take_bands_out_and_leave_the_rest():
  samples = generator().normal(size=8001)
  before = np.abs(np.fft.rfft(samples))
  places, widths = [], []
  mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
  for seed in range(200):
    found = augmentation.mask_frequencies(
      samples, generator(seed), 1, 0.2, RATE
    )
    after = np.abs(np.fft.rfft(found))
    gone = after < 1e-6
    np.testing.assert_allclose(after[~gone], before[~gone], rtol=1e-6)
    (band,) = np.nonzero(gone)
    if len(band):
      assert (np.diff(band) == 1).all()
      hertz = band * RATE / len(samples)
      places.append(mel(hertz.mean()) / mel(RATE / 2))
      widths.append((mel(hertz[-1]) - mel(hertz[0])) / mel(RATE / 2))
  assert max(widths) <= 0.2
  np.testing.assert_allclose(np.mean(widths), 0.1, atol=0.015)
  np.testing.assert_allclose(np.mean(places), 0.5, atol=0.07)
  assert np.isrealobj(found) and found.shape == samples.shape


def test_a_shift_moves_both_ways_and_lets_silence_in():
  samples = np.arange(1.0, 51)
  seen = set()
  for seed in range(200):
    found = augmentation.shift(samples, generator(seed), 7)
    (kept,) = np.nonzero(found)
    offset = int(kept[0] - (found[kept[0]] - 1))
    np.testing.assert_array_equal(found[kept], samples[kept - offset])
    assert len(kept) == 50 - abs(offset)
    seen.add(offset)
  assert seen == set(range(-7, 8))
  assert augmentation.shift(samples[:3], generator(1), 9).shape == (3,)


def test_a_gain_is_within_so_many_decibels():
  found = [
    20 * np.log10(augmentation.gain(np.ones(1), generator(seed), 6.0)[0])
    for seed in range(300)
  ]
  assert -6 <= min(found) < -5.5 and 5.5 < max(found) <= 6


def test_what_gets_too_loud_is_clipped_not_wrapped():
  values = np.full(500, 32000, np.int16)
  augment = config_lib.Augment(gain_db=12.0)
  for seed in range(20):
    found = augmentation.apply(
      'audio', values, np.array([500]), augment, generator(seed), RATE
    )
    assert (found > 0).all()
