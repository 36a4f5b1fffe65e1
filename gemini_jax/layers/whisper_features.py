"""The log-mel spectrogram that Whisper reads (Radford et al. 2022).

N samples, F frames, W samples of a window, K frequencies, M bands. A leading
`...` stands for any batch dims.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax.layers import spectrogram

# Softer sounds count as silence, and so does what is this much softer than the
# loudest band, in powers of ten.
_FLOOR, _RANGE = 1e-10, 8.0


def log_mel(
  samples: jax.Array,
  lengths: jax.Array,
  *,
  sample_rate: int,
  window_samples: int,
  hop_samples: int,
  num_mels: int,
  f_min: float,
  f_max: float,
) -> jax.Array:
  """Log powers, (log10 + 4) / 4, float32[..., F, M], F = N // hop_samples.

  Frame f is centred at sample f * hop; beyond both ends the samples are
  mirrored.

  Args:
    samples: int16[..., N].
    lengths: int[...], how many samples are real; silence follows.
    sample_rate: samples a second.
    window_samples: W.
    hop_samples: from one frame to the next.
    num_mels: M.
    f_min: where the lowest band begins, Hz.
    f_max: where the highest band ends, Hz.
  """
  x_N = samples.astype(jnp.float32) / 2**15
  index_N = jax.lax.broadcasted_iota(jnp.int32, x_N.shape, x_N.ndim - 1)
  x_N = jnp.where(index_N < lengths[..., None], x_N, 0.0)
  half = window_samples // 2
  lead = [(0, 0)] * (x_N.ndim - 1)
  x_N = jnp.pad(x_N, [*lead, (half, half)], mode='reflect')
  num_frames = samples.shape[-1] // hop_samples
  at_FW = hop_samples * np.arange(num_frames)[:, None] + np.arange(
    window_samples
  )
  power_FK = _power(x_N[..., at_FW])
  filters_KM = mel_filters(sample_rate, window_samples, num_mels, f_min, f_max)
  power_FM = jnp.einsum(
    '...FK,KM->...FM',
    power_FK,
    filters_KM,
    precision=jax.lax.Precision.HIGHEST,
  )
  log_FM = jnp.log10(jnp.maximum(power_FM, _FLOOR))
  loudest = jnp.max(log_FM, axis=(-2, -1), keepdims=True)
  return (jnp.maximum(log_FM, loudest - _RANGE) + 4) / 4


def mel_filters(
  sample_rate: int,
  window_samples: int,
  num_mels: int,
  f_min: float,
  f_max: float,
) -> np.ndarray:
  """Weight of each frequency in each band: triangles of the same area."""
  hz_K1 = np.linspace(0, sample_rate / 2, window_samples // 2 + 1)[:, None]
  edges = spectrogram.mel_edges(num_mels, f_min, f_max)
  left_M, peak_M, right_M = edges[:-2], edges[1:-1], edges[2:]
  triangles_KM = np.minimum(
    (hz_K1 - left_M) / (peak_M - left_M), (right_M - hz_K1) / (right_M - peak_M)
  ).clip(0)
  return (triangles_KM * 2 / (right_M - left_M)).astype(np.float32)


def _power(frames_FW: jax.Array) -> jax.Array:
  """Power at each frequency, [..., F, K], by a product with sinusoids."""
  size = frames_FW.shape[-1]
  # Whole turns are removed as integers, so the angles stay exact.
  turns_WK = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size
  angles_WK = 2 * np.pi * turns_WK / size
  basis_WCK = np.stack([np.cos(angles_WK), np.sin(angles_WK)], axis=1)
  window_W11 = spectrogram.hann_window(size)[:, None, None]
  spectrum_FCK = jnp.einsum(
    '...FW,WCK->...FCK',
    frames_FW,
    (basis_WCK * window_W11).astype(np.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return jnp.sum(spectrum_FCK**2, axis=-2)
