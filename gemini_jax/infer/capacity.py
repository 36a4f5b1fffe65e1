"""How large a batch of rows may be: slots of the cache, and rows in memory."""

import math
import os
import pathlib

import jax

from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import processes, sharding

# Caches have at least so many slots, and a power of two of them: few sizes
# are ever compiled.
_MIN_SLOTS = 64
# Share of the free memory that rows may take: the rest is for temporaries
# and for what else runs on the machine.
_SHARE = 0.5
# More rows do not make a token cheaper, but all of them wait for the longest.
_MAX_ROWS = 256
# Copies of a row's logits, float32, that sampling holds at one time: sorted,
# their probabilities, sums of these, random numbers.
_LOGITS = 8


def slots(num_tokens: int, limit: int) -> int:
  """Slots of a cache for rows of `num_tokens`: a power of two up to `limit`."""
  return min(limit, max(_MIN_SLOTS, 1 << max(num_tokens - 1, 0).bit_length()))


def max_rows(
  config: config_lib.Config,
  num_slots: int,
  memory_length: int,
  draft: config_lib.Model | None = None,
) -> int:
  """Rows that are generated together at most, a power of two unless given.

  `generate.batch_size`, or as many as fit into the memory that is free on each
  device of the mesh in use; the parameters are there already.

  Args:
    config: its sections `model` and `generate`.
    num_slots: of the cache.
    memory_length: tokens that an encoder reads.
    draft: the model of `generate.draft`.
  """
  if config.generate.batch_size is not None:
    return config.generate.batch_size
  shards, heads = _splits(config.model)
  size = row_bytes(config, num_slots, memory_length, heads, draft)
  rows = int(_SHARE * free_memory() // size) * shards
  rows = min(max(rows, 1), _MAX_ROWS)
  return processes.smallest(1 << (rows.bit_length() - 1))


def row_bytes(
  config: config_lib.Config,
  num_slots: int,
  memory_length: int,
  heads: int = 1,
  draft: config_lib.Model | None = None,
) -> int:
  """Bytes of one row, roughly: cache, logits, and activations of a chunk.

  Args:
    config: its sections `model` and `generate`.
    num_slots: of the cache.
    memory_length: tokens that an encoder reads.
    heads: devices that share the heads of a row.
    draft: the model of `generate.draft`, whose cache is counted as well, and
      the probabilities of drafted tokens that both models have.
  """
  model = config.model
  tokens = max(min(config.generate.prefill_chunk, num_slots), memory_length)
  scores = model.num_heads * min(tokens, num_slots)
  wide = 4 * model.width + 2 * model.mlp_width
  assert model.vocab_size, 'the tokenizer sets model.vocab_size'
  temporary = _LOGITS * model.vocab_size + tokens * (wide + scores)
  total = _cache_bytes(model, num_slots, memory_length) // heads
  if draft is not None:
    # K tokens of the draft, and of the model K + 1.
    temporary += (2 * config.generate.draft_tokens + 1) * model.vocab_size
    total += _cache_bytes(draft, num_slots, 0)
  return total + 4 * temporary


def _cache_bytes(
  model: config_lib.Model, num_slots: int, memory_length: int
) -> int:
  """Bytes of the cache of one row."""
  cache = jax.eval_shape(
    lambda: gemini.init_cache(model, 1, num_slots, memory_length)
  )
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def free_memory() -> int:
  """Bytes that are free on a device of this process.

  Where the backend does not count its memory, as on a CPU, that of the host,
  divided among its devices.
  """
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return max(0, stats['bytes_limit'] - stats.get('bytes_in_use', 0))
  return _free_host_memory() // jax.local_device_count()


def _free_host_memory() -> int:
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    values = dict(line.split(':', 1) for line in lines)
    return 1024 * int(values['MemAvailable'].split()[0])
  except (OSError, KeyError, ValueError):
    # Not Linux: half of what the machine has.
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2


def _splits(model: config_lib.Model) -> tuple[int, int]:
  """Devices of the mesh in use that split the rows, and the heads of a row."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return 1, 1
  rules = dict(sharding.RULES)
  rows, heads = (
    math.prod(mesh.shape[axis] for axis in rules[name])
    for name in ('batch', 'kv_heads')
  )
  return rows, heads if model.kv_heads % heads == 0 else 1
