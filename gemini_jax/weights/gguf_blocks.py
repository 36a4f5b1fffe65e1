"""Block formats of GGUF: a few elements and their scales stored together.

The formulas and their order are those of llama.cpp, so that the numbers are
too (ggml-quants.c). Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 have blocks of 32 elements,
those called K blocks of 256 with scales of scales.

N blocks, B bytes.
"""

import functools
from collections.abc import Callable

import numpy as np

from gemini_jax.weights import tensors


def _half(raw_N2: np.ndarray) -> np.ndarray:
  """Float16 numbers, [N, 1]."""
  return raw_N2.view(np.float16).astype(np.float32)


def _unpack(raw_NB: np.ndarray, bits: int, width: int) -> np.ndarray:
  """Numbers of some bits, [N, B * 8 / bits].

  The lowest bits of `width` bytes are the first numbers, the bits above those
  the next, and so on; then come the next `width` bytes.
  """
  shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
  raw = raw_NB.reshape(len(raw_NB), -1, 1, width)
  mask = np.uint8(2**bits - 1)
  return ((raw >> shifts) & mask).reshape(len(raw_NB), -1)


def _pack(values: np.ndarray, bits: int, width: int) -> np.ndarray:
  """The inverse of `_unpack`, [N, B]."""
  shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
  parts = values.reshape(len(values), -1, 8 // bits, width) << shifts
  return np.bitwise_or.reduce(parts, axis=2).reshape(len(values), -1)


def _decode_q8_0(raw: np.ndarray) -> np.ndarray:
  return raw[:, 2:].view(np.int8).astype(np.float32) * _half(raw[:, :2])


def _decode_small(raw: np.ndarray, bits: int, has_min: bool) -> np.ndarray:
  """Q4_0, Q4_1, Q5_0 and Q5_1."""
  at = 4 if has_min else 2
  low_at = at + 4 * (bits - 4)
  values = _unpack(raw[:, low_at:], 4, 16)
  if bits == 5:
    values = values | _unpack(raw[:, at:low_at], 1, 1) << np.uint8(4)
  scaled = values.astype(np.float32)
  if has_min:
    return _half(raw[:, :2]) * scaled + _half(raw[:, 2:4])
  return _half(raw[:, :2]) * (scaled - 2 ** (bits - 1))


def _decode_k(raw: np.ndarray, bits: int) -> np.ndarray:
  """Q4_K and Q5_K: 8 scales and 8 minima of 6 bits in 12 bytes."""
  low, mins, high = np.split(raw[:, 4:16], 3, axis=1)
  scales = np.concatenate(
    [low & 63, (high & 15) | ((low >> 2) & 48)], axis=1
  ).astype(np.float32)
  offsets = np.concatenate(
    [mins & 63, (high >> 4) | ((mins >> 2) & 48)], axis=1
  ).astype(np.float32)
  values = _unpack(raw[:, -128:], 4, 32)
  if bits == 5:
    values = values | _unpack(raw[:, 16:48], 1, 32) << np.uint8(4)
  scaled = values.reshape(len(raw), 8, 32).astype(np.float32)
  scale = (_half(raw[:, :2]) * scales)[..., None]
  offset = (_half(raw[:, 2:4]) * offsets)[..., None]
  return (scale * scaled - offset).reshape(len(raw), 256)


def _decode_q6_k(raw: np.ndarray) -> np.ndarray:
  low, high = _unpack(raw[:, :128], 4, 64), _unpack(raw[:, 128:192], 2, 32)
  values = (low | high << np.uint8(4)).astype(np.int8) - np.int8(32)
  scales = raw[:, 192:208].view(np.int8).astype(np.float32)
  scale = (_half(raw[:, 208:]) * scales)[..., None]
  scaled = values.reshape(len(raw), 16, 16).astype(np.float32)
  return (scale * scaled).reshape(len(raw), 256)


def _inverse(scale_N1: np.ndarray) -> np.ndarray:
  return np.divide(
    np.float32(1), scale_N1, out=np.zeros_like(scale_N1), where=scale_N1 != 0
  )


def _halves(*numbers_N1: np.ndarray) -> np.ndarray:
  """The bytes of float16 numbers, [N, 2 * numbers]."""
  halves = np.concatenate(numbers_N1, axis=1).astype(np.float16)
  if not np.isfinite(halves).all():
    raise tensors.FormatError('has values that are not finite or too large')
  return halves.view(np.uint8)


def _encode_q8_0(values: np.ndarray) -> np.ndarray:
  scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
  header = _halves(scale)
  scaled = values * _inverse(scale)
  # Halves are rounded away from zero, as C does.
  size = np.abs(scaled)
  whole = np.floor(size)
  whole += size - whole >= 0.5
  numbers = np.copysign(whole, scaled).astype(np.int8)
  return np.concatenate([header, numbers.view(np.uint8)], axis=1)


def _encode_q4_0(values: np.ndarray) -> np.ndarray:
  index = np.abs(values).argmax(axis=1, keepdims=True)
  scale = np.take_along_axis(values, index, axis=1) / np.float32(-8)
  header = _halves(scale)
  # As with a fused multiplication and addition.
  scaled = values.astype(np.float64) * _inverse(scale) + 8.5
  numbers = np.minimum(scaled.astype(np.float32).astype(np.uint8), 15)
  return np.concatenate([header, _pack(numbers, 4, 16)], axis=1)


def _encode_q4_1(values: np.ndarray) -> np.ndarray:
  low = values.min(axis=1, keepdims=True)
  scale = (values.max(axis=1, keepdims=True) - low) / np.float32(15)
  header = _halves(scale, low)
  scaled = (values - low) * _inverse(scale) + np.float32(0.5)
  numbers = np.minimum(scaled.astype(np.uint8), 15)
  return np.concatenate([header, _pack(numbers, 4, 16)], axis=1)


def _form(
  name: str,
  block: int,
  num_bytes: int,
  decode: Callable[[np.ndarray], np.ndarray],
  encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tensors.Format:
  float32 = np.dtype(np.float32)
  if encode is None:
    return tensors.Format(name, float32, block, num_bytes, decode)
  return tensors.Format(
    name,
    float32,
    block,
    num_bytes,
    decode,
    lambda values: encode(values.astype(float32)),
  )


_small = functools.partial(functools.partial, _decode_small)

BLOCKS = {
  form.name: form
  for form in (
    _form('q4_0', 32, 18, _small(bits=4, has_min=False), _encode_q4_0),
    _form('q4_1', 32, 20, _small(bits=4, has_min=True), _encode_q4_1),
    _form('q5_0', 32, 22, _small(bits=5, has_min=False)),
    _form('q5_1', 32, 24, _small(bits=5, has_min=True)),
    _form('q8_0', 32, 34, _decode_q8_0, _encode_q8_0),
    _form('q4_k', 256, 144, functools.partial(_decode_k, bits=4)),
    _form('q5_k', 256, 176, functools.partial(_decode_k, bits=5)),
    _form('q6_k', 256, 210, _decode_q6_k),
  )
}
