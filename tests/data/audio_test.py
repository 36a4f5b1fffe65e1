"""What users have as sounds, also what is none."""

import numpy as np
import pytest
import soxr

import media_files
from gemini_jax.data import (
  audio,
  unusable,
)


def loudest(samples, sample_rate):
  """The strongest frequency, Hz."""
  spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
  return spectrum.argmax() * sample_rate / len(samples)


def test_samples_at_the_model_s_rate_are_not_changed():
  samples = np.random.default_rng(0).integers(-32768, 32768, 3000, np.int16)
  values = [samples, samples.astype(np.int64), samples / 32768]
  values += [
    media_files.wav(samples, 8000),
    media_files.wav(samples, 8000, 'FLAC'),
  ]
  values += [np.stack([samples] * 3, 1)]
  values += [media_files.wav(samples / 32768, 8000, subtype='DOUBLE')]
  for value in values:
    found = audio.read(value, media_files.SOUND)
    assert found.size.tolist() == [3000]
    assert found.values.shape == (media_files.SOUND.num_samples,)
    np.testing.assert_array_equal(found.values[:3000], samples)
    assert not found.values[3000:].any()
  assert (found.values.dtype, found.size.dtype) == (np.int16, np.int32)


@pytest.mark.parametrize('sample_rate', [4000, 8000, 11025, 44100, 192_000])
@pytest.mark.parametrize('kind', ['array', 'WAV', 'FLAC', 'OGG'])
def test_a_tone_keeps_its_frequency_and_loudness(sample_rate, kind):
  if kind == 'OGG' and sample_rate == 4000:
    pytest.skip('Vorbis has no such rate')
  value = samples = media_files.tone(700, sample_rate, 0.4)
  if kind != 'array':
    value = media_files.wav(samples, sample_rate, kind)
  found = audio.read(value, media_files.SOUND, sample_rate=sample_rate)
  assert abs(found.size[0] - 3200) <= 1
  inside = found.values[200:3000] / 32768
  assert abs(loudest(inside, 8000) - 700) < 3
  np.testing.assert_allclose(np.abs(inside).max(), 0.5, atol=0.05)


def test_what_is_above_the_new_rate_s_half_is_filtered():
  found = audio.read(
    media_files.tone(5000, 44100), media_files.SOUND, sample_rate=44100
  ).values
  assert np.abs(found[200:3800]).max() < 40  # An alias: at 3,000 Hz.


def test_of_a_long_sound_the_beginning_is_decoded():
  """And it is as if all of it had been resampled."""
  samples = np.random.default_rng(1).uniform(-0.5, 0.5, 44100 * 20)
  samples = np.round(samples * 32768).astype(np.int16)
  whole = soxr.resample(samples.astype(np.float32), 44100, 8000)
  for value in (samples, media_files.wav(samples, 44100)):
    found = audio.read(value, media_files.SOUND, sample_rate=44100)
    assert found.size.tolist() == [media_files.SOUND.num_samples]
    np.testing.assert_allclose(
      found.values, whole[: media_files.SOUND.num_samples], atol=1
    )


def test_channels_are_averaged():
  samples = np.random.default_rng(2).uniform(-0.9, 0.9, (2000, 8))
  expected = np.round(samples.mean(1) * 32768)
  for value in (
    samples,
    media_files.wav(samples, 8000),
    media_files.wav(samples, 8000, 'FLAC'),
  ):
    found = audio.read(value, media_files.SOUND).values[:2000]
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize('subtype', ['PCM_U8', 'PCM_24', 'PCM_32', 'FLOAT'])
def test_samples_of_other_widths(subtype):
  samples = media_files.tone(300, 8000, 0.3)
  found = audio.read(
    media_files.wav(samples, 8000, subtype=subtype), media_files.SOUND
  ).values[:2400]
  step = 256 if subtype == 'PCM_U8' else 1
  np.testing.assert_allclose(found, samples * 32768, atol=step)


def id3(size, flags=0):
  """A tag of `size` zeros, which may have a footer."""
  numbers = [size >> shift & 127 for shift in (21, 14, 7, 0)]
  head = bytes([4, 0, flags, *numbers])
  footer = b'3DI' + head if flags else b''
  return b'ID3' + head + bytes(size) + footer


@pytest.mark.parametrize(
  'before',
  [b'', id3(300), bytes(100), id3(20) + bytes(700), id3(9, 16), id3(5) * 2],
)
def test_an_mp3_may_have_tags_and_zeros_before_it(before, tmp_path):
  plain = media_files.wav(media_files.tone(700, 16000), 16000, 'MP3')
  expected = audio.read(plain, media_files.SOUND)
  (tmp_path / 'a').write_bytes(before + plain)
  for value in (before + plain, tmp_path / 'a'):
    found = audio.read(value, media_files.SOUND)
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_little_too_loud_is_clipped():
  found = audio.read(np.array([1.2, -1.7, 0.5]), media_files.SOUND).values
  assert found[:3].tolist() == [32767, -32768, 16384]


NOT_FINITE = np.array([0.1, np.nan, 0.2])
BAD_SOUNDS = {
  'no bytes': (b'', 'an empty file'),
  'text': (b'RIFF, not: a text', 'not a sound'),
  'a WAV without samples': (
    media_files.wav(np.zeros(0), 8000),
    'an empty sound',
  ),
  'a cut FLAC': (
    media_files.FLAC[: len(media_files.FLAC) // 2],
    'a damaged sound',
  ),
  'only the header of a WAV': (
    media_files.wav(media_files.tone(9, 8000), 8000)[:20],
    'not a sound',
  ),
  'a picture': (media_files.PNG, 'not a sound'),
  'a missing file': ('no/such/file.wav', 'a missing file'),
  'NaN in a file': (
    media_files.wav(NOT_FINITE, 8000, subtype='FLOAT'),
    'a sound of numbers that are not finite',
  ),
  'NaN': (NOT_FINITE, 'a sound of numbers that are not finite'),
  'infinity': (np.array([np.inf]), 'a sound of numbers that are not finite'),
  'floats of 16 bits': (
    media_files.tone(9, 8000) * 32768,
    'a sound far beyond [-1, 1]',
  ),
  'integers of 32 bits': (
    np.array([70_000, 3], np.int32),
    'a sound beyond 16 bits',
  ),
  'an empty array': (np.zeros(0, np.int16), 'an empty sound'),
  'channels first': (np.zeros((2, 800), np.int16), 'a sound of too many'),
  'a cube': (np.zeros((2, 2, 2), np.int16), 'not an array [n]'),
  'uint8': (np.zeros(9, np.uint8), 'a sound of dtype uint8'),
  'an odd rate': (
    media_files.wav(np.zeros(9), 7),
    'a sound of an unlikely rate',
  ),
}


@pytest.mark.parametrize('case', BAD_SOUNDS)
def test_what_is_no_sound_is_refused_with_a_short_reason(case):
  value, reason = BAD_SOUNDS[case]
  with pytest.raises(unusable.UnusableError) as error:
    audio.read(value, media_files.SOUND)
  assert str(error.value).startswith(reason)
  assert len(str(error.value)) < 45


def test_a_sound_too_short_to_resample_is_empty():
  with pytest.raises(unusable.UnusableError, match=r'^an empty sound$'):
    audio.read(np.ones(1, np.int16), media_files.SOUND, sample_rate=48000)
