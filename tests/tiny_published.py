"""A published model of random weights, in a folder of Hugging Face."""

import json
import pathlib

import byte_pair
import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.weights import (
  config_json,
  importing,
  published,
  safetensors_files,
)

SIZES = {
  'max_length': 128,
  'width': 32,
  'mlp_dim': 48,
  'num_layers': 2,
  'num_heads': 4,
  'num_kv_heads': 2,
  'activation': 'silu',
}


def write(path: pathlib.Path, more_rows: int = 0) -> pathlib.Path:
  """Writes a Llama with its tokenizer and a chat template; the folder.

  Args:
    path: of the folder.
    more_rows: how many more rows than tokens the token table has.
  """
  path.mkdir()
  words = byte_pair.make(path)
  model = config_lib.Model(vocab_size=words.vocab_size + more_rows, **SIZES)
  params = toy.model_params(gemini.Gemini(model))
  values = config_json.from_model(model)
  assert values['model_type'] == 'llama'
  entries = published.huggingface_entries(model, params)
  safetensors_files.write_folder(
    path,
    [(name, make()) for name, _, make in importing.export(entries, params)],
    {'format': 'pt'},
    # In several files.
    20_000,
  )
  (path / 'config.json').write_text(json.dumps(values))
  return path
