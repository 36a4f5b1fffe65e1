"""What a model can be converted to, a function a format."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.commands import convert_sources
from gemini_jax.data import gguf_tokenizer, huggingface_tokenizer
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import (
  config_json,
  families,
  gguf_file,
  gguf_model,
  importing,
  peft_files,
  published,
  safetensors_files,
  stablehlo,
  translation,
)

# Types of matrices in a GGUF file, by llama.cpp's names.
TYPES = {
  'F32': 'float32',
  'F16': 'float16',
  'BF16': 'bfloat16',
  'Q8_0': 'q8_0',
}
# Numbers of a row that Q8_0 stores together.
_BLOCK = 32
# Bytes of a file of safetensors, as others shard them.
_SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class Options:
  """What some formats let one choose.

  Attributes:
    type: of the matrices in a GGUF file.
    rows: texts that an exported program writes at once.
    slots: the longest text of an exported program.
  """

  type: str = 'F16'
  rows: int = 1
  slots: int = 1024


def write_run(
  loaded: convert_sources.Loaded, target: pathlib.Path, options: Options
):
  """A workdir with the parameters as the checkpoint of step 0."""
  del options
  target.mkdir()
  loaded.tokenizer.save(target / run_lib.TOKENIZER_FILE)
  checkpoints = run_lib.open_checkpoints(loaded.config, target)
  manifest = {
    'imported': True,
    'data': {'fingerprint': {'tokenizer': loaded.tokenizer.fingerprint}},
  } | loaded.manifest
  own = parameter_groups.own(loaded.config.tune, loaded.params)
  try:
    checkpoints.save(0, {'params': own}, manifest, one_by_one=True)
    checkpoints.wait()
  finally:
    checkpoints.close()
  text = config_lib.to_json(loaded.config.of_finished())
  host.replace_file(target / run_lib.CONFIG_FILE, text.encode())


def write_huggingface(
  loaded: convert_sources.Loaded, target: pathlib.Path, options: Options
):
  """A folder that `transformers` loads."""
  del options
  values, made = _exported(loaded, 'huggingface')
  target.mkdir()
  safetensors_files.write_folder(
    target,
    ((name, make()) for name, _, make in made),
    {'format': 'pt'},
    _SHARD_BYTES,
  )
  values |= {
    'pad_token_id': loaded.tokenizer.pad_id,
    'bos_token_id': loaded.tokenizer.bos_id,
    'eos_token_id': loaded.tokenizer.eos_id,
  }
  text = json.dumps(values, indent=2)
  host.replace_file(target / families.CONFIG_FILE, text.encode())
  files = huggingface_tokenizer.huggingface_files(loaded.tokenizer)
  for name, content in files.items():
    host.replace_file(target / name, content)


def write_gguf(
  loaded: convert_sources.Loaded, target: pathlib.Path, options: Options
):
  """A file that llama.cpp runs; vectors stay in float32."""
  values, made = _exported(loaded, 'gguf')
  factors_F = gguf_model.rope_factors(loaded.config.model)
  if factors_F is not None:
    made.append(('rope_freqs.weight', factors_F.shape, lambda: factors_F))
  metadata = gguf_model.metadata_of(values, target.stem)
  metadata |= gguf_tokenizer.gguf_metadata(
    loaded.tokenizer, loaded.config.model.vocab_size
  )
  gguf_file.write_gguf(
    target,
    metadata,
    [
      (name, shape, _gguf_type(options.type, shape), make)
      for name, shape, make in made
    ],
  )


def _gguf_type(type: str, shape: tuple[int, ...]) -> str:
  """What a tensor is stored as: as asked for where blocks divide its rows."""
  if len(shape) < 2:
    return 'float32'
  return 'float16' if type == 'Q8_0' and shape[-1] % _BLOCK else TYPES[type]


def write_peft(
  loaded: convert_sources.Loaded, target: pathlib.Path, options: Options
):
  """A folder of updates that PEFT puts beside the published base."""
  del options
  entries = published.huggingface_entries(loaded.config.model, _plain(loaded))
  known = loaded.manifest.get(base_lib.KEY, {})
  name = loaded.config.train.init_from
  if known:
    # The folder that was imported, where there is one: PEFT reads no workdir.
    name = base_lib.Base(loaded.config).source(known['step']) or name
  peft_files.write(
    target,
    loaded.config,
    loaded.params,
    entries,
    known.get('fingerprint', ''),
    name,
  )


def write_stablehlo(
  loaded: convert_sources.Loaded, target: pathlib.Path, options: Options
):
  """Programs that run without this package's models, and the tokenizer.

  Raises:
    ConfigError: the model writes no text.
  """
  config_lib.check(
    not loaded.config.model.num_classes,
    '--format=stablehlo is of models that write text, and this one names '
    'classes',
  )
  target.mkdir()
  stablehlo.write(
    target,
    loaded.config.model,
    loaded.params,
    num_rows=options.rows,
    num_slots=min(options.slots, loaded.config.model.max_length),
  )
  loaded.tokenizer.save(target / run_lib.TOKENIZER_FILE)


def _plain(loaded: convert_sources.Loaded) -> Any:
  """Shapes of the parameters that the model has without tuning."""
  init = functools.partial(
    gemini.init_params, gemini.Gemini(loaded.config.model)
  )
  return nn.unbox(jax.eval_shape(init, jax.random.key(0)))


def _exported(
  loaded: convert_sources.Loaded, format: translation.Format
) -> tuple[Any, Any]:
  """The config.json of a model, and its tensors as others name them."""
  model = loaded.config.model
  values = config_json.from_model(model)
  entries = published.export_entries(values, model, loaded.params, format)
  return values, importing.export(entries, loaded.params)


WRITERS: dict[
  str, Callable[[convert_sources.Loaded, pathlib.Path, Options], None]
] = {
  'gemini_jax': write_run,
  'huggingface': write_huggingface,
  'gguf': write_gguf,
  'peft': write_peft,
  'stablehlo': write_stablehlo,
}
