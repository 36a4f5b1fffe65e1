"""The numbers of llama.cpp, bit for bit, by its own Python library."""

import gguf
import numpy as np
import pytest

import weight_files
from gemini_jax.weights import gguf_blocks, tensors

QUANTISED = [name for name in weight_files.GGUF_TYPES if name.startswith('Q')]
WRITTEN = ['Q8_0', 'Q4_0', 'Q4_1']


def reference(function, array, name):
  with np.errstate(all='ignore'):
    return function(array, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize('name', QUANTISED)
def test_numbers_are_those_of_llama_cpp(name):
  form = gguf_blocks.BLOCKS[name.lower()]
  sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
  assert (form.block, form.num_bytes) == sizes
  rng = np.random.default_rng(1)
  # Any bytes, so also scales that are not finite.
  raw = rng.integers(0, 256, (3000, form.num_bytes), np.uint8)
  expected = reference(gguf.quants.dequantize, raw, name)
  with np.errstate(all='ignore'):
    found = form.decode(raw)
  assert found.dtype == np.float32
  assert np.isfinite(expected).mean() > 0.8
  np.testing.assert_array_equal(found, expected)


def values(block):
  """Rows whose quantisation is difficult: halves, zeros, extremes, one sign."""
  rng = np.random.default_rng(2)
  rows = rng.normal(size=(400, block)).astype(np.float32)
  rows *= np.exp(rng.uniform(-3, 3, (400, 1))).astype(np.float32)
  rows[0] = 0
  rows[1] = -0.0
  rows[2] = 3.25
  rows[3] = np.arange(block) - block / 2
  rows[4] = np.abs(rows[4])
  rows[5] = 127 * np.sign(rows[5])
  rows[5, 1:] = np.arange(block - 1) + 0.5
  rows[6] *= 1e-9
  rows[7, 3] = rows[7, 9] = -50
  rows[8, 3], rows[8, 9] = 50, -50
  rows[9] = 1e-40
  return rows


@pytest.mark.parametrize('name', WRITTEN)
def test_blocks_are_those_of_llama_cpp(name):
  form = gguf_blocks.BLOCKS[name.lower()]
  rows = values(form.block)
  written = []
  tensors.write_encoded(rows, form, lambda part: written.append(bytes(part)))
  expected = reference(gguf.quants.quantize, rows, name)
  found = np.frombuffer(b''.join(written), np.uint8).reshape(expected.shape)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('name', WRITTEN)
def test_the_error_of_quantisation_is_half_a_step(name):
  form = gguf_blocks.BLOCKS[name.lower()]
  rows = values(form.block)[10:]
  error = np.abs(form.decode(form.encode(rows)) - rows).max(axis=1)
  span = np.ptp(rows, axis=1)
  # Q4_0 has 16 steps from the largest value to almost its opposite.
  steps = {'Q8_0': 254, 'Q4_0': 8, 'Q4_1': 15}[name]
  largest = np.abs(rows).max(axis=1)
  step = (2 * largest if name != 'Q4_1' else span) / steps
  assert np.all(error < 0.53 * step + 1e-3 * largest)


@pytest.mark.parametrize('name', WRITTEN)
@pytest.mark.parametrize('value', [np.nan, np.inf, 3e38])
def test_what_is_not_finite_is_not_quantised(name, value):
  rows = np.ones((2, 32), np.float32)
  rows[1, 4] = value
  rows[1, 5] = -value
  form = gguf_blocks.BLOCKS[name.lower()]
  with pytest.raises(tensors.FormatError, match='finite or too large'):
    tensors.write_encoded(rows, form, lambda part: None)
