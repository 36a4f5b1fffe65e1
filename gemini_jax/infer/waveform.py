"""Sounds from log-mel spectrograms, as WAV files and as pictures.

N samples, F frames, K frequencies of the FFT, M bands.
"""

import inspect
import pathlib
import warnings
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.layers import spectrogram

# Rounds of Griffin-Lim, after which more change little.
ITERATIONS = 60
# Rounds that fit powers of frequencies to those of bands.
_ROUNDS = 100
# Frequencies that are written at a spectrogram, Hz.
_TICKS = (200, 500, 1000, 2000, 3000, 5000, 8000, 12_000, 20_000)


def from_log_mel(
  log_mel_FM: np.ndarray,
  *,
  sample_rate: int,
  window_samples: int,
  hop_samples: int,
  num_mels: int,
  f_min: float,
  f_max: float,
  iterations: int = ITERATIONS,
  seed: int = 0,
) -> np.ndarray:
  """Samples whose spectrogram is near a given one, float32[F * hop] in [-1, 1].

  Powers of the frequencies are fitted to those of the bands; their phases come
  from Griffin-Lim with momentum (Perraudin et al. 2013), from random ones.

  Args:
    log_mel_FM: normalised, as `spectrogram.log_mel` gives it.
    sample_rate: samples a second.
    window_samples: what a frame sees.
    hop_samples: from one frame to the next.
    num_mels: M.
    f_min: where the lowest band begins, Hz.
    f_max: where the highest band ends, Hz.
    iterations: rounds of Griffin-Lim; 0 leaves the phases random.
    seed: of the random phases.

  Raises:
    ConfigError: librosa is missing.
    ValueError: there are no frames, or not M bands of finite numbers.
  """
  librosa = _optional('librosa', 'audio')
  log_mel_FM = np.asarray(log_mel_FM, np.float64)
  if log_mel_FM.ndim != 2 or log_mel_FM.shape[1] != num_mels:
    raise ValueError(f'{log_mel_FM.shape} is not [frames, num_mels={num_mels}]')
  if not log_mel_FM.size or not np.all(np.isfinite(log_mel_FM)):
    raise ValueError('a spectrogram needs a frame or more of finite numbers')
  filters_KM = spectrogram.mel_filters(
    sample_rate=sample_rate,
    window_samples=window_samples,
    num_mels=num_mels,
    f_min=f_min,
    f_max=f_max,
  )
  power_MF = spectrogram.to_power(log_mel_FM).T
  # What a window adds to powers, which `mel_power` takes off.
  power_MF = power_MF * np.sum(spectrogram.hann_window(window_samples) ** 2)
  power_KF = _frequencies(filters_KM.astype(np.float64), power_MF)
  # The first and the last frame go on beyond the ends, and are cut off again.
  size = spectrogram.fft_size(window_samples)
  around = -(-size // hop_samples)
  magnitude_KF = np.pad(np.sqrt(power_KF), ((0, 0), (around, around)), 'edge')
  # Its name since librosa 1.0, and before.
  names = inspect.signature(librosa.griffinlim).parameters
  seeds: dict[str, Any] = {'rng' if 'rng' in names else 'random_state': seed}
  with warnings.catch_warnings():
    # Frames of little but silence.
    warnings.simplefilter('ignore', UserWarning)
    samples_N = librosa.griffinlim(
      magnitude_KF.astype(np.float32),
      n_iter=iterations,
      hop_length=hop_samples,
      win_length=window_samples,
      n_fft=size,
      window='hann',
      center=True,
      **seeds,
    )
  # librosa's frame begins half an FFT before its hop, ours less.
  begin = around * hop_samples - size // 2
  begin += (size - window_samples) // 2
  begin += spectrogram.left_padding(window_samples, hop_samples)
  samples_N = samples_N[begin : begin + len(log_mel_FM) * hop_samples]
  return np.clip(samples_N, -1.0, 1.0).astype(np.float32)


def write_wav(
  path: str | pathlib.Path, samples_N: np.ndarray, sample_rate: int
):
  """Writes one channel of 16 bits; samples are floats in [-1, 1] or int16.

  Raises:
    ConfigError: soundfile is missing.
  """
  soundfile = _optional('soundfile', 'audio')
  soundfile.write(
    str(path), samples_N, sample_rate, subtype='PCM_16', format='WAV'
  )


def write_spectrogram(
  path: str | pathlib.Path,
  log_mel_FM: np.ndarray,
  *,
  sample_rate: int,
  hop_samples: int,
  f_min: float,
  f_max: float,
  title: str = '',
):
  """Writes a PNG: seconds to the right, Hz upwards on the mel scale.

  Raises:
    ConfigError: matplotlib is missing.
  """
  drawing = _optional('matplotlib.figure', 'plot')
  num_frames, num_mels = log_mel_FM.shape
  seconds = np.arange(num_frames + 1) * hop_samples / sample_rate
  # Bands overlap: one is drawn half way to the peaks of its neighbours.
  low_mel, high_mel = spectrogram.hz_to_mel(np.array([f_min, f_max]))
  mels = np.linspace(low_mel, high_mel, num_mels + 2)
  edges = spectrogram.mel_to_hz((mels[1:] + mels[:-1]) / 2)
  decibels_FM = 10 * (log_mel_FM * spectrogram.SCALE + spectrogram.CENTER)
  figure = drawing.Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  drawn = axes.pcolormesh(
    seconds,
    edges,
    np.asarray(decibels_FM).T,
    vmin=10 * np.log10(spectrogram.FLOOR),
    vmax=0,
    cmap='magma',
  )
  axes.set_yscale(
    'function', functions=(spectrogram.hz_to_mel, spectrogram.mel_to_hz)
  )
  ticks = [hz for hz in _TICKS if edges[0] <= hz <= edges[-1]]
  axes.set_yticks(ticks, [f'{hz:,}' for hz in ticks])
  axes.set_xlabel('seconds')
  axes.set_ylabel('Hz, on the mel scale')
  # A prompt may hold what is mathematics to matplotlib.
  axes.set_title(title, parse_math=False)
  figure.colorbar(drawn, label='dB (0: noise at full scale)')
  figure.savefig(path, dpi=100)


def _frequencies(filters_KM: np.ndarray, power_MF: np.ndarray) -> np.ndarray:
  """Powers of frequencies, not negative, that add up to those of the bands.

  Begins with the bands spread over their triangles; each round multiplies by
  what least squares are short of (Lee and Seung 2001, section 3).
  """
  power_KF = filters_KM @ power_MF
  for _ in range(_ROUNDS):
    made_KF = filters_KM @ (filters_KM.T @ power_KF)
    power_KF = power_KF * ((filters_KM @ power_MF) / np.maximum(made_KF, 1e-30))
  return power_KF


def _optional(module: str, extra: str) -> Any:
  library = module.partition('.')[0]
  return config_lib.optional(module, f'writing sounds needs {library}', extra)
