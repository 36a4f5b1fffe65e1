"""Safetensors read and written, beside the format's own library."""

import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import weight_files
from gemini_jax import config as config_lib
from gemini_jax.weights import safetensors_files


def assert_equal(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    tensor = found[name]
    assert tensor.dtype == array.dtype.name, name
    assert tensor.shape == array.shape, name
    read = tensor.read()
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array, err_msg=name)
    if array.ndim:
      np.testing.assert_array_equal(tensor.read(1, 3), array[1:3])


def test_files_of_the_library_are_read(tmp_path):
  arrays = weight_files.arrays()
  safetensors.numpy.save_file(arrays, tmp_path / 'model.safetensors')
  assert_equal(safetensors_files.open_folder(tmp_path), arrays)


@pytest.mark.parametrize('shard_bytes', [10**9, 300, 1])
def test_what_is_written_is_read_by_the_library(tmp_path, shard_bytes):
  library = pytest.importorskip(
    'safetensors.torch', reason='needs gemini_jax[parity]'
  )
  arrays = weight_files.arrays()
  safetensors_files.write_folder(
    tmp_path / 'model', arrays.items(), {'format': 'pt', 'a': 'ü'}, shard_bytes
  )
  opened = safetensors_files.open_folder(tmp_path / 'model')
  assert_equal(opened, arrays)
  # Readers that map a file want this.
  for tensor in opened.values():
    assert tensor.offset % tensor.form.num_bytes == 0
  files = sorted((tmp_path / 'model').iterdir())
  found = {}
  for path in files:
    if path.suffix == '.safetensors':
      with safetensors.safe_open(path, 'pt') as file:
        assert file.metadata() == {'format': 'pt', 'a': 'ü'}
      shard = library.load_file(path)
      size = sum(arrays[name].nbytes for name in shard)
      num = sum(arrays[name].nbytes > 0 for name in shard)
      assert num == 1 or size <= shard_bytes
      found |= shard
  assert set(found) == set(arrays)
  for name, array in arrays.items():
    theirs = found[name]
    if array.dtype == ml_dtypes.bfloat16:
      theirs, array = theirs.float(), array.astype(np.float32)
    np.testing.assert_array_equal(theirs.numpy(), array)
  names = [path.name for path in files]
  if shard_bytes > 10**6:
    assert names == ['model.safetensors']
    return
  assert names[0] == f'model-00001-of-{len(names) - 1:05}.safetensors'
  index = json.loads((tmp_path / 'model' / names[-1]).read_text())
  size = sum(array.nbytes for array in arrays.values())
  assert index['metadata']['total_size'] == size
  assert set(index['weight_map']) == set(arrays)
  assert set(index['weight_map'].values()) == set(names[:-1])


def test_a_file_is_replaced(tmp_path):
  path = tmp_path / 'adapter_model.safetensors'
  for seed in (0, 1):
    arrays = weight_files.arrays(seed)
    safetensors_files.write_file(path, arrays.items())
    assert_equal(safetensors_files.open_file(path), arrays)
  assert list(tmp_path.iterdir()) == [path]
  with safetensors.safe_open(path, 'np') as file:
    assert file.metadata() == {'format': 'pt'}


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
  arrays = ((str(i), np.ones((256, 1024), np.float32)) for i in range(8))
  tracemalloc.start()
  safetensors_files.write_folder(tmp_path, arrays)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 << 20
  assert len(safetensors_files.open_folder(tmp_path)) == 8


def test_arrays_of_any_layout(tmp_path):
  plain = np.random.default_rng(0).normal(size=(4, 6))
  arrays = {
    'transposed': plain.T,
    'strided': plain[::2, 1::2],
    'big-endian': plain.astype('>f4'),
  }
  path = tmp_path / 'file.safetensors'
  safetensors_files.write_file(path, arrays.items())
  found = safetensors_files.open_file(path)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name].read(), array)


def broken():
  yield 'a', np.ones(3, np.float32)
  raise KeyboardInterrupt


def test_a_file_that_is_not_complete_does_not_appear(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    safetensors_files.write_folder(tmp_path, broken(), shard_bytes=1)
  with pytest.raises(KeyboardInterrupt):
    safetensors_files.write_file(tmp_path / 'a.safetensors', broken())
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('arrays', 'match'),
  [
    ([('a', np.ones(1)), ('a', np.ones(1))], 'a is written twice'),
    ([('__metadata__', np.ones(1))], '__metadata__'),
    ([('a', np.ones(1, complex))], 'a is of type complex128'),
  ],
)
def test_what_cannot_be_written_is_named(tmp_path, arrays, match):
  for shard_bytes in (1, 10**9):
    with pytest.raises(config_lib.ConfigError, match=match):
      safetensors_files.write_folder(tmp_path, arrays, shard_bytes=shard_bytes)
  assert not list(tmp_path.iterdir())


def test_weights_are_not_written_beside_weights(tmp_path):
  arrays = [('a', np.ones(3, np.float32))]
  safetensors_files.write_folder(tmp_path, arrays)
  with pytest.raises(config_lib.ConfigError, match='safetensors exists'):
    safetensors_files.write_folder(tmp_path, arrays)


def entry(shape=(2,), offsets=(0, 8), dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}


def packed(header, data=bytes(8)):
  content = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(content)) + content + data


HOSTILE = {
  'empty': (b'', 'ends after 0 bytes; 8 are needed'),
  'a header of the length of everything': (b'\xff' * 16, 'a header of 18,44'),
  'a header longer than the file': (packed({})[:9], 'a header of 2 bytes'),
  'no JSON': (packed(b'{"a":}'), 'JSON is damaged'),
  'no UTF-8': (packed(b'{"\xff":1}'), 'JSON is damaged'),
  'nested': (packed(b'[' * 10**6), 'JSON is damaged'),
  'digits': (packed(b'{"a":' + b'9' * 5000 + b'}'), 'JSON is damaged'),
  'no object': (packed([1, 2]), 'is no object'),
  'a name twice': (
    packed(b'{"a":' + json.dumps(entry()).encode() + b',"a":1}'),
    'occurs twice',
  ),
  'no entry': (packed({'a': 3}), "'a' has no dtype"),
  'no shape': (packed({'a': {'dtype': 'F32'}}), "'a' has no dtype, shape"),
  'a shape of text': (packed({'a': entry('ab')}), "'a' has no dtype, shape"),
  'a type of a list': (packed({'a': entry(dtype=[])}), "'a' has no dtype"),
  'type': (packed({'a': entry(dtype='F8_E4M3')}), "'a' is of type 'F8_E4M3'"),
  'negative': (packed({'a': entry((-2,))}), "'a' has no possible shape"),
  'fraction': (packed({'a': entry((2.0,))}), "'a' has no possible shape"),
  'boolean': (packed({'a': entry((True,), (0, 4))}), 'no possible shape'),
  'huge': (packed({'a': entry((2**62, 2**62))}), 'no possible shape'),
  'empty but huge': (
    packed({'a': entry((0, 2**63), (0, 0))}, b''),
    'no possible shape',
  ),
  'dims': (packed({'a': entry([1] * 65, (0, 4))}), 'no possible shape'),
  'size': (packed({'a': entry((3,))}), "'a' takes 12 bytes and has 8"),
  'reversed': (
    packed({'a': entry(offsets=(8, 0))}),
    'takes 8 bytes and has -8',
  ),
  'below 0': (packed({'a': entry(offsets=(-8, 0))}), 'has no dtype'),
  'truncated': (packed({'a': entry()}, bytes(7)), 'the header says'),
  'bytes of nobody': (packed({'a': entry()}, bytes(9)), 'the header says'),
  'overlap': (
    packed({'a': entry(), 'b': entry((1,), (4, 8))}),
    "'b' begins at 4, where the one before it ends at 8",
  ),
  'gap': (packed({'a': entry(offsets=(8, 16))}, bytes(16)), 'begins at 8'),
  'a name of two lines': (packed({'a\nb': 3}), r"'a\\nb' has no dtype"),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_bytes_are_refused_in_one_line(tmp_path, case):
  content, match = HOSTILE[case]
  path = tmp_path / 'model.safetensors'
  path.write_bytes(content)
  with pytest.raises(config_lib.ConfigError, match=match) as error:
    safetensors_files.open_folder(tmp_path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


def index(**files):
  return {'weight_map': files}


ONE, TWO = 'one.safetensors', 'two.safetensors'
SHARDS = {ONE: ['a', 'b'], TWO: ['c']}
INDICES = {
  'no map': ({}, 'weight_map does not name'),
  'a map of numbers': (index(a=3), 'weight_map does not name'),
  'a path': (index(a='../one.safetensors'), 'weight_map does not name'),
  'an absolute path': (index(a='/one.safetensors'), 'weight_map does not'),
  'another drive': (index(a='c:one.safetensors'), 'weight_map does not'),
  'a pickle': (index(a='one.bin'), 'weight_map does not name'),
  'no such file': (index(a='three.safetensors'), 'No such file'),
  'the wrong file': (
    index(a=ONE, b=TWO, c=TWO),
    "one.safetensors: tensor 'b' is not of this file",
  ),
  'one too many': (
    index(a=ONE, c=TWO),
    "one.safetensors: tensor 'b' is not of this file",
  ),
  'one missing': (
    index(a=ONE, b=ONE, c=TWO, d=TWO),
    "two.safetensors: tensor 'd' is missing",
  ),
  'no index': ([], 'is no object'),
}


@pytest.mark.parametrize('case', INDICES)
def test_an_index_names_each_tensor_once(tmp_path, case):
  for file_name, names in SHARDS.items():
    safetensors_files.write_file(
      tmp_path / file_name, [(name, np.ones(3, np.float32)) for name in names]
    )
  path = tmp_path / safetensors_files.INDEX
  path.write_text(json.dumps(index(a=ONE, b=ONE, c=TWO)))
  assert set(safetensors_files.open_folder(tmp_path)) == {'a', 'b', 'c'}
  content, match = INDICES[case]
  path.write_text(json.dumps(content))
  with pytest.raises(config_lib.ConfigError, match=match) as error:
    safetensors_files.open_folder(tmp_path)
  assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_a_folder_without_weights(tmp_path):
  with pytest.raises(config_lib.ConfigError, match='are not read'):
    safetensors_files.open_folder(tmp_path)
