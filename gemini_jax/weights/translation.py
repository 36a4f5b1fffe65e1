"""Where each of our parameters is in a published model, and in which shape.

Hugging Face stores a projection as [out, in], one tensor a layer; we as
[layers, *in, *out]. GGUF files hold the same tensors under other names.

D width, N heads, H head width, L layers.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups

Format = Literal['huggingface', 'gguf']

# Ours, in a layer of the decoder: the module's name in each format.
_LAYER: dict[str, dict[Format, str]] = {
  'attention/query': {'huggingface': 'self_attn.q_proj', 'gguf': 'attn_q'},
  'attention/key': {'huggingface': 'self_attn.k_proj', 'gguf': 'attn_k'},
  'attention/value': {'huggingface': 'self_attn.v_proj', 'gguf': 'attn_v'},
  'attention/output': {
    'huggingface': 'self_attn.o_proj',
    'gguf': 'attn_output',
  },
  'attention/query_norm': {
    'huggingface': 'self_attn.q_norm',
    'gguf': 'attn_q_norm',
  },
  'attention/key_norm': {
    'huggingface': 'self_attn.k_norm',
    'gguf': 'attn_k_norm',
  },
  'feedforward/gate': {'huggingface': 'mlp.gate_proj', 'gguf': 'ffn_gate'},
  'feedforward/up': {'huggingface': 'mlp.up_proj', 'gguf': 'ffn_up'},
  'feedforward/down': {'huggingface': 'mlp.down_proj', 'gguf': 'ffn_down'},
  'attention_norm': {'huggingface': 'input_layernorm', 'gguf': 'attn_norm'},
}
_PRE_NORMS: dict[str, dict[Format, str]] = {
  'feedforward_norm': {
    'huggingface': 'post_attention_layernorm',
    'gguf': 'ffn_norm',
  },
}
_PRE_POST_NORMS: dict[str, dict[Format, str]] = {
  'attention_post_norm': {
    'huggingface': 'post_attention_layernorm',
    'gguf': 'post_attention_norm',
  },
  'feedforward_norm': {
    'huggingface': 'pre_feedforward_layernorm',
    'gguf': 'ffn_norm',
  },
  'feedforward_post_norm': {
    'huggingface': 'post_feedforward_layernorm',
    'gguf': 'post_ffw_norm',
  },
}
_OUTSIDE: dict[str, dict[Format, str]] = {
  'token': {'huggingface': 'model.embed_tokens', 'gguf': 'token_embd'},
  'decoder_norm': {'huggingface': 'model.norm', 'gguf': 'output_norm'},
  'head': {'huggingface': 'lm_head', 'gguf': 'output'},
}
_LAYER_PREFIX: dict[Format, str] = {
  'huggingface': 'model.layers.{layer}.',
  'gguf': 'blk.{layer}.',
}
_STACK = 'decoder/layers/'


@dataclasses.dataclass(frozen=True)
class Translation:
  """One of our parameters as a published model has it.

  Attributes:
    name: of their tensor, with `{layer}` where there is one for each layer.
    shape: of one of their tensors.
    ours: the shape of our parameter, without the layers.
    num_layers: how many of theirs make one of ours; None: it is one.
    kind: of the parameter, of parameter_groups.KINDS.
    norm_offset: what is added to our scale of a norm to get theirs.
    rotary_heads: heads whose rotated pairs lie beside each other there, not H /
      2 apart; 0: none.
  """

  name: str
  shape: tuple[int, ...]
  ours: tuple[int, ...]
  num_layers: int | None
  kind: str
  norm_offset: float
  rotary_heads: int = 0

  def names(self) -> list[str]:
    """Names of all of their tensors, in the order of the layers."""
    if self.num_layers is None:
      return [self.name]
    return [self.name.format(layer=i) for i in range(self.num_layers)]

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """One of their tensors as a layer of our parameter."""
    if self.kind == 'norm':
      return tensor.astype(np.float32) - np.float32(self.norm_offset)
    if self.rotary_heads:
      tensor = halves_of_pairs(tensor, self.rotary_heads)
    if self.kind == 'matrix':
      tensor = tensor.T
    return tensor.reshape(self.ours)

  def to_theirs(self, layer: np.ndarray) -> np.ndarray:
    """A layer of our parameter as their tensor; the inverse of `to_ours`."""
    if self.kind == 'norm':
      return layer.astype(np.float32) + np.float32(self.norm_offset)
    if self.kind == 'matrix':
      layer = layer.reshape(self.shape[::-1]).T
    layer = layer.reshape(self.shape)
    if self.rotary_heads:
      layer = pairs_of_halves(layer, self.rotary_heads)
    return layer


def halves_of_pairs(tensor: np.ndarray, num_heads: int) -> np.ndarray:
  """Rows (2i, 2i + 1) of every head moved to (i, i + H/2).

  llama.cpp rotates neighbours, and permutes the rows of a Llama's queries and
  keys for that.
  """
  pairs = tensor.reshape(num_heads, -1, 2, *tensor.shape[1:])
  return pairs.swapaxes(1, 2).reshape(tensor.shape)


def pairs_of_halves(tensor: np.ndarray, num_heads: int) -> np.ndarray:
  """The inverse of `halves_of_pairs`."""
  halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
  return halves.swapaxes(1, 2).reshape(tensor.shape)


def translations(
  model: config_lib.Model,
  params: Any,
  format: Format,
  *,
  norm_offset: float,
  permutes: bool = False,
) -> dict[str, Translation]:
  """The counterpart of each of our parameters, by our path.

  Args:
    model: ours.
    params: shapes of its parameters.
    format: whose names are used.
    norm_offset: of the family in that format.
    permutes: whether rotated pairs lie beside each other there.

  Raises:
    ConfigError: a parameter has no counterpart.
  """
  norms = _PRE_POST_NORMS if model.norm == 'pre_post' else _PRE_NORMS
  layer = _LAYER | norms
  heads = {'query': model.num_heads, 'key': model.kv_heads}
  entries = {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    path = jax.tree_util.keystr(key_path, simple=True, separator='/')
    module, _, name = path.rpartition('/')
    stacked = module.startswith(_STACK)
    source = (layer if stacked else _OUTSIDE).get(module.removeprefix(_STACK))
    config_lib.check(
      source is not None, f'{path} has no counterpart in a published model'
    )
    assert source is not None
    kind = parameter_groups.kind(path)
    ours = tuple(leaf.shape[stacked:])
    shape = ours
    if kind == 'matrix':
      dims = parameter_groups.matrix_dims(path, len(leaf.shape))
      product = lambda axes, leaf=leaf: int(
        np.prod([leaf.shape[a] for a in axes])
      )
      shape = (product(dims.outputs), product(dims.inputs))
    elif kind == 'bias':
      shape = (int(np.prod(ours)),)
    part = module.rpartition('/')[2]
    entries[path] = Translation(
      name=(_LAYER_PREFIX[format] if stacked else '')
      + source[format]
      + ('.bias' if name == 'bias' else '.weight'),
      shape=shape,
      ours=ours,
      num_layers=leaf.shape[0] if stacked else None,
      kind=kind,
      norm_offset=norm_offset,
      rotary_heads=heads.get(part, 0) if permutes else 0,
    )
  return entries


def check_names(
  entries: Mapping[str, Translation],
  shapes: Mapping[str, tuple[int, ...]],
  ignored: str,
  where: str,
):
  """Sees that a model has every tensor that is wanted, and no other.

  Args:
    entries: what is wanted.
    shapes: of the tensors that are there.
    ignored: a regular expression; tensors with such names need not be read.
    where: the file, for messages.

  Raises:
    ConfigError: a tensor is missing, has another shape, or is unknown.
  """
  wanted = {
    name: entry.shape for entry in entries.values() for name in entry.names()
  }
  missing = [name for name in wanted if name not in shapes]
  config_lib.check(
    not missing,
    f'{where}: {len(missing)} tensors are missing: {_first(missing)}',
  )
  for name, shape in wanted.items():
    config_lib.check(
      shapes[name] == shape,
      f'{where}: {name} has the shape {list(shapes[name])} and should have '
      f'{list(shape)}',
    )
  unknown = [
    name
    for name in shapes
    if name not in wanted and not re.fullmatch(ignored, name)
  ]
  config_lib.check(
    not unknown,
    f'{where}: {len(unknown)} tensors have no place in this model: '
    f'{_first(unknown)}',
  )


def _first(names: Sequence[str]) -> str:
  """Up to five names, for messages."""
  shown = ', '.join(f'{name!r:.200}' for name in names[:5])
  return f'{shown}, ...' if len(names) > 5 else shown
