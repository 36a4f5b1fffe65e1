"""Small files with tensors of every type, and what is in them."""

import ml_dtypes
import numpy as np

# Formats by the names of the library gguf, with the rows and their lengths.
GGUF_TYPES = {
  'F32': (3, 8),
  'F16': (3, 8),
  'BF16': (3, 8),
  'Q4_0': (3, 64),
  'Q4_1': (3, 64),
  'Q5_0': (3, 64),
  'Q5_1': (3, 64),
  'Q8_0': (3, 64),
  'Q4_K': (3, 512),
  'Q5_K': (3, 512),
  'Q6_K': (3, 512),
  'I8': (3, 8),
  'I16': (3, 8),
  'I32': (3, 8),
  'I64': (3, 8),
  'F64': (3, 8),
}
# Values of every type of GGUF's metadata, as its library calls them.
METADATA = {
  'general.architecture': ('STRING', 'llama'),
  'a.uint8': ('UINT8', 200),
  'a.int8': ('INT8', -100),
  'a.uint16': ('UINT16', 60_000),
  'a.int16': ('INT16', -30_000),
  'a.uint32': ('UINT32', 4_000_000_000),
  'a.int32': ('INT32', -2_000_000_000),
  'a.uint64': ('UINT64', 2**63 + 5),
  'a.int64': ('INT64', -(2**62)),
  'a.float32': ('FLOAT32', 1e-5),
  'a.float64': ('FLOAT64', 1e-300),
  'a.bool': ('BOOL', True),
  'a.text': ('STRING', 'zwei Zeilen:\n日本 \u0000 \U0001f600'),
  'tokens': ('ARRAY', ['a', '', '\u0120the', '\U0001f600']),
  'scores': ('ARRAY', [0.5, -1.25]),
  'types': ('ARRAY', [1, 2, -3]),
  'flags': ('ARRAY', [True, False]),
}


def blocks(name, rng):
  """Random bytes of a tensor, [rows, bytes], with scales of usual size."""
  import gguf

  kind = gguf.GGMLQuantizationType[name]
  rows, length = GGUF_TYPES[name]
  block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
  raw = rng.integers(0, 256, (rows, length // block, num_bytes), np.uint8)
  if block > 1:
    halves = {
      'Q4_1': (0, 2),
      'Q5_1': (0, 2),
      'Q4_K': (0, 2),
      'Q5_K': (0, 2),
      'Q6_K': (208,),
    }
    for at in halves.get(name, (0,)):
      scale = rng.normal(size=(rows, length // block, 1)).astype(np.float16)
      raw[:, :, at : at + 2] = scale.view(np.uint8)
  return raw.reshape(rows, -1)


def write_gguf(path, names=tuple(GGUF_TYPES), seed=0, alignment=None):
  """Writes a GGUF file with the library gguf. Returns the bytes by tensor."""
  import gguf

  rng = np.random.default_rng(seed)
  writer = gguf.GGUFWriter(path, 'llama')
  if alignment:
    writer.add_custom_alignment(alignment)
  for key, (kind, value) in list(METADATA.items())[1:]:
    writer.add_key_value(key, value, gguf.GGUFValueType[kind])
  raws = {}
  for name in names:
    raws[name] = blocks(name, rng)
    kind = gguf.GGMLQuantizationType[name]
    writer.add_tensor(
      f'blk.0.{name}.weight',
      raws[name],
      raw_dtype=kind,
    )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return raws


def arrays(seed=0):
  """Tensors of each type that safetensors has and we read."""
  rng = np.random.default_rng(seed)
  kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64]
  kinds += [np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16]
  kinds += [np.uint8]
  found = {
    f'model.{np.dtype(kind).name}': (50 * rng.normal(size=(5, 3))).astype(kind)
    if np.dtype(kind).kind not in 'u'
    else rng.integers(0, 200, (5, 3)).astype(kind)
    for kind in kinds
  }
  found['model.bool'] = rng.random((5, 3)) < 0.5
  found['model.scalar'] = np.array(rng.normal(), np.float32)
  found['model.empty'] = np.zeros((0, 4), np.float32)
  found['model.deep'] = rng.normal(size=(2, 3, 4)).astype(np.float32)
  return found
