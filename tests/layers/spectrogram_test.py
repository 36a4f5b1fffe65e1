"""Log-mel spectrograms: librosa's, in jit, deaf to what is past a length.

N samples, F frames, M bands.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import spectrogram

NARROW = {
  'sample_rate': 8000,
  'window_samples': 200,
  'hop_samples': 80,
  'num_mels': 40,
  'f_min': 20.0,
  'f_max': 4000.0,
}
WIDE = NARROW | {
  'sample_rate': 22_050,
  'window_samples': 551,
  'hop_samples': 220,
  'num_mels': 64,
  'f_min': 50.0,
  'f_max': 9000.0,
}


# One program each: operation by operation, each would be compiled alone.
mel_power = jax.jit(spectrogram.mel_power, static_argnames=tuple(NARROW))
log_mel = jax.jit(spectrogram.log_mel, static_argnames=tuple(NARROW))


def tone(hz, sample_rate, size, amplitude=0.5):
  return amplitude * np.sin(2 * np.pi * hz * np.arange(size) / sample_rate)


def power_by_librosa(samples_N, fields):
  """Its frames begin half an FFT before ours, so silence is put there."""
  import librosa

  window, hop = fields['window_samples'], fields['hop_samples']
  size = spectrogram.fft_size(window)
  before = (window - hop) // 2 + (size - window) // 2
  power_MF = librosa.feature.melspectrogram(
    y=np.pad(samples_N.astype(np.float64), (before, size)),
    sr=fields['sample_rate'],
    n_fft=size,
    win_length=window,
    hop_length=hop,
    center=False,
    window='hann',
    power=2.0,
    n_mels=fields['num_mels'],
    fmin=fields['f_min'],
    fmax=fields['f_max'],
    norm=1,
  )
  squares = np.sum(librosa.filters.get_window('hann', window) ** 2)
  return power_MF.T[: len(samples_N) // hop] / squares


@pytest.mark.parametrize('fields', [NARROW, WIDE], ids=['narrow', 'wide'])
@pytest.mark.parametrize('sound', ['noise', 'tone'])
def test_it_is_that_of_librosa(fields, sound):
  size = fields['hop_samples'] * 9 + 33
  samples_N = np.asarray(toy.normal((size,), scale=0.2))
  if sound == 'tone':
    samples_N = tone(1234.5, fields['sample_rate'], size)
  expected_FM = power_by_librosa(samples_N, fields)
  samples_N = jnp.asarray(samples_N, jnp.float32)
  actual_FM = mel_power(samples_N, **fields)
  assert actual_FM.shape == (9, fields['num_mels'])
  assert actual_FM.dtype == jnp.float32
  # float32 keeps seven digits of what is loudest.
  np.testing.assert_allclose(
    actual_FM, expected_FM, rtol=1e-4, atol=1e-10 * expected_FM.max()
  )
  log_FM = log_mel(samples_N, **fields)
  expected_FM = (np.log10(expected_FM + 1e-8) + 4) / 2
  np.testing.assert_allclose(log_FM, expected_FM, atol=1e-3)


@pytest.mark.parametrize('fields', [NARROW, WIDE], ids=['narrow', 'wide'])
def test_both_ways_to_the_spectrum_agree(fields):
  """The FFT, which a CPU takes, and the product, which others take."""
  frames_FW = toy.normal((7, fields['window_samples']))
  by_fft_FK = spectrogram._power_by_fft(frames_FW)
  by_product_FK = spectrogram._power_by_product(frames_FW)
  np.testing.assert_allclose(by_product_FK, by_fft_FK, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('hz', [300.0, 1000.0, 2750.0])
def test_a_tone_stands_in_its_band(hz):
  samples_N = jnp.asarray(tone(hz, 8000, 1600), jnp.float32)
  log_FM = np.asarray(log_mel(samples_N, **NARROW))
  peaks = spectrogram.mel_edges(40, 20.0, 4000.0)[1:-1]
  own = np.abs(
    spectrogram.hz_to_mel(peaks) - spectrogram.hz_to_mel(hz)
  ).argmin()
  np.testing.assert_array_equal(log_FM[2:-2].argmax(axis=1), own)
  far = np.abs(np.arange(40) - own) > 8
  # 60 dB below.
  assert log_FM[2:-2, far].max() < log_FM[2:-2, own].min() - 3


@pytest.mark.parametrize('fields', [NARROW, WIDE], ids=['narrow', 'wide'])
def test_noise_reads_its_mean_square_and_silence_minus_two(fields):
  samples_BN = toy.normal((2, 200 * fields['hop_samples']), scale=0.01)
  samples_BN = samples_BN.at[1].set(0)
  log_BFM = log_mel(samples_BN, **fields)
  np.testing.assert_allclose(log_BFM[1], -2.0, atol=1e-6)
  power_M = spectrogram.to_power(log_BFM[0]).mean(axis=0)
  np.testing.assert_allclose(power_M, 1e-4, rtol=0.4)
  assert power_M.mean() == pytest.approx(1e-4, rel=0.05)
  # -40 dB is zero, but the mean of a logarithm lies lower.
  assert -0.3 < np.mean(log_BFM[0]) < 0.0


def test_frames_are_centred_in_their_hops():
  """A click in the middle of a hop: loudest there, the same to both sides."""
  samples_N = np.zeros(9 * 80, np.float32)
  samples_N[4 * 80 + 40] = 1.0
  power_F = np.asarray(mel_power(jnp.asarray(samples_N), **NARROW)).sum(axis=1)
  assert power_F.argmax() == 4
  np.testing.assert_allclose(power_F[3], power_F[5], rtol=1e-3)
  assert power_F[3] > 0
  np.testing.assert_allclose(np.delete(power_F, (3, 4, 5)), 0, atol=1e-9)


def test_what_is_past_a_length_changes_nothing():
  """In a batch a sound reads as alone, and as zeros beyond its end."""
  rng = np.random.default_rng(0)
  samples_BN = rng.integers(-9000, 9000, (3, 2, 800)).astype(np.int16)
  lengths_B = np.array([[800, 411], [0, 80], [1, 799]], np.int32)
  count = 0

  @jax.jit
  def counted(samples_BN, lengths_B):
    nonlocal count
    count += 1
    return spectrogram.log_mel(samples_BN, lengths_B, **NARROW)

  found_BFM = counted(samples_BN, lengths_B)
  assert found_BFM.shape == (3, 2, 10, 40)
  zeroed_BN, other_BN = samples_BN.copy(), samples_BN.copy()
  for place, length in np.ndenumerate(lengths_B):
    zeroed_BN[place][length:] = 0
    other_BN[place][length:] = 32_767
  np.testing.assert_array_equal(counted(other_BN, lengths_B), found_BFM)
  whole_B = np.full_like(lengths_B, 800)
  np.testing.assert_array_equal(counted(zeroed_BN, whole_B), found_BFM)
  assert np.abs(counted(samples_BN, whole_B) - found_BFM).max() > 1
  assert count == 1
  # The window of frame 6 begins 60 samples before its hop, at 420 > 411.
  np.testing.assert_allclose(found_BFM[0, 1, 6:], -2.0, atol=1e-6)
  assert np.all(found_BFM[0, 1, :5] > -1)
  np.testing.assert_allclose(found_BFM[1, 0], -2.0, atol=1e-6)


def test_frames_in_front_do_not_know_how_long_the_array_is():
  samples_BN = toy.normal((1, 800), scale=0.1)
  lengths_B = jnp.array([333])
  short = log_mel(samples_BN[:, :480], lengths_B, **NARROW)
  long = log_mel(samples_BN, lengths_B, **NARROW)
  np.testing.assert_allclose(short, long[:, :6], atol=1e-5)


def test_integers_are_floats_times_two_to_the_fifteen():
  whole_N = np.random.default_rng(0).integers(-32_768, 32_768, 400)
  np.testing.assert_array_equal(
    log_mel(jnp.asarray(whole_N, jnp.int16), **NARROW),
    log_mel(jnp.asarray(whole_N / 2**15, jnp.float32), **NARROW),
  )


def test_powers_come_back_from_the_logarithm():
  power_FM = np.abs(np.asarray(toy.normal((3, 5), scale=1e-3)))
  log_FM = (np.log10(power_FM + 1e-8) + 4) / 2
  np.testing.assert_allclose(spectrogram.to_power(log_FM), power_FM, rtol=1e-4)
  np.testing.assert_array_equal(spectrogram.to_power(np.array([-2, -9])), 0)


def test_the_gradient_is_zero_past_a_length_and_finite_in_silence():
  samples_BN = toy.normal((2, 400), scale=0.1).at[1].set(0)
  grad_BN = jax.grad(
    lambda x: jnp.sum(log_mel(x, jnp.array([250, 400]), **NARROW))
  )(samples_BN)
  assert np.all(np.isfinite(grad_BN))
  np.testing.assert_array_equal(grad_BN[0, 250:], 0)
  # The window is open for every real sample but perhaps single ones.
  assert np.count_nonzero(grad_BN[0, :250]) > 240


def test_too_many_bands_and_too_short_windows_are_refused():
  samples_N = jnp.zeros(400)
  with pytest.raises(config_lib.ConfigError, match='num_mels=256 is too many'):
    mel_power(samples_N, **(NARROW | {'num_mels': 256}))
  with pytest.raises(config_lib.ConfigError, match='window_samples=79 must be'):
    mel_power(samples_N, **(NARROW | {'window_samples': 79}))
