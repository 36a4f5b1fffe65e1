"""Log-mel spectrograms of raw samples, inside jit.

N samples, F frames, W samples of a window, K frequencies of the FFT, M bands.
A leading `...` stands for any batch dims.

Powers are calibrated: white noise of root mean square r, in [-1, 1], reads r^2
in every band, at any rate, window and number of bands. Their logarithm is
shifted and scaled: -40 dB is 0 and a unit is 20 dB (a factor of 100), so that
silence is -2 and noise at full scale 2. Speech lies in between; only a loud
tone, whose power is in one band, is above, up to about 3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax.config import schema

# Added to powers before the logarithm: softer sounds count as silence.
FLOOR = 1e-8
# (log10(power + FLOOR) - CENTER) / SCALE.
CENTER, SCALE = -4.0, 2.0


def log_mel(
  samples: jax.Array, lengths: jax.Array | None = None, **fields
) -> jax.Array:
  """The normalised log-mel spectrogram, float32[..., F, M].

  The arguments are those of `mel_power`.
  """
  power_FM = mel_power(samples, lengths, **fields)
  return (jnp.log10(power_FM + FLOOR) - CENTER) / SCALE


def to_power(log_mel_FM: np.ndarray) -> np.ndarray:
  """Powers of a normalised log-mel spectrogram, computed by numpy."""
  log_power_FM = np.asarray(log_mel_FM, np.float64) * SCALE + CENTER
  return np.maximum(10.0**log_power_FM - FLOOR, 0.0)


def mel_power(
  samples: jax.Array,
  lengths: jax.Array | None = None,
  *,
  sample_rate: int,
  window_samples: int,
  hop_samples: int,
  num_mels: int,
  f_min: float,
  f_max: float,
) -> jax.Array:
  """Power in mel bands, float32[..., F, M], F = N // hop_samples.

  Frame f is centred in samples [f * hop, (f + 1) * hop). Beyond both ends and
  beyond `lengths` is silence, whatever is stored there.

  Args:
    samples: [..., N], int16 or floats in [-1, 1].
    lengths: int[...], how many samples are real; None: all.
    sample_rate: samples a second.
    window_samples: W, the samples of a frame; at least a hop.
    hop_samples: from one frame to the next.
    num_mels: M bands, evenly spaced on Slaney's mel scale.
    f_min: where the lowest band begins, Hz.
    f_max: where the highest band ends, Hz.

  Raises:
    ConfigError: the window is shorter than a hop, or too short for so many
      bands.
  """
  schema.check(
    window_samples >= hop_samples,
    f'window_samples={window_samples} must be at least {hop_samples=}',
  )
  filters_KM = mel_filters(
    sample_rate=sample_rate,
    window_samples=window_samples,
    num_mels=num_mels,
    f_min=f_min,
    f_max=f_max,
  )
  x_N = samples.astype(jnp.float32)
  if jnp.issubdtype(samples.dtype, jnp.integer):
    x_N = x_N / 2**15
  if lengths is not None:
    index_N = jax.lax.broadcasted_iota(jnp.int32, x_N.shape, x_N.ndim - 1)
    x_N = jnp.where(index_N < lengths[..., None], x_N, 0.0)
  frames_FW = _frames(x_N, window_samples, hop_samples)
  # The FFT is faster on a CPU. A TPU is made for matrix products; and the
  # partitioner splits the batch of a product, but gathers that of an FFT.
  power_FK = jax.lax.platform_dependent(
    frames_FW, cpu=_power_by_fft, default=_power_by_product
  )
  return jnp.einsum(
    '...FK,KM->...FM',
    power_FK,
    filters_KM,
    precision=jax.lax.Precision.HIGHEST,
  )


def fft_size(window_samples: int) -> int:
  """The next power of two."""
  return 1 << (window_samples - 1).bit_length()


def left_padding(window_samples: int, hop_samples: int) -> int:
  """Samples before the first one that frame 0 sees."""
  return (window_samples - hop_samples) // 2


def hann_window(window_samples: int) -> np.ndarray:
  """A periodic Hann window, float64[W]."""
  return 0.5 - 0.5 * np.cos(
    2 * np.pi * np.arange(window_samples) / window_samples
  )


def hz_to_mel(hz: float | np.ndarray) -> np.ndarray:
  """Slaney's mel scale: linear to 1 kHz, logarithmic above."""
  hz = np.asarray(hz, np.float64)
  return np.where(
    hz < 1000,
    hz * 0.015,
    15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4),
  )


def mel_to_hz(mel: float | np.ndarray) -> np.ndarray:
  """The inverse of `hz_to_mel`."""
  mel = np.asarray(mel, np.float64)
  return np.where(
    mel < 15, mel / 0.015, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27)
  )


def mel_edges(num_mels: int, f_min: float, f_max: float) -> np.ndarray:
  """Where bands begin, peak and end, in Hz: band m at edges m, m + 1, m + 2."""
  return mel_to_hz(
    np.linspace(hz_to_mel(f_min), hz_to_mel(f_max), num_mels + 2)
  )


@functools.lru_cache(maxsize=16)
def mel_filters(
  *,
  sample_rate: int,
  window_samples: int,
  num_mels: int,
  f_min: float,
  f_max: float,
) -> np.ndarray:
  """Weight of each frequency in each band, float32[K, M]: triangles of sum 1.

  Raises:
    ConfigError: a band is so narrow that it holds no frequency of the FFT.
  """
  size = fft_size(window_samples)
  hz_K1 = np.arange(size // 2 + 1)[:, None] * sample_rate / size
  edges = mel_edges(num_mels, f_min, f_max)
  left_M, peak_M, right_M = edges[:-2], edges[1:-1], edges[2:]
  triangles_KM = np.minimum(
    (hz_K1 - left_M) / (peak_M - left_M), (right_M - hz_K1) / (right_M - peak_M)
  ).clip(0)
  sums_M = triangles_KM.sum(axis=0)
  schema.check(
    bool(np.all(sums_M > 0)),
    f'num_mels={num_mels} is too many for window_samples={window_samples} at '
    f'sample_rate={sample_rate}: a band is narrower than the '
    f'{sample_rate / size:.3g} Hz from one frequency to the next; use fewer '
    'bands or a longer window',
  )
  return (triangles_KM / sums_M).astype(np.float32)


def _frames(x_N: jax.Array, window_samples: int, hop_samples: int) -> jax.Array:
  """Overlapping frames, [..., F, W], concatenated from whole hops."""
  num_samples = x_N.shape[-1]
  num_frames = num_samples // hop_samples
  hops = -(-window_samples // hop_samples)
  left = left_padding(window_samples, hop_samples)
  total = (num_frames + hops - 1) * hop_samples
  lead = [(0, 0)] * (x_N.ndim - 1)
  x_N = jnp.pad(x_N, [*lead, (left, max(total - left - num_samples, 0))])
  x_N = x_N[..., :total].reshape(*x_N.shape[:-1], -1, hop_samples)
  parts = [x_N[..., i : i + num_frames, :] for i in range(hops)]
  return jnp.concatenate(parts, axis=-1)[..., :window_samples]


def _power_by_fft(frames_FW: jax.Array) -> jax.Array:
  """Power at each frequency, [..., F, K], relative to that of the window."""
  window_W = hann_window(frames_FW.shape[-1])
  window_W = window_W / np.sqrt(np.sum(window_W**2))
  spectrum_FK = jnp.fft.rfft(
    frames_FW * jnp.broadcast_to(window_W.astype(np.float32), frames_FW.shape),
    fft_size(frames_FW.shape[-1]),
  )
  return spectrum_FK.real**2 + spectrum_FK.imag**2


def _power_by_product(frames_FW: jax.Array) -> jax.Array:
  """The same by a product with cosines and sines, in full float32."""
  size = frames_FW.shape[-1]
  window_W = hann_window(size)
  window_W = window_W / np.sqrt(np.sum(window_W**2))
  # Whole turns are removed as integers, so the angles stay exact.
  turns_WK = np.outer(np.arange(size), np.arange(fft_size(size) // 2 + 1))
  angles_WK = 2 * np.pi * (turns_WK % fft_size(size)) / fft_size(size)
  basis_WCK = np.stack([np.cos(angles_WK), np.sin(angles_WK)], axis=1)
  spectrum_FCK = jnp.einsum(
    '...FW,WCK->...FCK',
    frames_FW,
    (basis_WCK * window_W[:, None, None]).astype(np.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return jnp.sum(spectrum_FCK**2, axis=-2)
