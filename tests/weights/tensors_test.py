"""Rows of tensors in files, and what numbers they have."""

import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.weights import gguf_blocks, tensors


def stored(path, values, form, before=b'abc'):
  """A tensor at an odd place of a file."""
  with path.open('wb') as file:
    file.write(before)
    tensors.write_encoded(values, form, file.write)
  return tensors.Tensor(values.shape, form, tensors.File(path), len(before))


RANGES = [(0, None), (2, 5), (0, 0), (6, 7), (5, 2), (-2, None), (3, 100)]


@pytest.mark.parametrize('bounds', RANGES)
@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('float32', (7, 3)),
    ('bfloat16', (7,)),
    ('float16', (7, 2, 5)),
    ('q8_0', (7, 64)),
    ('q4_1', (7, 2, 32)),
    # One row of blocks: the elements are the rows.
    ('q8_0', (96,)),
  ],
)
def test_rows_are_those_of_a_slice(tmp_path, name, shape, bounds):
  form = (tensors.PLAIN | gguf_blocks.BLOCKS)[name]
  values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  tensor = stored(tmp_path / 'file', values, form)
  whole = tensor.read()
  assert whole.shape == shape and whole.dtype == form.dtype
  np.testing.assert_allclose(whole.astype(np.float32), values, atol=0.2)
  found = tensor.read(*bounds)
  expected = whole[slice(*bounds)]
  assert found.shape == expected.shape
  np.testing.assert_array_equal(found, expected)


def test_a_scalar(tmp_path):
  tensor = stored(tmp_path / 'file', np.float32(2.5), tensors.PLAIN['float32'])
  assert tensor.read().shape == () and tensor.read() == 2.5


def test_rows_take_the_memory_of_rows(tmp_path):
  """16 MiB of float32 in 4 MiB, of which 64 KiB are read."""
  form = gguf_blocks.BLOCKS['q8_0']
  values = np.random.default_rng(0).normal(size=(4096, 1024))
  tensor = stored(tmp_path / 'file', values.astype(np.float32), form)
  tracemalloc.start()
  part = tensor.read(1000, 1016)
  _, few = tracemalloc.get_traced_memory()
  tracemalloc.reset_peak()
  whole = tensor.read()
  _, all_rows = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  np.testing.assert_array_equal(part, whole[1000:1016])
  assert few < 5 * part.nbytes
  # What is decoded at a time is small beside the tensor.
  assert all_rows < 1.3 * whole.nbytes


def test_a_file_that_becomes_shorter_is_an_error(tmp_path):
  path = tmp_path / 'file'
  values = np.ones((4096, 8), np.float32)
  tensor = stored(path, values, tensors.PLAIN['float32'])
  os.truncate(path, 5000)
  tensor.read(0, 100)
  with pytest.raises(config_lib.ConfigError, match='became shorter'):
    tensor.read(4000)


def test_another_file_in_its_place_is_not_read(tmp_path):
  path = tmp_path / 'file'
  values = np.full((4, 8), 3, np.float32)
  tensor = stored(path, values, tensors.PLAIN['float32'])
  (tmp_path / 'other').write_bytes(b'short')
  os.replace(tmp_path / 'other', path)
  np.testing.assert_array_equal(tensor.read(), values)


@pytest.mark.parametrize('kind', ['missing', 'folder', 'fifo', 'null'])
def test_only_regular_files_are_read(tmp_path, kind):
  path = tmp_path / 'file'
  if kind == 'folder':
    path.mkdir()
  elif kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'null':
    path = f'{path}\0'
  with pytest.raises(config_lib.ConfigError, match='file'):
    tensors.File(path)


@pytest.mark.parametrize('name', ['float16', 'bfloat16'])
def test_a_value_beyond_the_type_is_not_written(name):
  form = tensors.PLAIN[name]
  largest = float(ml_dtypes.finfo(form.dtype).max)
  values = np.float32([[1, largest]])
  tensors.write_encoded(values, form, lambda part: None)
  if name == 'float16':
    values *= 1.1
  else:
    values[0, 1] = 3.4e38
  with pytest.raises(tensors.FormatError, match=f'range of {name}'):
    tensors.write_encoded(values, form, lambda part: None)
  # What was infinite before is no loss.
  values[0, 1] = np.inf
  tensors.write_encoded(values, form, lambda part: None)


def test_names_in_messages_are_one_short_line():
  assert tensors.quoted('a\nb\ud800') == r"'a\nb\ud800'"
  assert len(tensors.quoted('\n' * 1000)) < 210
