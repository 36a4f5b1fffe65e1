"""Spectrogram to sound and back: the frequencies, the times, the files.

N samples, F frames, M bands.
"""

import sys

import jax
import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.infer import waveform
from gemini_jax.layers import spectrogram

FIELDS = {
  'sample_rate': 8000,
  'window_samples': 200,
  'hop_samples': 80,
  'num_mels': 64,
  'f_min': 20.0,
  'f_max': 4000.0,
}
N = 8000
log_mel = jax.jit(spectrogram.log_mel, static_argnames=tuple(FIELDS))


@pytest.fixture(scope='module')
def chirp():
  """From 300 to 2,700 Hz in a second, silent in the last quarter."""
  seconds_N = np.arange(N) / 8000
  samples_N = 0.5 * np.sin(2 * np.pi * (300 + 1200 * seconds_N) * seconds_N)
  samples_N[6000:] = 0
  return samples_N.astype(np.float32)


@pytest.fixture(scope='module')
def found(chirp):
  return np.asarray(log_mel(chirp, **FIELDS))


def error(log_mel_FM, samples_N):
  """Mean absolute difference after analysis, in units of 20 dB."""
  return np.abs(np.asarray(log_mel(samples_N, **FIELDS)) - log_mel_FM).mean()


def test_a_chirp_comes_back(found):
  samples_N = waveform.from_log_mel(found, **FIELDS)
  assert samples_N.shape == (N,) and samples_N.dtype == np.float32
  again = np.asarray(log_mel(samples_N, **FIELDS))
  bands = found[:74].argmax(axis=1)
  assert bands[-1] - bands[0] > 25
  assert np.abs(again[:74].argmax(axis=1) - bands).max() <= 1
  # Silence begins where it did.
  assert again[:74].max(axis=1).min() > 0.5
  assert again[77:].max() < -1
  close = error(found, samples_N)
  assert close < 0.1
  random_N = waveform.from_log_mel(found, iterations=0, **FIELDS)
  assert error(found, random_N) > 1.5 * close


def test_a_click_stays_in_its_hop():
  samples_N = np.zeros(1600, np.float32)
  samples_N[10 * 80 + 40] = 0.9
  log_mel_FM = np.asarray(log_mel(samples_N, **FIELDS))
  again_N = waveform.from_log_mel(log_mel_FM, **FIELDS)
  center = np.sum(np.arange(1600) * again_N**2) / np.sum(again_N**2)
  assert abs(center - 840) < 20


def test_the_seed_decides_and_silence_is_silent(found):
  one, same, other = (
    waveform.from_log_mel(found[:20], iterations=2, seed=seed, **FIELDS)
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 0.01
  silent_FM = np.full((5, 64), -2.0)
  np.testing.assert_array_equal(waveform.from_log_mel(silent_FM, **FIELDS), 0)


@pytest.mark.parametrize(
  ('log_mel_FM', 'message'),
  [
    (np.zeros((5, 63)), r'\(5, 63\) is not \[frames, num_mels=64\]'),
    (np.zeros((0, 64)), 'a frame or more'),
    (np.full((3, 64), np.nan), 'finite'),
  ],
)
def test_what_is_no_spectrogram_is_refused(log_mel_FM, message):
  with pytest.raises(ValueError, match=message):
    waveform.from_log_mel(log_mel_FM, **FIELDS)


def test_a_wav_file_holds_the_samples(tmp_path, chirp):
  import soundfile

  path = tmp_path / 'chirp.wav'
  waveform.write_wav(path, chirp, 8000)
  info = soundfile.info(path)
  assert (info.subtype, info.channels, info.samplerate) == ('PCM_16', 1, 8000)
  read_N, _ = soundfile.read(path)
  np.testing.assert_allclose(read_N, chirp, atol=2 / 2**15)


def test_the_picture_shows_the_tone_where_it_is(tmp_path, found):
  """Bright pixels rise from left to right, and the end is dark."""
  import matplotlib.image

  path = tmp_path / 'chirp.png'
  waveform.write_spectrogram(
    path,
    found,
    sample_rate=8000,
    hop_samples=80,
    f_min=20.0,
    f_max=4000.0,
    title='chirp',
  )
  # Left of the bar of colours.
  pixels = matplotlib.image.imread(path)[40:320, 80:560, :3].sum(axis=-1)
  rows = pixels[:, [40, 140, 240]].argmax(axis=0)
  assert rows[0] > rows[1] + 20 > rows[2] + 40
  assert pixels[:, 400].max() < 0.5 * pixels[:, 140].max()


@pytest.mark.parametrize('library', ['librosa', 'soundfile', 'matplotlib'])
def test_a_missing_library_is_named(library, tmp_path, found, monkeypatch):
  name = 'matplotlib.figure' if library == 'matplotlib' else library
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(config_lib.ConfigError, match=f'needs {library}; install'):
    if library == 'librosa':
      waveform.from_log_mel(found, **FIELDS)
    if library == 'soundfile':
      waveform.write_wav(tmp_path / 'x.wav', np.zeros(8), 8000)
    waveform.write_spectrogram(
      tmp_path / 'x.png',
      found,
      sample_rate=8000,
      hop_samples=80,
      f_min=20.0,
      f_max=4e3,
    )
