"""Published encoders of pictures and sounds, as towers of a model.

ViT and SigLIP become `model.image` with its tower, the encoder of Whisper
becomes `model.audio`. What their config.json says and our fields cannot
express is refused, since it would change the outputs in silence.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.models import parameter_groups
from gemini_jax.weights import (
  families,
  importing,
  safetensors_files,
  translation,
)
from gemini_jax.weights import tensors as tensors_lib

PREPROCESSOR_FILE = 'preprocessor_config.json'
# What Whisper's features are made by.
_SAMPLE_RATE, _WINDOW, _HOP = 16_000, 0.025, 0.010
_WHISPER_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Family:
  """How a family names what is in its encoders.

  Attributes:
    kind: of the media.
    prefix: of the names of the encoder's tensors, a regular expression.
    layer: begins the names of a layer's tensors, with `{layer}`.
    modules: their name of each of our modules, in a layer and outside.
  """

  kind: Literal['image', 'audio']
  prefix: str
  layer: str
  modules: Mapping[str, str]


_VIT = {
  'stem/patch': 'embeddings.patch_embeddings.projection',
  'norm': 'layernorm',
  'attention_norm': 'layernorm_before',
  'attention/query': 'attention.attention.query',
  'attention/key': 'attention.attention.key',
  'attention/value': 'attention.attention.value',
  'attention/output': 'attention.output.dense',
  'feedforward_norm': 'layernorm_after',
  'feedforward/up': 'intermediate.dense',
  'feedforward/down': 'output.dense',
}
_SIGLIP = {
  'stem/patch': 'embeddings.patch_embedding',
  'position': 'embeddings.position_embedding',
  'norm': 'post_layernorm',
  'attention_norm': 'layer_norm1',
  'attention/query': 'self_attn.q_proj',
  'attention/key': 'self_attn.k_proj',
  'attention/value': 'self_attn.v_proj',
  'attention/output': 'self_attn.out_proj',
  'feedforward_norm': 'layer_norm2',
  'feedforward/up': 'mlp.fc1',
  'feedforward/down': 'mlp.fc2',
}
_WHISPER = {
  'stem/frames': 'conv1',
  'stem/tokens': 'conv2',
  'position': 'embed_positions',
  'norm': 'layer_norm',
  'attention_norm': 'self_attn_layer_norm',
  'attention/query': 'self_attn.q_proj',
  'attention/key': 'self_attn.k_proj',
  'attention/value': 'self_attn.v_proj',
  'attention/output': 'self_attn.out_proj',
  'feedforward_norm': 'final_layer_norm',
  'feedforward/up': 'fc1',
  'feedforward/down': 'fc2',
}
# By `model_type`.
FAMILIES = {
  'vit': Family('image', r'(vit\.)?', 'encoder.layer.{layer}.', _VIT),
  'siglip_vision_model': Family(
    'image', r'(vision_model\.)?', 'encoder.layers.{layer}.', _SIGLIP
  ),
  'whisper': Family(
    'audio', r'(model\.)?encoder\.', 'layers.{layer}.', _WHISPER
  ),
}
# Tensors of what follows the encoder, under its prefix or not.
_UNUSED = {
  'vit': r'pooler\..*|classifier\..*|embeddings\.mask_token',
  'siglip_vision_model': r'head\..*|text_model\..*|logit_(scale|bias)|'
  r'embeddings\.position_ids',
  'whisper': r'(model\.)?decoder\..*|proj_out\.weight',
}
# Of Whisper, whose keys have none.
_NO_BIAS = 'layers.{layer}.self_attn.k_proj.bias'
_POSITION = 'position/embedding'
_LAYERS = 'layers/layers/'


@dataclasses.dataclass(frozen=True)
class Tower:
  """A published encoder that is open.

  Attributes:
    path: of the folder.
    model_type: of config.json, a name in FAMILIES.
    section: of a model that has it, `model.image` or `model.audio`.
    tensors: by name, without the family's prefix.
  """

  path: pathlib.Path
  model_type: str
  section: config_lib.Image | config_lib.Audio
  tensors: Mapping[str, tensors_lib.Tensor]

  @property
  def kind(self) -> Literal['image', 'audio']:
    """Of the media that it reads."""
    return FAMILIES[self.model_type].kind

  def params(
    self, abstract: Any, on_tensor: Callable[[str], Any] = lambda name: None
  ) -> Any:
    """The parameters of models.towers.Tower.

    Args:
      abstract: their shapes, types and shardings.
      on_tensor: called with the name of each tensor once it is read.

    Raises:
      ConfigError: a tensor is missing, unknown or of a wrong shape.
    """
    entries = _entries(FAMILIES[self.model_type], abstract, self.section)
    found: dict[str, Any] = dict(self.tensors)
    for entry in entries.values():
      found |= _made(entry, found)
    translation.check_names(
      entries,
      {name: tensor.shape for name, tensor in found.items()},
      _UNUSED[self.model_type],
      str(self.path),
    )
    return importing.load(entries, found, abstract, on_tensor)


def is_tower(path: pathlib.Path) -> bool:
  """Whether a folder is one of a published encoder of media."""
  file = path / families.CONFIG_FILE
  return file.is_file() and _values(path)['model_type'] in FAMILIES


def open_tower(path: pathlib.Path) -> Tower:
  """Opens a folder of Hugging Face.

  Raises:
    ConfigError: it is damaged, or says what has no counterpart here.
  """
  values = _values(path)
  kind = values['model_type']
  make = _audio if kind == 'whisper' else _image
  try:
    section = make(values, _preprocessor(path))
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{path}: {error}') from error
  tensors = {}
  for name, tensor in safetensors_files.open_folder(path).items():
    name = re.sub(f'^{FAMILIES[kind].prefix}', '', name)
    config_lib.check(name not in tensors, f'{path}: two tensors are {name}')
    tensors[_older(name) if kind == 'vit' else name] = tensor
  return Tower(path, kind, section, tensors)


def _values(path: pathlib.Path) -> dict[str, Any]:
  """The config.json; of its encoder of pictures where it has several."""
  values = families.read(path)
  part = values.get('vision_config')
  if values['model_type'] == 'siglip' and isinstance(part, dict):
    return part | {'model_type': 'siglip_vision_model'}
  return values


def _older(name: str) -> str:
  """The name of a ViT's tensor in folders that older transformers wrote."""
  for new, old in (
    (r'^layers\.', 'encoder.layer.'),
    (r'\.attention\.q_proj\.', '.attention.attention.query.'),
    (r'\.attention\.k_proj\.', '.attention.attention.key.'),
    (r'\.attention\.v_proj\.', '.attention.attention.value.'),
    (r'\.attention\.o_proj\.', '.attention.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
  ):
    name = re.sub(new, old, name)
  return name


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
      mean is None or (isinstance(mean, list) and set(mean) == {0.5}),
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
    values[name] in known,
    f'{families.CONFIG_FILE}: {name}={values[name]!r} is not supported; '
    f'supported are {", ".join(known)}',
  )
  return known[values[name]]


@dataclasses.dataclass(frozen=True)
class _Convolution(translation.Translation):
  """A convolution's kernel, whose channels come first in theirs.

  Attributes:
    axes: of theirs, in our order.
  """

  axes: tuple[int, ...] = ()

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """Their kernel as ours."""
    return tensor.transpose(self.axes).reshape(self.ours)


def _entries(
  family: Family, abstract: Any, section: config_lib.Image | config_lib.Audio
) -> dict[str, translation.Translation]:
  """The counterpart of each parameter of a tower, by our path."""
  entries = {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
    path = jax.tree_util.keystr(key_path, simple=True, separator='/')
    module, _, name = path.rpartition('/')
    stacked = module.startswith(_LAYERS)
    theirs = family.modules.get(module.removeprefix(_LAYERS), '')
    kind = parameter_groups.kind(path)
    ours = tuple(leaf.shape[stacked:])
    fields: dict[str, Any] = {
      'name': (family.layer if stacked else '')
      + theirs
      + ('.bias' if name == 'bias' else '.weight'),
      'shape': ours,
      'ours': ours,
      'num_layers': leaf.shape[0] if stacked else None,
      'kind': kind,
      'norm_offset': 1.0 if name == 'scale' else 0.0,
    }
    make: Any = translation.Translation
    if path == 'stem/patch/kernel':
      assert isinstance(section, config_lib.Image)
      side = section.patch
      shape = (ours[1], section.channels, side, side)
      make, fields = (
        _Convolution,
        fields | {'shape': shape, 'axes': (2, 3, 1, 0)},
      )
    elif kind == 'convolution':
      taps, inputs, outputs = ours
      fields |= {'shape': (outputs, inputs, taps), 'axes': (2, 1, 0)}
      make = _Convolution
    elif kind == 'matrix':
      dims = parameter_groups.matrix_dims(path, len(leaf.shape))
      sizes = [
        int(np.prod([leaf.shape[dim] for dim in part]))
        for part in (dims.outputs, dims.inputs)
      ]
      fields['shape'] = tuple(sizes)
    elif kind == 'bias':
      fields['shape'] = (int(np.prod(ours)),)
    elif path == _POSITION and not theirs:
      fields['name'] = 'positions'
    entries[path] = make(**fields)
  return entries


class _Made:
  """What is read in the place of a tensor."""

  def __init__(self, value: np.ndarray):
    self._value = value
    self.shape = value.shape

  def read(self) -> np.ndarray:
    """The values."""
    return self._value


def _made(
  entry: translation.Translation, tensors: dict[str, Any]
) -> dict[str, _Made]:
  """Stand-ins of tensors that a family has not, or has in another form.

  Whisper's keys have no bias: it would change no attention. The positions of a
  ViT, whose class token is always at the first, become one table with it.
  """
  if entry.name == 'positions':
    names = 'embeddings.cls_token', 'embeddings.position_embeddings'
    if not all(name in tensors for name in names):
      return {}
    token, positions = (tensors.pop(name).read() for name in names)
    if token.shape != (1, 1, *entry.shape[1:]) or positions.ndim != 3:
      return {}
    table = np.array(positions[0], np.float32)
    table[0] += np.asarray(token[0, 0], np.float32)
    return {'positions': _Made(table)}
  if entry.name == _NO_BIAS:
    zeros = _Made(np.zeros(entry.shape, np.float32))
    return {name: zeros for name in entry.names() if name not in tensors}
  return {}
