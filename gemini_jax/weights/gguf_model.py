"""The architecture in the metadata of a GGUF file, in terms of config.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.layers import embedding
from gemini_jax.weights import config_json, families, tensors

# By `general.architecture`: the model_type in config.json, and whether the
# rows of queries and keys are permuted. Mistral's files say llama.
_ARCHITECTURES = {
  'llama': ('llama', True),
  'qwen2': ('qwen2', False),
  'qwen3': ('qwen3', False),
  'gemma2': ('gemma2', False),
  'gemma3': ('gemma3_text', False),
}
# llama.cpp adds 1 to Gemma's norms when it converts them.
NORM_OFFSET = 1.0
# Without the prefix of the architecture: the same value in config.json.
_SAME = {
  'embedding_length': 'hidden_size',
  'block_count': 'num_hidden_layers',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'attention.sliding_window': 'sliding_window',
  'context_length': 'max_position_embeddings',
  'rope.freq_base': 'rope_theta',
  'attn_logit_softcapping': 'attn_logit_softcapping',
  'final_logit_softcapping': 'final_logit_softcapping',
}
# What llama.cpp finds in every file.
_REQUIRED = (
  *('embedding_length', 'block_count', 'feed_forward_length'),
  *('attention.head_count', 'context_length'),
)
_ROPE_FACTORS = 'rope_freqs.weight'
# What llama.cpp knows by itself of Gemma: the layers of the 27B models, whose
# queries are scaled by width / heads and not by the width of a head.
_GEMMA_27B = {'gemma2': 46, 'gemma3_text': 62}
# Fields of config.json that have no place in a file.
_UNSAID = (
  *('layer_types', 'query_pre_attn_scalar', 'rope_local_base_freq'),
  *('rope_parameters', 'use_sliding_window'),
)
# Llama 3's rescaling of rotary frequencies, of which a file holds the result.
_LLAMA3: dict[str, Any] = {
  'rope_type': 'llama3',
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}


def permutes(model_type: str) -> bool:
  """Whether queries and keys of a family are permuted in GGUF files."""
  return dict(_ARCHITECTURES.values())[model_type]


def config_values(
  metadata: Mapping[str, Any],
  files: Mapping[str, tensors.Tensor],
) -> dict[str, Any]:
  """What a config.json would say of the model in a GGUF file.

  Args:
    metadata: of the file.
    files: its tensors.

  Raises:
    ConfigError: the architecture is not supported, or a value is wrong.
  """
  name = metadata.get('general.architecture')
  config_lib.check(
    isinstance(name, str) and name in _ARCHITECTURES,
    f'general.architecture={name!r} is not supported; supported are '
    f'{", ".join(_ARCHITECTURES)}',
  )
  kind, _ = _ARCHITECTURES[str(name)]
  values: dict[str, Any] = {'model_type': kind}
  for theirs, ours in _SAME.items():
    value = metadata.get(f'{name}.{theirs}')
    if isinstance(value, list):
      # One for each layer.
      config_lib.check(
        len(set(map(repr, value))) == 1,
        f'{name}.{theirs} differs from layer to layer, which is not supported',
      )
      value = value[0]
    config_lib.check(
      value is not None or theirs not in _REQUIRED,
      f'{name}.{theirs} is missing',
    )
    if value is not None:
      values[ours] = value
  values.setdefault('num_key_value_heads', values['num_attention_heads'])
  values.setdefault('head_dim', _head_dim(name, values))
  rotated = metadata.get(f'{name}.rope.dimension_count')
  config_lib.check(
    rotated in (values['head_dim'], None),
    f'{name}.rope.dimension_count={rotated!r} is not supported: all of a head, '
    f'{values["head_dim"]!r}, is rotated here',
  )
  table = files.get('token_embd.weight')
  config_lib.check(
    table is not None and len(table.shape) == 2,
    'token_embd.weight is missing or is no matrix',
  )
  assert table is not None
  values['vocab_size'] = table.shape[0]
  values['tie_word_embeddings'] = 'output.weight' not in files
  values |= _rope(str(name), metadata, files, values)
  if kind in _GEMMA_27B:
    values['query_pre_attn_scalar'] = _query_scale(values)
    for field in ('attn_logit_softcapping', 'final_logit_softcapping'):
      if kind == 'gemma3_text':
        values.setdefault(field, None)
  elif 'sliding_window' in values and kind == 'llama':
    del values['sliding_window']
  return values


def _head_dim(name: str | None, values: Mapping[str, Any]) -> int:
  """The width of a head in a file that does not give it."""
  width, heads = values['hidden_size'], values['num_attention_heads']
  config_lib.check(
    isinstance(width, int) and isinstance(heads, int) and heads > 0,
    f'{name}.attention.head_count={heads!r} must be above 0',
  )
  return width // heads


def _rope(
  name: str,
  metadata: Mapping[str, Any],
  files: Mapping[str, tensors.Tensor],
  values: Mapping[str, Any],
) -> dict[str, Any]:
  """The scaling of rotary positions."""
  kind = metadata.get(f'{name}.rope.scaling.type', 'none')
  if kind == 'linear':
    factor = metadata.get(f'{name}.rope.scaling.factor')
    return {'rope_scaling': {'rope_type': 'linear', 'factor': factor}}
  config_lib.check(
    kind == 'none', f'{name}.rope.scaling.type={kind!r} is not supported'
  )
  if _ROPE_FACTORS not in files:
    return {}
  tensor = files[_ROPE_FACTORS]
  config_lib.check(
    len(tensor.shape) == 1 and 0 < tensor.shape[0] <= 4096,
    f'{_ROPE_FACTORS} has the shape {list(tensor.shape)}',
  )
  factors_F = tensor.read()
  scaling: dict[str, Any] = _LLAMA3 | {'factor': float(np.max(factors_F))}
  base = values.get('rope_theta', 10_000.0)
  config_lib.check(
    isinstance(base, (int, float)) and base >= 1 and scaling['factor'] > 0,
    f'{name}.rope.freq_base={base!r} must be at least 1',
  )
  head_dim = 2 * factors_F.size
  ours_F = embedding.rotary_frequencies(
    head_dim, base
  ) / embedding.rotary_frequencies(
    head_dim,
    base,
    llama3_context=scaling['original_max_position_embeddings'],
    llama3_factors=(scaling['factor'], 1.0, 4.0),
  )
  config_lib.check(
    np.allclose(factors_F, ours_F, rtol=1e-3),
    f'{_ROPE_FACTORS} is none of the rescalings of Llama 3, which alone are '
    'supported',
  )
  return {'rope_scaling': scaling}


def metadata_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The metadata of a model for a GGUF file; the inverse of `config_values`.

  Args:
    values: of config.json, as `config_json.from_model` gives them.
    name: of the model, for a person.

  Raises:
    ConfigError: llama.cpp has no such model.
  """
  kind = values['model_type']
  # llama.cpp has no architecture of this name: its files are those of a Llama.
  kind = 'llama' if kind == 'mistral' else kind
  by_type = {theirs: ours for ours, (theirs, _) in _ARCHITECTURES.items()}
  prefix = by_type[kind]
  metadata: dict[str, Any] = {
    'general.architecture': prefix,
    'general.name': name,
  }
  for theirs, ours in _SAME.items():
    if values.get(ours) is not None:
      metadata[f'{prefix}.{theirs}'] = values[ours]
  metadata[f'{prefix}.attention.value_length'] = values['head_dim']
  metadata[f'{prefix}.rope.dimension_count'] = values['head_dim']
  metadata[f'{prefix}.vocab_size'] = values['vocab_size']
  scaling = values.get('rope_scaling', {'rope_type': 'default'})
  if scaling['rope_type'] == 'linear':
    metadata[f'{prefix}.rope.scaling.type'] = 'linear'
    metadata[f'{prefix}.rope.scaling.factor'] = scaling['factor']
  # What no file says, and llama.cpp knows by itself.
  assumed = {name: v for name, v in values.items() if name not in _UNSAID}
  assumed['model_type'] = kind
  if kind in _GEMMA_27B:
    assumed['query_pre_attn_scalar'] = _query_scale(values)
  lost = config_json.differences(
    *(families.to_model(one, 'float32') for one in (assumed, values))
  )
  for field, ours, theirs in lost:
    raise config_lib.ConfigError(
      f'model.{field}={ours!r} is {theirs!r} in llama.cpp for such models, '
      'whatever a GGUF file says'
    )
  return metadata


def _query_scale(values: Mapping[str, Any]) -> int:
  """What llama.cpp divides the square of a Gemma's scores by."""
  width, heads = values.get('hidden_size'), values.get('num_attention_heads')
  big = values.get('num_hidden_layers') == _GEMMA_27B[values['model_type']]
  if big and isinstance(width, int) and isinstance(heads, int) and heads:
    return width // heads
  return values.get('head_dim', 256)


def rope_factors(model: config_lib.Model) -> np.ndarray | None:
  """The tensor by which llama.cpp divides frequencies; None: there is none."""
  if not model.rope_llama3_context:
    return None
  plain_F = embedding.rotary_frequencies(model.head_width, model.rope_base)
  scaled_F = embedding.rotary_frequencies(
    model.head_width,
    model.rope_base,
    llama3_context=model.rope_llama3_context,
    llama3_factors=model.rope_llama3_factors,
  )
  return plain_F / scaled_F
