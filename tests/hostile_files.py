"""Formats whose files come from outside, damaged in many ways and read.

A format is a line in `FORMATS`; `hostile_files_test.py` runs a few cases of
each and `hostile_files_study.py` thousands, with limits of the system.
"""

import collections
import dataclasses
from collections.abc import Callable

import hostile_configs
import hostile_text
import mutations
import weight_files
from gemini_jax.weights import gguf_file, safetensors_files


@dataclasses.dataclass
class Format:
  """What is damaged and how it is read.

  Attributes:
    file_name: of the file that is damaged, in a folder.
    make: writes what is to be read to a folder.
    load: reads all of it from the folder.
    header: bytes of the file in which the structure is; None: all of them.
    damage: makes damaged copies, as `mutations.of`.
    seconds: that a file may take.
  """

  file_name: str
  make: Callable
  load: Callable
  header: int | None = None
  damage: Callable = mutations.of
  seconds: float = 2.0


def _make_gguf(folder):
  weight_files.write_gguf(folder / 'model.gguf')


def _load_gguf(folder):
  for tensor in gguf_file.open_gguf(folder / 'model.gguf').tensors.values():
    tensor.read()


def _make_safetensors(folder):
  arrays = weight_files.arrays()
  safetensors_files.write_folder(folder, arrays.items(), shard_bytes=600)


def _load_safetensors(folder):
  for tensor in safetensors_files.open_folder(folder).values():
    tensor.read()


def _config(file_name, *contents):
  return Format(
    file_name,
    lambda folder: hostile_configs.write(folder, *contents),
    hostile_configs.load,
    damage=hostile_text.of_json,
  )


FORMATS = {
  'gguf': Format('model.gguf', _make_gguf, _load_gguf, 2200),
  'safetensors': Format(
    'model-00001-of-00002.safetensors',
    _make_safetensors,
    _load_safetensors,
    900,
  ),
  'safetensors_index': Format(
    'model.safetensors.index.json', _make_safetensors, _load_safetensors
  ),
  'config.json': _config('config.json', hostile_configs.GEMMA),
  'config.json of vit': _config('config.json', hostile_configs.VIT),
  'config.json of whisper': _config('config.json', hostile_configs.WHISPER),
  'preprocessor of vit': _config(
    'preprocessor_config.json', hostile_configs.VIT, hostile_configs.PIXELS
  ),
  'preprocessor of whisper': _config(
    'preprocessor_config.json', hostile_configs.WHISPER, hostile_configs.SOUNDS
  ),
  'adapter_config': Format(
    'adapter_config.json',
    hostile_configs.make_update,
    hostile_configs.load_update,
    damage=hostile_text.of_json,
  ),
  'manifest of programs': Format(
    'manifest.json',
    hostile_configs.make_programs,
    hostile_configs.load_programs,
    damage=hostile_text.of_json,
  ),
  'tokenizer.json': Format(
    'tokenizer.json',
    hostile_text.make_library,
    hostile_text.load,
    damage=hostile_text.of_json,
  ),
  'tokenizer.json bpe': Format(
    'tokenizer.json',
    hostile_text.make_sentencepiece,
    hostile_text.load,
    damage=hostile_text.of_json,
  ),
  'tokenizer.json uni': Format(
    'tokenizer.json',
    hostile_text.make_unigram,
    hostile_text.load,
    damage=hostile_text.of_json,
  ),
  'tokenizer_config': Format(
    'tokenizer_config.json',
    hostile_text.make_library,
    hostile_text.load,
    damage=hostile_text.of_json,
  ),
  'tokenizer.model': Format(
    'tokenizer.model', hostile_text.make_model, hostile_text.load
  ),
  'tokenizer of a run': Format(
    'tokenizer',
    hostile_text.make_saved,
    hostile_text.load_saved,
    damage=hostile_text.of_json,
  ),
  'tokenizer of gguf': Format(
    'metadata.json',
    hostile_text.make_metadata,
    hostile_text.load_metadata,
    damage=hostile_text.of_json,
  ),
  'chat template': Format(
    'chat_template.jinja',
    hostile_text.make_template,
    hostile_text.load_template,
    damage=hostile_text.of_template,
    # Of processor time it has less, but others may have the processor.
    seconds=20.0,
  ),
}


def run(name, folder, count, seed=0, told=lambda index: None):
  """Damages a file `count` times and reads it; how often what happened.

  Args:
    name: of the format.
    folder: empty, for the files.
    count: of damaged files.
    seed: of the damage.
    told: called with the number of each case before it.
  """
  form = FORMATS[name]
  form.make(folder)
  form.load(folder)
  path = folder / form.file_name
  content = path.read_bytes()
  counts = collections.Counter()
  for index, (kind, damaged) in enumerate(
    form.damage(content, count, seed, form.header)
  ):
    told(index)
    path.write_bytes(damaged)
    found = mutations.outcome(lambda: form.load(folder), folder, form.seconds)
    counts[kind, found] += 1
  return counts
