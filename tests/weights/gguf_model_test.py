"""Metadata of GGUF files: what is refused."""

import types

import pytest

from gemini_jax import config as config_lib
from gemini_jax.weights import gguf_model

LLAMA = {
  'general.architecture': 'llama',
  'llama.embedding_length': 32,
  'llama.block_count': 2,
  'llama.feed_forward_length': 48,
  'llama.attention.head_count': 4,
  'llama.context_length': 64,
}
FILES = {'token_embd.weight': types.SimpleNamespace(shape=(61, 32))}


@pytest.mark.parametrize('rotated', [{}, {'llama.rope.dimension_count': 8}])
def test_what_a_file_leaves_out(rotated):
  values = gguf_model.config_values(LLAMA | rotated, FILES)
  assert values['num_key_value_heads'] == values['num_attention_heads'] == 4
  assert values['head_dim'] == 8


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'attention.head_count': None}, 'llama.attention.head_count is missing'),
    ({'attention.head_count': 0}, 'llama.attention.head_count=0 must be above'),
    ({'context_length': None}, 'llama.context_length is missing'),
    ({'rope.dimension_count': 4}, 'rope.dimension_count=4 is not supported'),
    (
      {'attention.key_length': 16, 'rope.dimension_count': 8},
      'rope.dimension_count=8 is not supported: all of a head, 16',
    ),
  ],
)
def test_metadata_that_are_refused(change, message):
  metadata = LLAMA | {f'llama.{name}': value for name, value in change.items()}
  with pytest.raises(config_lib.ConfigError, match=message):
    gguf_model.config_values(metadata, FILES)
