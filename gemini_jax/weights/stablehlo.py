"""A model as compiled-ahead programs that need none of this package's models.

The folder holds two programs of StableHLO, one that reads a piece of a prompt
and one that reads a token, parameters as safetensors, and a manifest.
`exported_program` runs them.

B rows, T tokens of a piece, S slots of the cache, V vocabulary.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.layers import attention
from gemini_jax.models import gemini, transformer
from gemini_jax.weights import exported_program, safetensors_files

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
  folder: pathlib.Path,
  model: config_lib.Model,
  params: Any,
  *,
  num_rows: int,
  num_slots: int,
  piece: int = 64,
):
  """Writes programs and parameters; the folder must exist.

  Args:
    folder: where to.
    model: a decoder of text.
    params: of the model, plain arrays.
    num_rows: B, texts that are written at once.
    num_slots: S, longest text, prompt included.
    piece: T, tokens of a prompt that are read at once.

  Raises:
    ConfigError: the model reads more than the text before.
  """
  config_lib.check(
    not (model.encodes or model.kinds),
    'StableHLO is written of decoders of text alone, not of models with an '
    'encoder, a latent or media',
  )
  config_lib.check(
    0 < num_slots <= model.max_length,
    f'a cache of {num_slots} slots must be at most model.max_length='
    f'{model.max_length}',
  )
  config_lib.optional('flatbuffers', 'StableHLO needs flatbuffers', 'weights')
  piece = min(piece, num_slots)
  network = gemini.Gemini(
    dataclasses.replace(model, attention_kernel='chunked', remat=False)
  )
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
  shapes = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in flat.items()
  }
  empty = gemini.init_cache(network.config, 1, 1).self_attention.key
  cache_shape = (empty.shape[0], num_rows, empty.shape[2], num_slots)
  cache = jax.ShapeDtypeStruct((*cache_shape, empty.shape[4]), empty.dtype)
  row = jax.ShapeDtypeStruct((num_rows,), jnp.int32)
  programs, conventions = {}, set()
  for name, length in (('prefill', piece), ('decode', 1)):
    tokens = jax.ShapeDtypeStruct((num_rows, length), jnp.int32)
    exported = jax.export.export(
      jax.jit(_reader(network), donate_argnums=1), platforms=PLATFORMS
    )(shapes, {'key': cache, 'value': cache}, tokens, row, row)
    programs[name] = bytes(exported.serialize())
    conventions.add(exported.calling_convention_version)
  for name, content in programs.items():
    (folder / f'{name}{exported_program.ENDING}').write_bytes(content)
  safetensors_files.write_file(
    folder / exported_program.PARAMS,
    ((name, np.asarray(leaf)) for name, leaf in flat.items()),
  )
  manifest = {
    'format': exported_program.FORMAT,
    'jax': jax.__version__,
    'calling_convention': max(conventions),
    'platforms': PLATFORMS,
    'rows': num_rows,
    'slots': num_slots,
    'piece': piece,
    'vocab_size': model.vocab_size,
    'cache': {'shape': list(cache.shape), 'dtype': str(cache.dtype)},
    'sha256': {
      name: hashlib.sha256(content).hexdigest()
      for name, content in programs.items()
    },
  }
  text = json.dumps(manifest, indent=2)
  (folder / exported_program.MANIFEST).write_text(text)


def _reader(network: gemini.Gemini) -> Any:
  """A function that reads the next tokens of each row into the cache."""

  def read(params, cache, tokens_BT, counts_B, starts_B):
    """Logits after the last of `counts_B` tokens, float32[B, V]; the cache."""
    within_BT = jnp.arange(tokens_BT.shape[1])[None]
    is_real_BT = within_BT < counts_B[:, None]
    # Padding is sent past the cache, where nothing is written.
    num_slots = cache['key'].shape[3]
    sequence = batch_lib.Sequence(
      tokens_BT,
      jnp.where(is_real_BT, starts_B[:, None] + within_BT, num_slots),
      is_real_BT.astype(jnp.int32),
    )
    params = traverse_util.unflatten_dict(params, sep='/')
    x_BTD, new, _ = gemini.apply(
      network,
      params,
      sequence,
      cache=transformer.Cache(attention.KVCache(**cache)),
      method='decode_hidden',
    )
    last_B = jnp.maximum(counts_B - 1, 0)
    x_B1D = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
    logits_BTV = gemini.apply(network, params, x_B1D, method='logits')
    new = new.self_attention
    return logits_BTV[:, 0], {'key': new.key, 'value': new.value}

  return read
