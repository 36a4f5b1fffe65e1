"""Decoding in floats, int8 and int4, beside llama.cpp and transformers.

B rows.
"""

import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import numpy as np
from flax.core import meta

from gemini_jax import config as config_lib
from gemini_jax.commands import decode_worker, peer, timing
from gemini_jax.compress import layers
from gemini_jax.infer import decoding, sampling
from gemini_jax.models import build, gemini
from gemini_jax.weights import native_products

# int4 as `compress.weights`: groups of 128, tables in int8.
KINDS = ('float32', 'bfloat16', 'int8', 'int4')
BATCH_SIZES = (1, 8)
# Of the cache; a row of a chat has about as many.
_SLOTS = 256
_TOKENS = decode_worker.TOKENS
_GREEDY = sampling.Sampler(temperature=0.0)


def bench_decode(
  config: config_lib.Config, paths: peer.Paths
) -> dict[str, Any]:
  """Tokens a second of all rows, and the share of a copy's bandwidth.

  The weights are random, on one device. All variants and peers take turns.
  """
  config = build.with_vocab(config, 1)
  config_lib.check(
    config.model.max_length > _TOKENS and not config.model.cross,
    f'model.max_length={config.model.max_length} must be above {_TOKENS}, and '
    'the model a decoder, for --what=decode',
  )
  ours = {
    f'{kind}, batch {num_rows}': Decode(model, params, num_rows)
    for kind, (model, params) in variants(config).items()
    for num_rows in BATCH_SIZES
  }
  peers = {
    f'{library}, batch {num_rows}': peer.Peer(
      'decode_worker',
      [library, path, f'{num_rows}', f'{os.cpu_count()}'],
      f'{library} did not decode with {path}; is it installed?',
    )
    for library in decode_worker.LIBRARIES
    if (path := paths.gguf if library == 'llama.cpp' else paths.huggingface)
    for num_rows in BATCH_SIZES
  }
  try:
    medians = timing.turns(
      {name: timed.times for name, timed in (ours | peers).items()}
    )
  finally:
    for other in peers.values():
      other.close()
  result: dict[str, Any] = {
    'what': 'decode',
    'device': jax.devices()[0].device_kind,
    **timing.ceilings(config),
  }
  for name, seconds in medians.items():
    num_bytes = ours[name].num_bytes if name in ours else 0
    result[name] = report(
      name, seconds, num_bytes, result['copy_bytes_per_second']
    )
  return result


def report(
  name: str, seconds: list[float], num_bytes: int, copy_rate: float
) -> dict[str, float]:
  """What a variant or a peer took, which is also printed.

  Args:
    name: ends with the number of rows.
    seconds: of _TOKENS steps, in each round.
    num_bytes: that a step reads; 0: unknown.
    copy_rate: bytes a second of a copy.
  """
  num_tokens = int(name.split()[-1]) * _TOKENS
  median = statistics.median(seconds)
  found = {
    'tokens_per_second': num_tokens / median,
    'step_seconds': median / _TOKENS,
  }
  line = (
    f'{name}: median {num_tokens / median:.1f} tokens/s, rounds '
    f'{num_tokens / max(seconds):.1f} to {num_tokens / min(seconds):.1f}'
  )
  if num_bytes:
    rate = num_bytes * _TOKENS / median
    found |= {'bytes_per_second': rate, 'copy_share': rate / copy_rate}
    line += f', {rate / 1e9:.2f} GB/s, {rate / copy_rate:.0%} of a copy'
  print(line)
  return found


def variants(
  config: config_lib.Config,
) -> dict[str, tuple[gemini.Gemini, Any]]:
  """The model and its parameters in each of KINDS."""
  found = {}
  init = lambda model: meta.unbox(gemini.init_params(model, jax.random.key(0)))
  for kind in KINDS:
    dtype = 'float32' if kind.startswith('int') else kind
    fields = dataclasses.replace(config.model, dtype=dtype, param_dtype=dtype)
    model = gemini.Gemini(fields)
    params = jax.jit(init, static_argnums=0)(model)
    if kind in ('int8', 'int4'):
      rounded = config_lib.Compress(method='round', weights=kind)
      params = layers.compress(rounded, model, params, [])
    found[kind] = (model, native_products.with_kernel(params, 'auto'))
  return found


class Decode:
  """Our decoding of a batch, _TOKENS tokens at a time.

  Attributes:
    num_bytes: of the weights and the cache, which a step reads.
  """

  def __init__(self, model: gemini.Gemini, params: Any, num_rows: int):
    slots = min(_SLOTS, model.config.max_length)
    self._params = params
    self._decoder = decoding.Decoder(
      model,
      num_rows,
      pad_id=0,
      # No token has this id, so no row ends early.
      eos_id=-1,
      num_slots=slots,
    )
    self._state: Any = None
    self._left = 0
    cache = jax.eval_shape(self._decoder.empty_cache)
    self.num_bytes = sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves((params, cache))
    )

  def times(self, count: int) -> list[float]:
    """Seconds of each of `count` runs."""
    seconds = []
    for _ in range(count):
      if self._left < _TOKENS:
        self._left = self._decoder.length - 1
        prompts = [np.array([1])] * self._decoder.batch_size
        self._state = self._decoder.start(
          self._params, prompts, max_tokens=self._left
        )
        jax.block_until_ready(self._state)
      begin = time.perf_counter()
      self._state = self._decoder.decode(
        self._params, self._state, _GREEDY, _TOKENS
      )
      jax.block_until_ready(self._state)
      seconds.append(time.perf_counter() - begin)
      self._left -= _TOKENS
    return seconds
