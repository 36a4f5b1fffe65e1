"""Published encoders of pictures and sounds, as towers of a model.

ViT and SigLIP become `model.image` with its tower, the encoder of Whisper
becomes `model.audio`; see tower_config.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups
from gemini_jax.weights import (
  families,
  importing,
  safetensors_files,
  tower_config,
  translation,
)
from gemini_jax.weights import tensors as tensors_lib


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
  return file.is_file() and tower_config.read(path)['model_type'] in FAMILIES


def open_tower(path: pathlib.Path) -> Tower:
  """Opens a folder of Hugging Face.

  Raises:
    ConfigError: it is damaged, or says what has no counterpart here.
  """
  kind, section = (
    tower_config.read(path)['model_type'],
    tower_config.section(path),
  )
  tensors = {}
  for name, tensor in safetensors_files.open_folder(path).items():
    name = re.sub(f'^{FAMILIES[kind].prefix}', '', name)
    config_lib.check(name not in tensors, f'{path}: two tensors are {name}')
    tensors[_older(name) if kind == 'vit' else name] = tensor
  return Tower(path, kind, section, tensors)


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
