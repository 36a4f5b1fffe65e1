"""Configs of published models and updates, to be damaged and read."""

import functools
import json

import flax.linen as nn
import numpy as np

import toy
from gemini_jax.weights import (
  exported_program,
  families,
  peft_files,
  published,
  safetensors_files,
  stablehlo,
  tower_config,
)

_LLAMA3 = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
GEMMA = {
  'model_type': 'gemma3_text',
  'vocab_size': 61,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 16,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'query_pre_attn_scalar': 24,
  'sliding_window': 5,
  'layer_types': [families.SLIDING, families.SLIDING, families.FULL],
  'hidden_activation': 'gelu_pytorch_tanh',
  'final_logit_softcapping': 30.0,
  'rope_parameters': {
    families.SLIDING: {'rope_type': 'default', 'rope_theta': 10_000},
    families.FULL: _LLAMA3
    | {
      'rope_type': 'llama3',
      'rope_theta': 1_000_000,
      'factor': 8.0,
      'original_max_position_embeddings': 32,
    },
  },
}
VIT = {
  'model_type': 'vit',
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'num_channels': 3,
  'image_size': 16,
  'patch_size': 4,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
}
WHISPER = {
  'model_type': 'whisper',
  'd_model': 24,
  'encoder_layers': 2,
  'encoder_attention_heads': 3,
  'encoder_ffn_dim': 40,
  'num_mel_bins': 16,
  'max_source_positions': 50,
  'activation_function': 'gelu',
}
PIXELS = {'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.5, 0.5, 0.5]}
SOUNDS = {
  'sampling_rate': 16_000,
  'n_fft': 400,
  'hop_length': 160,
  'feature_size': 16,
}


def write(folder, config, preprocessor=None):
  """Writes the configs of a published model."""
  (folder / families.CONFIG_FILE).write_text(json.dumps(config))
  if preprocessor is not None:
    file = folder / tower_config.PREPROCESSOR_FILE
    file.write_text(json.dumps(preprocessor))


def load(folder):
  """The section or the model that they ask for."""
  if families.read(folder)['model_type'] in ('vit', 'whisper'):
    return tower_config.section(folder)
  model = published.Published(folder, families.read(folder), {}, {})
  return model.config('float32').model


@functools.cache
def _base():
  """Shapes of the parameters, and where they are in the published model."""
  model = toy.model(activation='silu', tie_embeddings=False)
  shapes = nn.unbox(toy.shapes(model))
  return shapes, published.huggingface_entries(model.config, shapes)


def make_update(folder):
  """Updates of two matrices, each named in every field."""
  modules = [f'model.layers.{i}.self_attn.q_proj' for i in range(2)]
  ranks = dict.fromkeys(modules, 2)
  values = {
    'peft_type': 'LORA',
    'base_model_name_or_path': 'a/base',
    'r': 2,
    'lora_alpha': 4,
    'use_rslora': False,
    'target_modules': modules,
    'rank_pattern': ranks,
    'alpha_pattern': ranks,
    'lora_dropout': 0.1,
    'bias': 'none',
    'modules_to_save': None,
  }
  (folder / peft_files.CONFIG).write_text(json.dumps(values))
  ones = np.ones((2, 16), np.float32)
  arrays = {
    f'base_model.model.{module}.lora_{letter}.weight': array
    for module in modules
    for letter, array in (('A', ones), ('B', ones.T))
  }
  safetensors_files.write_file(folder / peft_files.WEIGHTS, arrays.items())


def load_update(folder):
  return peft_files.read(folder, *_base())


def make_programs(folder):
  """A model as StableHLO; the manifest alone is damaged."""
  model = toy.model(num_layers=1)
  params = toy.model_params(model)
  stablehlo.write(folder, model.config, params, num_rows=1, num_slots=8)


def load_programs(folder):
  exported_program.load(folder)
