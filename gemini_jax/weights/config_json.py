"""The config.json of a published model that computes what ours does."""

import contextlib
import dataclasses
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.weights import families


def from_model(model: config_lib.Model) -> dict[str, Any]:
  """A config.json of our model, without the tokenizer's ids.

  Raises:
    ConfigError: no family has such models.
  """
  problems = []
  for kind, family in families.FAMILIES.items():
    values = _values(kind, family, model)
    # A family without windows or without rescaled positions is not this one.
    with contextlib.suppress(config_lib.ConfigError):
      others = differences(families.to_model(values, model.dtype), model)
      if not others:
        return values
      problems.append((len(others), kind, others[0]))
  _, kind, (field, value, accepted) = min(problems)
  raise config_lib.ConfigError(
    f'model.{field}={value!r}: no supported family has such models; the '
    f'nearest, {kind}, has {accepted!r}. Supported are '
    f'{", ".join(families.FAMILIES)}'
  )


def _values(
  kind: str, family: families.Family, model: config_lib.Model
) -> dict[str, Any]:
  """The config.json of the member of a family that is most like our model."""
  whole = dataclasses.asdict(_resolved(model))
  values = {
    theirs: whole[ours] for theirs, ours in families.SAME_FIELDS.items()
  }
  name = 'hidden_activation' if 'gemma' in kind else 'hidden_act'
  theirs = {ours: theirs for theirs, ours in families.ACTIVATIONS.items()}
  values |= {
    'model_type': kind,
    'architectures': [family.architecture],
    'torch_dtype': model.param_dtype,
    name: theirs.get(model.activation, 'silu'),
  }
  pattern = model.attention_pattern
  kinds = [
    families.SLIDING if pattern[i % len(pattern)] == 'local' else families.FULL
    for i in range(model.num_layers)
  ]
  if kind not in ('llama', 'mistral'):
    values['layer_types'] = kinds
  slides = families.SLIDING in kinds
  if slides or kind == 'mistral' or 'gemma' in kind:
    values['sliding_window'] = model.window
  if kind.startswith('qwen'):
    values['use_sliding_window'] = slides
  if 'query_pre_attn_scalar' in family.defaults:
    scale = float(model.query_scale or model.head_width)
    # `transformers` takes whole numbers alone.
    whole_scale = int(scale) if scale.is_integer() else scale
    values['query_pre_attn_scalar'] = whole_scale
    values['attn_logit_softcapping'] = model.attention_softcap or None
    values['final_logit_softcapping'] = model.logit_softcap or None
  return values | _rotary_values(kind, model)


def _rotary_values(kind: str, model: config_lib.Model) -> dict[str, Any]:
  """Rotary positions in config.json, in the older and in the newer form."""
  scaling: dict[str, Any] = {'rope_type': 'default'}
  if model.rope_scale != 1:
    scaling = {'rope_type': 'linear', 'factor': model.rope_scale}
  if model.rope_llama3_context:
    factor, low, high = model.rope_llama3_factors
    scaling = {
      'rope_type': 'llama3',
      'factor': factor,
      'low_freq_factor': low,
      'high_freq_factor': high,
      'original_max_position_embeddings': model.rope_llama3_context,
    }
  values: dict[str, Any] = {'rope_theta': model.rope_base}
  values['rope_parameters'] = scaling | {'rope_theta': model.rope_base}
  if scaling['rope_type'] != 'default':
    values['rope_scaling'] = scaling
  if kind == 'gemma3_text':
    local = model.rope_base_local or model.rope_base
    values['rope_local_base_freq'] = local
    values['rope_parameters'] = {
      families.FULL: values['rope_parameters'],
      families.SLIDING: {'rope_type': 'default', 'rope_theta': local},
    }
  return values


# Fields of a model that change how it is trained or run, not its outputs.
_OF_USE = (
  *('text_vocab_size', 'dropout', 'init_scale', 'dtype', 'param_dtype'),
  *('scan_layers', 'attention_kernel', 'context_parallel', 'remat'),
  *('remat_save', 'remat_offload', 'stochastic_depth'),
)


def differences(
  theirs: config_lib.Model, ours: config_lib.Model
) -> list[tuple[str, Any, Any]]:
  """Fields by which the outputs differ: name, our value, their value."""
  theirs, ours = _resolved(theirs), _resolved(ours)
  return [
    (field.name, getattr(ours, field.name), getattr(theirs, field.name))
    for field in dataclasses.fields(ours)
    if field.name not in _OF_USE
    and getattr(ours, field.name) != getattr(theirs, field.name)
  ]


def _resolved(model: config_lib.Model) -> config_lib.Model:
  """The same model with every default of one field by another filled in."""
  layers = model.num_layers
  pattern = model.attention_pattern
  kinds = [pattern[i % len(pattern)] for i in range(layers)]
  period = families.period_of(kinds)
  return dataclasses.replace(
    model,
    num_kv_heads=model.kv_heads,
    head_dim=model.head_width,
    mlp_dim=model.mlp_width,
    query_scale=float(model.query_scale or model.head_width),
    attention_pattern=tuple(kinds[:period]),
    window=model.window if 'local' in kinds else 1,
    rope_base_local=(model.rope_base_local or model.rope_base)
    if 'local' in kinds
    else None,
    rope_llama3_factors=model.rope_llama3_factors
    if model.rope_llama3_context
    else (8.0, 1.0, 4.0),
    num_encoder_layers=None,
  )
