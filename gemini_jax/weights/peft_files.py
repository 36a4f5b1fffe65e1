"""Updates of low rank as Hugging Face's PEFT keeps them in a folder.

Its names are those of the model's modules, its factors A [R, in] and
B [out, R] of each module; ours are stacked by layers and in the model's dims.
Ranks that AdaLoRA has cut are left out.
"""

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.models import parameter_groups
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import (
  lora,
  safetensors_files,
  tensors,
  translation,
  tuning,
)

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
# What a config must say, if it says it, for updates to be plain ones.
_PLAIN = {
  'peft_type': ('LORA',),
  'bias': ('none',),
  'fan_in_fan_out': (False,),
  'lora_bias': (False,),
  'use_dora': (False,),
  'use_qalora': (False,),
  'modules_to_save': (None, []),
  'trainable_token_indices': (None,),
  'layer_replication': (None, []),
  # Others are relative to a base that they have changed.
  'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),
  'alora_invocation_tokens': (None,),
  'target_parameters': (None, []),
}
_MAX_RANK, _MAX_ALPHA = 1 << 16, 3.4e38
# Of the base, in the metadata of the file of tensors.
_FINGERPRINT = 'gemini_jax.base'


def write(
  folder: pathlib.Path,
  config: config_lib.Config,
  params: Any,
  entries: Mapping[str, translation.Translation],
  fingerprint: str,
  base_name: str,
):
  """Writes a folder that PEFT puts beside the base.

  Args:
    folder: which is made.
    config: of the run that was tuned.
    params: its parameters, with the base inside.
    entries: where each matrix of the base is in the published model.
    fingerprint: of the base, by which `check_base` knows it again.
    base_name: where PEFT finds the base: a folder of Hugging Face.

  Raises:
    ConfigError: a matrix that is tuned is none that PEFT can put an update
      beside, or no update is left.
  """
  tune = config.tune
  config_lib.check(
    tune.method in ('lora', 'adalora'),
    f'tune.method={tune.method!r} has no updates of low rank, which alone PEFT '
    'files hold here; export the merged model',
  )
  modules: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  for path, leaf in _updates(params):
    config_lib.check(
      path in entries and entries[path].kind == 'matrix',
      f'{path} is no projection of the published model; export the merged '
      'model',
    )
    for name, a, b in _by_layer(leaf, entries[path]):
      # A module without a rank is as the base; PEFT has none of rank 0.
      if a.shape[0]:
        modules[name.removesuffix('.weight')] = a, b
  ranks = {name: a.shape[0] for name, (a, _) in modules.items()}
  config_lib.check(bool(ranks), 'no matrix has a rank left; there is no update')
  folder.mkdir(parents=True)
  arrays = (
    (f'{_PREFIX}{name}.lora_{letter}.weight', array)
    for name, pair in modules.items()
    for letter, array in zip('AB', pair, strict=True)
  )
  # PEFT passes over what it does not know here, and not in its config.
  metadata = {'format': 'pt', _FINGERPRINT: fingerprint}
  safetensors_files.write_file(folder / WEIGHTS, arrays, metadata)
  values = _config(tune, ranks, base_name)
  text = json.dumps(values, indent=2) + '\n'
  host.replace_file(folder / CONFIG, text.encode())


def _updates(params: Any) -> Iterator[tuple[str, lora.LowRank]]:
  flat = jax.tree_util.tree_leaves_with_path(params, is_leaf=tuning.is_weight)
  for path, leaf in flat:
    if isinstance(leaf, lora.LowRank):
      yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _by_layer(
  leaf: lora.LowRank, entry: translation.Translation
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Name, A and B of each layer; of a budget, with its gains and its scale."""
  a, b = np.asarray(leaf.a, np.float32), np.asarray(leaf.b, np.float32)
  gains = None
  if leaf.gains is not None:
    gains, b = np.asarray(leaf.gains), np.asarray(leaf.scaled_b())
  rank = a.shape[-1]
  for index, name in enumerate(entry.names()):
    at = () if entry.num_layers is None else (index,)
    a_RI, b_OR = a[at].reshape(-1, rank).T, b[at].reshape(rank, -1).T
    if gains is not None:
      kept = gains[at] != 0
      a_RI, b_OR = a_RI[kept], b_OR[:, kept]
    yield name, a_RI, b_OR


def _config(
  tune: config_lib.Tune, ranks: Mapping[str, int], base_name: str
) -> dict[str, Any]:
  """An adapter_config.json; scales of a budget are in its factors."""
  rank, alpha, patterns = tune.rank, tune.alpha, {}
  if tune.method == 'adalora':
    rank = alpha = max(ranks.values())
    patterns = {name: own for name, own in ranks.items() if own != rank}
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base_name,
    'r': rank,
    'lora_alpha': alpha,
    'use_rslora': tune.rank_stabilized and tune.method == 'lora',
    'target_modules': sorted(ranks),
    'rank_pattern': patterns,
    'alpha_pattern': patterns,
    'lora_dropout': tune.dropout,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'inference_mode': True,
    'modules_to_save': None,
  }


@dataclasses.dataclass(frozen=True)
class Adapter:
  """What a folder of PEFT holds.

  Attributes:
    tune: the section of a config by which parameters have such updates.
    own: the updates, as of `parameter_groups.own`.
    fingerprint: of the base that they were tuned from; None: not known.
    base_name: what the folder calls this base; None: nothing.
  """

  tune: config_lib.Tune
  own: Any
  fingerprint: str | None
  base_name: str | None


def read(
  folder: pathlib.Path,
  base: Any,
  entries: Mapping[str, translation.Translation],
) -> Adapter:
  """The updates in a folder of PEFT.

  Modules of a matrix that have none, or one of less rank than others, get
  zeros.

  Args:
    folder: with a config and a file of tensors.
    base: shapes of the parameters of the base.
    entries: where each of them is in the published model.

  Raises:
    ConfigError: a file is damaged, or holds what is no update of this base.
  """
  values = _read_config(folder / CONFIG)
  found = safetensors_files.open_file(folder / WEIGHTS)
  pairs = _pairs(folder / WEIGHTS, found, entries)
  rank = max(a.shape[0] for a, _ in pairs.values())
  config_lib.check(
    0 < rank <= _MAX_RANK, f'{folder / WEIGHTS} has updates of rank {rank}'
  )
  with config_lib.reading(folder / CONFIG):
    scales = {
      name: _scale(values, name, a.shape[0]) for name, (a, _) in pairs.items()
    }
  stabilized = bool(values.get('use_rslora', False))
  divisor = rank**0.5 if stabilized else float(rank)
  alpha = divisor * min(scales.values())
  if alpha <= 0 or len(set(scales.values())) > 1:
    # They are not one scale of all: they go into the factors.
    alpha = divisor
  else:
    scales = dict.fromkeys(scales, 1.0)
  chosen = {
    path: entry
    for path, entry in entries.items()
    if any(name.removesuffix('.weight') in pairs for name in entry.names())
  }
  with config_lib.reading(folder / CONFIG):
    tune = config_lib.Tune(
      method='lora',
      pattern='^(' + '|'.join(map(re.escape, sorted(chosen))) + ')$',
      rank=rank,
      alpha=alpha,
      rank_stabilized=stabilized,
      dropout=values.get('lora_dropout') or 0.0,
    )

  def fill(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not tuning.is_weight(leaf):
      return leaf
    a, b = _stacked(leaf, chosen[name], pairs, scales)
    return leaf.replace(a=a, b=b)

  whole = jax.eval_shape(lambda: tuning.wrapped(tune, base))
  own = jax.tree_util.tree_map_with_path(
    fill, parameter_groups.own(tune, whole), is_leaf=tuning.is_weight
  )
  known = [
    value if isinstance(value, str) and value else None
    for value in (
      safetensors_files.metadata(folder / WEIGHTS).get(_FINGERPRINT),
      values.get('base_model_name_or_path'),
    )
  ]
  return Adapter(tune, own, *known)


def check_base(adapter: Adapter, params: Any, source: str | None):
  """Sees that updates are of this base, as far as their folder tells.

  Args:
    adapter: the updates.
    params: of the base.
    source: the folder or file that it was imported from; None: not known.

  Raises:
    ConfigError: they were tuned from other parameters.
  """
  if adapter.fingerprint:
    found = base_lib.fingerprint(params)
    config_lib.check(
      found == adapter.fingerprint,
      f'{WEIGHTS} was tuned from other parameters (fingerprint '
      f'{adapter.fingerprint}) than those of this base ({found})',
    )
  elif adapter.base_name and source:
    name = adapter.base_name.rstrip('/').rpartition('/')[2]
    if name.lower() not in source.lower():
      logging.warning(
        'the updates were tuned from %s, and this base was imported from %s; '
        'shapes alone do not tell whether these are the same parameters',
        *(adapter.base_name, source),
      )


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(host.read_file(path))
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  except host.MALFORMED as error:
    raise config_lib.ConfigError(f'{path} is not JSON') from error
  config_lib.check(isinstance(values, dict), f'{path} must hold an object')
  with config_lib.reading(path):
    _check_config(values)
  return values


def _check_config(values: Mapping[str, Any]):
  """Sees that a config says what our updates of low rank can be.

  Raises:
    ConfigError: it asks for what they are not.
  """
  for name, accepted in _PLAIN.items():
    value = values.get(name, accepted[0] if name != 'peft_type' else None)
    config_lib.check(
      value in accepted,
      f'{name}={value!r} is not supported; accepted: '
      f'{", ".join(map(repr, accepted))}',
    )
  dropout = values.get('lora_dropout', 0.0) or 0.0
  config_lib.check(
    type(dropout) in (int, float) and 0 <= dropout < 1,
    f'lora_dropout={dropout!r} must be a share below 1',
  )
  for name in ('rank_pattern', 'alpha_pattern'):
    config_lib.check(
      isinstance(values.get(name, {}) or {}, dict), f'{name} must be an object'
    )


def _pairs(
  path: pathlib.Path,
  found: Mapping[str, tensors.Tensor],
  entries: Mapping[str, translation.Translation],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """A and B by module, each of the shape that the base's matrix asks for."""
  shapes = {
    name.removesuffix('.weight'): entry.shape
    for entry in entries.values()
    if entry.kind == 'matrix'
    for name in entry.names()
  }
  parts: dict[str, dict[str, np.ndarray]] = {}
  for name, tensor in found.items():
    match = re.fullmatch(
      rf'{re.escape(_PREFIX)}(.+)\.lora_([AB])(\.default)?\.weight', name
    )
    module = match[1] if match else ''
    config_lib.check(
      match is not None and module in shapes,
      f'{path}: tensor {tensors.quoted(name)} is no update of a projection of '
      'this base',
    )
    assert match is not None
    size = shapes[module][match[2] == 'A']
    config_lib.check(
      len(tensor.shape) == 2 and tensor.shape[match[2] == 'A'] == size,
      f'{path}: tensor {tensors.quoted(name)} has the shape '
      f'{list(tensor.shape)}, and the base {list(shapes[module])}',
    )
    parts.setdefault(module, {})[match[2]] = np.asarray(
      tensor.read(), np.float32
    )
  config_lib.check(bool(parts), f'{path} holds no tensor')
  pairs = {}
  for module, pair in parts.items():
    config_lib.check(
      set(pair) == {'A', 'B'} and pair['A'].shape[0] == pair['B'].shape[1],
      f'{path}: {module} has not two factors of one rank',
    )
    pairs[module] = pair['A'], pair['B']
  return pairs


def _scale(values: Mapping[str, Any], module: str, rank: int) -> float:
  """What PEFT multiplies the update of a module by.

  Raises:
    ConfigError: the config says another rank than the file, or no number.
  """

  def of_module(pattern: str, default: str) -> Any:
    for key, value in (values.get(pattern) or {}).items():
      # PEFT takes keys for regular expressions; ours and usual ones are names.
      if module == key or module.endswith(f'.{key}'):
        return value
    return values.get(default)

  own, alpha = (
    of_module('rank_pattern', 'r'),
    of_module('alpha_pattern', 'lora_alpha'),
  )
  config_lib.check(
    own == rank and type(own) is int,
    f'r={own!r} of {module}, whose tensors have rank {rank}',
  )
  config_lib.check(
    type(alpha) in (int, float) and abs(alpha) <= _MAX_ALPHA,
    f'lora_alpha of {module} must be a number of float32, not {alpha!r}',
  )
  return alpha / (rank**0.5 if values.get('use_rslora') else rank)


def _stacked(
  leaf: lora.LowRank,
  entry: translation.Translation,
  pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
  scales: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray]:
  """Our factors of a matrix, with the scales in them."""
  a = np.zeros(leaf.a.shape, np.float32)
  b = np.zeros(leaf.b.shape, np.float32)
  for index, name in enumerate(entry.names()):
    module = name.removesuffix('.weight')
    if module not in pairs:
      continue
    at = () if entry.num_layers is None else (index,)
    a_RI, b_OR = pairs[module]
    rank = a_RI.shape[0]
    a[at][..., :rank] = a_RI.T.reshape(*a[at].shape[:-1], rank)
    b[at][:rank] = (scales[module] * b_OR.T).reshape(rank, *b[at].shape[1:])
  return a, b
