"""Models of config.json files as they are published."""

import json

import pytest

from gemini_jax import config as config_lib
from gemini_jax.weights import families


def test_gemma3_of_text_and_pictures(tmp_path):
  """That of 4B, which leaves out what equals the defaults."""
  values = {
    'model_type': 'gemma3',
    'text_config': {
      'model_type': 'gemma3_text',
      'hidden_size': 2560,
      'intermediate_size': 10_240,
      'num_hidden_layers': 34,
      'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
      'sliding_window': 1024,
    },
  }
  (tmp_path / 'config.json').write_text(json.dumps(values))
  model = families.to_model(families.read(tmp_path), 'bfloat16')
  assert (model.vocab_size, model.max_length) == (262_208, 131_072)
  assert (model.num_heads, model.num_kv_heads, model.head_dim) == (8, 4, 256)
  assert (model.window, model.rope_scale) == (1024, 8.0)
  assert (model.rope_base, model.rope_base_local) == (1e6, 1e4)
  assert model.tie_embeddings and model.query_scale == 256


def test_windows_of_qwen_begin_at_its_28th_layer():
  """Where config.json gives neither the layer nor the width."""
  values = {'model_type': 'qwen2', 'use_sliding_window': True}
  model = families.to_model(values | {'num_hidden_layers': 30}, 'float32')
  assert model.attention_pattern == ('global',) * 28 + ('local',) * 2
  assert model.window == 4096


@pytest.mark.parametrize(
  'values',
  [
    {'partial_rotary_factor': 0.5},
    {'rope_scaling': {'factor': 2.0, 'partial_rotary_factor': 0.5}},
    {'rope_parameters': {'rope_theta': 1e4, 'partial_rotary_factor': 0.5}},
    {'rope_parameters': {'full_attention': {'partial_rotary_factor': 0.5}}},
    {'rope_parameters': {'sliding_attention': {'partial_rotary_factor': 0.5}}},
  ],
)
def test_heads_of_which_a_part_is_rotated(values):
  values = {'model_type': 'gemma3_text'} | values
  with pytest.raises(config_lib.ConfigError, match=r'factor=0\.5 is not supp'):
    families.to_model(values, 'float32')
  text = json.dumps(values)
  for whole in ('1.0', 'null'):
    families.to_model(json.loads(text.replace('0.5', whole)), 'float32')


@pytest.mark.parametrize('name', ['full_attention', 'sliding_attention'])
def test_rotary_positions_that_are_no_object(name):
  values = {'model_type': 'gemma3_text', 'rope_parameters': {name: 3}}
  with pytest.raises(config_lib.ConfigError, match=f'{name} must be an object'):
    families.to_model(values, 'float32')
