"""Families of published models: their config.json and ours.

A family's models are values of `config.model`. What config.json says and our
fields cannot express is refused, since it would change the outputs in silence.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host

CONFIG_FILE = 'config.json'
_MAX_BYTES = 1 << 24
SLIDING, FULL = 'sliding_attention', 'full_attention'


@dataclasses.dataclass(frozen=True)
class Family:
  """What all models of a family have in common.

  Attributes:
    architecture: the class in `transformers`.
    defaults: values that config.json may leave out.
    fields: of our model.
    norm_offset: what is added to our scale of a norm to get theirs.
    must: values that config.json may not change.
  """

  architecture: str
  defaults: Mapping[str, Any]
  fields: Mapping[str, Any]
  norm_offset: float
  must: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


# Those of the classes in `transformers`. A config.json of theirs may leave out
# what equals them.
_LLAMA_DEFAULTS = {
  'vocab_size': 32_000,
  'hidden_size': 4096,
  'intermediate_size': 11_008,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'max_position_embeddings': 2048,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'rope_theta': 10_000.0,
}
_MISTRAL_DEFAULTS = _LLAMA_DEFAULTS | {
  'intermediate_size': 14_336,
  'num_key_value_heads': 8,
  'max_position_embeddings': 131_072,
  'sliding_window': 4096,
}
_QWEN_DEFAULTS = _LLAMA_DEFAULTS | {
  'vocab_size': 151_936,
  'intermediate_size': 22_016,
  'num_key_value_heads': 32,
  'max_position_embeddings': 32_768,
  'sliding_window': 4096,
  'max_window_layers': 28,
}
_GEMMA_DEFAULTS = {
  'vocab_size': 256_000,
  'hidden_size': 2304,
  'intermediate_size': 9216,
  'num_hidden_layers': 26,
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'head_dim': 256,
  'max_position_embeddings': 8192,
  'hidden_activation': 'gelu_pytorch_tanh',
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
  'rope_theta': 10_000.0,
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
}
_GEMMA3_DEFAULTS = _GEMMA_DEFAULTS | {
  'vocab_size': 262_208,
  'max_position_embeddings': 131_072,
  'rope_theta': 1_000_000.0,
  'rope_local_base_freq': 10_000.0,
}
_GEMMA_FIELDS = {'norm': 'pre_post', 'scale_embeddings': True}
_NO_BIAS = {'attention_bias': (False, None)}

# By `model_type`.
FAMILIES = {
  'llama': Family('LlamaForCausalLM', _LLAMA_DEFAULTS, {}, 1.0, _NO_BIAS),
  'mistral': Family('MistralForCausalLM', _MISTRAL_DEFAULTS, {}, 1.0),
  'qwen2': Family(
    'Qwen2ForCausalLM', _QWEN_DEFAULTS, {'attention_bias': True}, 1.0
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    _QWEN_DEFAULTS | {'head_dim': 128},
    {'qk_norm': True},
    1.0,
    _NO_BIAS,
  ),
  'gemma2': Family(
    'Gemma2ForCausalLM',
    _GEMMA_DEFAULTS
    | {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
    _GEMMA_FIELDS,
    0.0,
    _NO_BIAS,
  ),
  'gemma3_text': Family(
    'Gemma3ForCausalLM',
    _GEMMA3_DEFAULTS,
    _GEMMA_FIELDS | {'qk_norm': True},
    0.0,
    _NO_BIAS | {'use_bidirectional_attention': (False, None)},
  ),
}
ACTIVATIONS = {
  'silu': 'silu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
}
# Fields of config.json and of our model that mean the same.
SAME_FIELDS = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'width',
  'intermediate_size': 'mlp_dim',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'num_key_value_heads': 'num_kv_heads',
  'head_dim': 'head_dim',
  'max_position_embeddings': 'max_length',
  'rms_norm_eps': 'norm_eps',
  'tie_word_embeddings': 'tie_embeddings',
  'mlp_bias': 'mlp_bias',
}
_REQUIRED = (
  *('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers'),
  *('num_attention_heads', 'max_position_embeddings'),
)


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The config.json of a folder; of its text model where it has several.

  Raises:
    ConfigError: it cannot be read or is no config of a model.
  """
  path = folder / CONFIG_FILE
  try:
    values = json.loads(host.read_file(path, _MAX_BYTES))
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  except host.MALFORMED as error:
    raise config_lib.ConfigError(f'{path} is not JSON') from error
  config_lib.check(
    isinstance(values, dict) and isinstance(values.get('model_type'), str),
    f'{path} must hold an object with the model_type',
  )
  if values['model_type'] == 'gemma3' and isinstance(
    values.get('text_config'), dict
  ):
    return values['text_config'] | {'model_type': 'gemma3_text'}
  return values


def family_of(values: Mapping[str, Any]) -> Family:
  """The family of a config.json.

  Raises:
    ConfigError: it is none of those supported.
  """
  kind = values['model_type']
  config_lib.check(
    kind in FAMILIES,
    f'{CONFIG_FILE}: model_type={kind!r} is not supported; supported are '
    f'{", ".join(FAMILIES)}, and as encoders of media vit, siglip and whisper',
  )
  return FAMILIES[kind]


def to_model(values: Mapping[str, Any], dtype: str) -> config_lib.Model:
  """Our model of a config.json.

  Args:
    values: of config.json.
    dtype: of the parameters and of the computation.

  Raises:
    ConfigError: a value is missing, is wrong, or has no counterpart here.
  """
  family = family_of(values)
  # A null that is written is no default: it turns something off.
  values = {
    name: value
    for name, value in (dict(family.defaults) | dict(values)).items()
    if value is not None
  }
  for name in _REQUIRED:
    config_lib.check(name in values, f'{CONFIG_FILE}: {name} is missing')
  for name, accepted in family.must.items():
    config_lib.check(
      values.get(name) in accepted,
      f'{CONFIG_FILE}: {name}={values.get(name)!r} is not supported',
    )
  config_lib.check(
    'quantization_config' not in values,
    f'{CONFIG_FILE}: quantization_config: quantised safetensors are not '
    'supported; use the folder of the original model, or a GGUF file',
  )
  fields: dict[str, Any] = {
    ours: values[theirs]
    for theirs, ours in SAME_FIELDS.items()
    if theirs in values
  }
  activation = values.get('hidden_activation', values.get('hidden_act'))
  config_lib.check(
    isinstance(activation, str) and activation in ACTIVATIONS,
    f'{CONFIG_FILE}: hidden_act={activation!r} is not supported; supported are '
    f'{", ".join(ACTIVATIONS)}',
  )
  fields['activation'] = ACTIVATIONS[str(activation)]
  fields |= _attention(values) | _rotary(values)
  config_lib.check(
    'local' not in fields['attention_pattern']
    or values['model_type'] == 'gemma3_text'
    or not {'rope_scale', 'rope_llama3_context'} & fields.keys(),
    f'{CONFIG_FILE}: rope_scaling of layers with a sliding window is not '
    'supported',
  )
  if 'query_pre_attn_scalar' in values:
    fields['query_scale'] = _number(values, 'query_pre_attn_scalar')
  for theirs, ours in (
    ('attn_logit_softcapping', 'attention_softcap'),
    ('final_logit_softcapping', 'logit_softcap'),
  ):
    fields[ours] = _number(values, theirs) if theirs in values else 0.0
  fields |= dict(family.fields)
  fields |= {'dtype': dtype, 'param_dtype': dtype}
  try:
    return config_lib.Model(**fields)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{CONFIG_FILE}: {error}') from error


def period_of(kinds: list[str]) -> int:
  """The length of the pattern that the kinds repeat."""
  return next(
    p
    for p in range(1, len(kinds) + 1)
    if all(kinds[i] == kinds[i % p] for i in range(len(kinds)))
  )


def _attention(values: Mapping[str, Any]) -> dict[str, Any]:
  """Which layers see a window alone, and how wide it is."""
  num_layers = values['num_hidden_layers']
  config_lib.check(
    isinstance(num_layers, int) and 0 < num_layers <= 10_000,
    f'{CONFIG_FILE}: num_hidden_layers={num_layers!r} must be a number of '
    'layers',
  )
  kinds = values.get('layer_types')
  if kinds is None:
    kinds = _layer_types(values, num_layers)
  names = {SLIDING: 'local', FULL: 'global'}
  config_lib.check(
    isinstance(kinds, list)
    and len(kinds) == num_layers
    and all(isinstance(kind, str) and kind in names for kind in kinds),
    f'{CONFIG_FILE}: layer_types must be {num_layers} of {", ".join(names)}',
  )
  pattern = kinds[: period_of(kinds)]
  fields: dict[str, Any] = {
    'attention_pattern': tuple(names[kind] for kind in pattern)
  }
  if SLIDING in kinds:
    fields['window'] = values.get('sliding_window')
  return fields


def _layer_types(values: Mapping[str, Any], num_layers: int) -> list[str]:
  """The kinds of layers where they are not listed."""
  kind = values['model_type']
  if kind == 'gemma2':
    period = 2
  elif kind == 'gemma3_text':
    period = values.get(
      'sliding_window_pattern', values.get('_sliding_window_pattern', 6)
    )
    config_lib.check(
      isinstance(period, int) and period > 0,
      f'{CONFIG_FILE}: sliding_window_pattern={period!r} must be above 0',
    )
  elif kind == 'mistral':
    return [SLIDING if values.get('sliding_window') else FULL] * num_layers
  else:
    first = values.get('max_window_layers', num_layers)
    slides = values.get('use_sliding_window') and values.get('sliding_window')
    config_lib.check(
      isinstance(first, int),
      f'{CONFIG_FILE}: max_window_layers={first!r} must be a number of layers',
    )
    return [
      SLIDING if slides and i >= first else FULL for i in range(num_layers)
    ]
  return [FULL if (i + 1) % period == 0 else SLIDING for i in range(num_layers)]


def _rotary(values: Mapping[str, Any]) -> dict[str, Any]:
  """Rotary bases and their scaling, as older and newer files say them."""
  by_layer = _object(values, 'rope_parameters')
  plain = _object(values, 'rope_scaling')
  whole = _object(by_layer, FULL) if FULL in by_layer else by_layer
  sliding = _object(by_layer, SLIDING)
  for one in (values, plain, whole, sliding):
    rotated = one.get('partial_rotary_factor')
    config_lib.check(
      rotated in (1, None),
      f'{CONFIG_FILE}: partial_rotary_factor={rotated!r} is not supported: all '
      'of a head is rotated here',
    )
  scaling = whole or plain
  fields: dict[str, Any] = {
    'rope_base': scaling.get('rope_theta', values.get('rope_theta'))
  }
  if values['model_type'] == 'gemma3_text':
    fields['rope_base_local'] = sliding.get(
      'rope_theta', values.get('rope_local_base_freq')
    )
  kind = scaling.get('rope_type', scaling.get('type', 'default'))
  factor = scaling.get('factor')
  if kind == 'linear':
    fields['rope_scale'] = factor
  elif kind == 'llama3':
    fields['rope_llama3_context'] = scaling.get(
      'original_max_position_embeddings'
    )
    low, high = (scaling.get(f'{name}_freq_factor') for name in ('low', 'high'))
    fields['rope_llama3_factors'] = (factor, low, high)
  else:
    config_lib.check(
      kind == 'default',
      f'{CONFIG_FILE}: rope_type={kind!r} is not supported; supported are '
      'default, linear, llama3',
    )
  return fields


def _object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
  value = values.get(name)
  config_lib.check(
    value is None or isinstance(value, dict),
    f'{CONFIG_FILE}: {name} must be an object',
  )
  return value or {}


def _number(values: Mapping[str, Any], name: str) -> float:
  value = values[name]
  config_lib.check(
    isinstance(value, (int, float)) and not isinstance(value, bool),
    f'{CONFIG_FILE}: {name}={value!r} must be a number',
  )
  return value
