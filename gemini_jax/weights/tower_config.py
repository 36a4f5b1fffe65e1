"""The config.json of published encoders of media, and our sections of them.

What it says and our fields cannot express is refused, since it would change the
outputs in silence.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.weights import families

PREPROCESSOR_FILE = 'preprocessor_config.json'
# What Whisper's features are made by.
_SAMPLE_RATE, _WINDOW, _HOP = 16_000, 0.025, 0.010
_WHISPER_EPS = 1e-5


def read(path: pathlib.Path) -> dict[str, Any]:
  """The config.json; of its encoder of pictures where it has several."""
  values = families.read(path)
  part = values.get('vision_config')
  if values['model_type'] == 'siglip' and isinstance(part, dict):
    return part | {'model_type': 'siglip_vision_model'}
  return values


def section(path: pathlib.Path) -> config_lib.Image | config_lib.Audio:
  """The section of a model that has the encoder of a folder as its tower.

  Raises:
    ConfigError: it is damaged, or says what has no counterpart here.
  """
  values, preprocessor = read(path), _preprocessor(path)
  make = _audio if values['model_type'] == 'whisper' else _image
  with config_lib.reading(path):
    return make(values, preprocessor)


def _preprocessor(path: pathlib.Path) -> dict[str, Any]:
  """What preprocessor_config.json says; {} without one."""
  file = path / PREPROCESSOR_FILE
  if not file.exists():
    return {}
  try:
    values = json.loads(host.read_file(file))
  except OSError as error:
    raise config_lib.ConfigError(f'{file}: {error.strerror}') from error
  except host.MALFORMED as error:
    raise config_lib.ConfigError(f'{file} is not JSON') from error
  config_lib.check(isinstance(values, dict), f'{file} must hold an object')
  return values


def _image(
  values: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> config_lib.Image:
  is_vit = values['model_type'] == 'vit'
  defaults = {
    'hidden_size': 768,
    'intermediate_size': 3072,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'num_channels': 3,
    'image_size': 224,
    'patch_size': 16,
    'hidden_act': 'gelu' if is_vit else 'gelu_pytorch_tanh',
    'layer_norm_eps': 1e-12 if is_vit else 1e-6,
    'qkv_bias': True,
  }
  values = defaults | dict(values)
  config_lib.check(
    values['qkv_bias'] is True,
    f'{families.CONFIG_FILE}: qkv_bias={values["qkv_bias"]!r} is not supported',
  )
  for name in ('image_mean', 'image_std'):
    mean = preprocessor.get(name)
    config_lib.check(
      mean is None
      or (isinstance(mean, list) and mean == [0.5] * max(len(mean), 1)),
      f'{PREPROCESSOR_FILE}: {name}={mean!r} is not supported; pixels are '
      'brought to -1 to 1 here, as by 0.5',
    )
  size = _integer(values, 'image_size')
  return config_lib.Image(
    height=size,
    width=size,
    channels=values['num_channels'],
    patch=_integer(values, 'patch_size'),
    num_layers=_integer(values, 'num_hidden_layers'),
    tower=config_lib.Tower(
      width=_integer(values, 'hidden_size'),
      num_heads=_integer(values, 'num_attention_heads'),
      mlp_dim=_integer(values, 'intermediate_size'),
      activation=_activation(values, 'hidden_act'),
      norm_eps=values['layer_norm_eps'],
      class_token=is_vit,
    ),
  )


def _audio(
  values: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> config_lib.Audio:
  defaults = {
    'd_model': 384,
    'encoder_ffn_dim': 1536,
    'encoder_layers': 4,
    'encoder_attention_heads': 6,
    'num_mel_bins': 80,
    'max_source_positions': 1500,
    'activation_function': 'gelu',
  }
  values = defaults | dict(values)
  for name, value in (
    ('sampling_rate', _SAMPLE_RATE),
    ('n_fft', round(_WINDOW * _SAMPLE_RATE)),
    ('hop_length', round(_HOP * _SAMPLE_RATE)),
    ('feature_size', values['num_mel_bins']),
  ):
    config_lib.check(
      preprocessor.get(name, value) == value,
      f'{PREPROCESSOR_FILE}: {name}={preprocessor.get(name)!r} is not '
      f'supported; it must be {value}',
    )
  num_frames = 2 * _integer(values, 'max_source_positions')
  return config_lib.Audio(
    sample_rate=_SAMPLE_RATE,
    seconds=num_frames * _HOP,
    num_mels=_integer(values, 'num_mel_bins'),
    f_min=0.0,
    window=_WINDOW,
    hop=_HOP,
    patch=2,
    num_layers=_integer(values, 'encoder_layers'),
    tower=config_lib.Tower(
      width=_integer(values, 'd_model'),
      num_heads=_integer(values, 'encoder_attention_heads'),
      mlp_dim=_integer(values, 'encoder_ffn_dim'),
      activation=_activation(values, 'activation_function'),
      norm_eps=_WHISPER_EPS,
    ),
  )


def _integer(values: Mapping[str, Any], name: str) -> int:
  value = values[name]
  config_lib.check(
    type(value) is int and value > 0,
    f'{families.CONFIG_FILE}: {name}={value!r} must be a number above 0',
  )
  return value


def _activation(values: Mapping[str, Any], name: str) -> Any:
  known = {
    theirs: ours
    for theirs, ours in families.ACTIVATIONS.items()
    if ours != 'silu'
  }
  config_lib.check(
    isinstance(values[name], str) and values[name] in known,
    f'{families.CONFIG_FILE}: {name}={values[name]!r} is not supported; '
    f'supported are {", ".join(known)}',
  )
  return known[values[name]]
