"""Grouped-query attention with a cache of keys and values.

B batch, T query length, S key length, D width, N heads, K key/value heads,
H head width, L layers.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemini_jax.kernels import (
  chunked_attention,
  context_parallel,
  dot_product_attention,
  masking,
  partial_attention,
)
from gemini_jax.layers import embedding, hooks, linear
from gemini_jax.parallel import sharding


@flax.struct.dataclass
class KVCache:
  """Keys and values of all layers of a stack, one slot for each position.

  Every leaf is [L, B, K, S, H]: row b of a batch is `leaf[:, b]`, its slot s is
  `leaf[:, b, :, s]`. Slots come after heads because attention multiplies
  [S, H] matrices, one for each row and head: read in any other order, a layer's
  keys would be copied for each token. A stack carries the whole cache from
  layer to layer and writes single slots into it, so a donated cache is updated
  in place.

  Attributes:
    key: after the norm and the rotation, in the type of the computation.
    value: like key.
  """

  key: jax.Array
  value: jax.Array

  @classmethod
  def zeros(
    cls,
    num_layers: int,
    num_rows: int,
    num_slots: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jax.typing.DTypeLike,
  ) -> 'KVCache':
    """An empty cache."""
    shape = (num_layers, num_rows, num_kv_heads, num_slots, head_dim)
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  @property
  def num_slots(self) -> int:
    """S."""
    return self.key.shape[3]

  def write(
    self,
    layer: int | jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    positions_BT: jax.Array,
  ) -> 'KVCache':
    """The cache with T new entries a row in one layer, at `positions_BT`.

    Positions outside the cache are dropped, so padding can be sent there.
    """
    return KVCache(
      _set_slots(self.key, k_BTKH.astype(self.key.dtype), layer, positions_BT),
      _set_slots(
        self.value, v_BTKH.astype(self.value.dtype), layer, positions_BT
      ),
    )

  def read(self, layer: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of one layer, [B, S, K, H] each.

    Attention transposes them back, which XLA makes nothing of.
    """
    k_BKSH, v_BKSH = (
      jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
      for leaf in (self.key, self.value)
    )
    return k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2)


def _scatter_slots(buffer, new_BTKH, layer, positions_BT):
  rows_B1 = jnp.arange(new_BTKH.shape[0])[:, None]
  slots = buffer.at[layer, rows_B1, :, positions_BT]
  return slots.set(new_BTKH, mode='drop')


@jax.custom_jvp
def _set_slots(buffer, new_BTKH, layer, positions_BT):
  """`buffer` with new entries of one layer, written in place.

  XLA of jax 0.10 for CPUs scatters bfloat16 by way of a float32 copy of the
  whole buffer, so there the bits are written. Later ones scatter bfloat16 as it
  is, and would copy the buffer for its bits.
  """
  if jax.__version_info__ >= (0, 11):
    return _scatter_slots(buffer, new_BTKH, layer, positions_BT)
  bits = jnp.dtype(f'uint{8 * buffer.dtype.itemsize}')
  written = _scatter_slots(
    jax.lax.bitcast_convert_type(buffer, bits),
    jax.lax.bitcast_convert_type(new_BTKH, bits),
    layer,
    positions_BT,
  )
  return jax.lax.bitcast_convert_type(written, buffer.dtype)


@_set_slots.defjvp
def _set_slots_jvp(primals, tangents):
  buffer, new_BTKH, *where = primals
  scatter = lambda buffer, new_BTKH: _scatter_slots(buffer, new_BTKH, *where)
  _, tangent = jax.jvp(scatter, (buffer, new_BTKH), tangents[:2])
  return _set_slots(*primals), tangent


# Logical names of the dims of every leaf of a KVCache, for its sharding.
CACHE_AXES = ('layers', 'batch', 'kv_heads', None, None)


class Attention(nn.Module):
  """Grouped-query attention (Ainslie et al. 2023), self or cross.

  Queries attend where `mask` allows. With a cache, self-attention writes the
  new keys and values at `positions_BT` and reads the whole cache; cross-
  attention reads a cache that `MemoryKeys` has filled.

  Attributes:
    num_heads: N.
    num_kv_heads: K, divides N.
    head_dim: H.
    scale: multiplies the scores.
    softcap: tanh cap of the scores; 0: off.
    qk_norm: RMS norm of queries and keys over H.
    use_bias: biases of the query, key and value projections.
    output_bias: a bias of the projection of the output.
    norm_eps: of qk_norm.
    dtype: of the computation.
    param_dtype: of the parameters.
    init_scale: of the initial kernels; None: 1 / sqrt(fan in).
    kernel: a name in dot_product_attention.IMPLEMENTATIONS.
    context_parallel: how keys cross the sequence axis: all_gather or ring.
    num_memory: number of keys and values made from `latent_BZ`.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  scale: float
  softcap: float = 0.0
  qk_norm: bool = False
  use_bias: bool = False
  output_bias: bool = False
  norm_eps: float = 1e-6
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float | None = None
  kernel: str = 'chunked'
  context_parallel: str = 'all_gather'
  num_memory: int = 1

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    mask: masking.Mask,
    *,
    angles: tuple[jax.Array, jax.Array] | None = None,
    memory_BSD: jax.Array | None = None,
    cache: KVCache | None = None,
    layer: int | jax.Array = 0,
    positions_BT: jax.Array | None = None,
    cross: bool = False,
    latent_BZ: jax.Array | None = None,
  ) -> tuple[jax.Array, KVCache | None]:
    """The attended values, [B, T, D], and the cache after this call.

    `layer` is this layer's index in the cache.
    Every query also attends to keys made from `latent_BZ`, if it is given,
    whatever the mask (Optimus, Li et al. 2020, "memory").
    """
    x_BTD = hooks.point(self, 'input', x_BTD)
    q_BTNH = self.project('query', x_BTD, self.num_heads, 'heads')
    plain_q_BTNH = hooks.point(self, 'query', self.norm('query_norm', q_BTNH))
    q_BTNH = rotated(plain_q_BTNH, angles)
    if cross and cache is not None:
      k_BSKH, v_BSKH = cache.read(layer)
    else:
      source_BSD = memory_BSD if cross else x_BTD
      assert source_BSD is not None, 'cross-attention needs memory or a cache'
      k_BSKH, v_BSKH = self.keys_values(source_BSD, angles)
    if cache is not None and not cross:
      assert positions_BT is not None, 'a cache is written at positions'
      cache = cache.write(layer, k_BSKH, v_BSKH, positions_BT)
      k_BSKH, v_BSKH = cache.read(layer)
    out_BTNH = self.attend(
      checkpoint_name(q_BTNH, 'query'),
      checkpoint_name(k_BSKH, 'key'),
      checkpoint_name(v_BSKH, 'value'),
      mask,
      None
      if latent_BZ is None
      else (plain_q_BTNH, *self.latent_memory(latent_BZ)),
    )
    out_BTD = linear.Einsum(
      (self.num_heads, self.head_dim, x_BTD.shape[-1]),
      ('heads', None, 'embed'),
      use_bias=self.output_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      init_scale=self.init_scale,
      name='output',
    )('BTNH,NHD->BTD', hooks.point(self, 'attended', out_BTNH))
    return hooks.point(self, 'output', out_BTD), cache

  def attend(
    self,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: masking.Mask,
    memory: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  ) -> jax.Array:
    """Attention's output, [B, T, N, H]; each device does its heads and rows.

    Where the length is split, keys and values come from the other devices.
    `memory` holds queries, [B, T, N, H], and the keys and values, [B, M, K, H],
    that all queries see in addition.
    """
    options: dict[str, Any] = {'scale': self.scale, 'softcap': self.softcap}

    def local(q_BTNH, k_BSKH, v_BSKH, mask, memory):
      split = q_BTNH.shape[1] < length
      if not split and memory is None:
        return dot_product_attention.attention(
          q_BTNH, k_BSKH, v_BSKH, mask, implementation=self.kernel, **options
        )
      function = chunked_attention.with_log_sum
      if split:
        function = functools.partial(
          context_parallel.attention,
          axis='sequence',
          how=self.context_parallel,
        )
      output = function(q_BTNH, k_BSKH, v_BSKH, mask, **options)
      if memory is not None:
        output = partial_attention.merge(
          output, partial_attention.unmasked(*memory, **options)
        )
      return output[0].astype(v_BSKH.dtype)

    length = q_BTNH.shape[1]
    queries = ('batch', 'length', 'heads', None)
    keys = ('batch', 'length', 'kv_heads', None)
    slots = ('batch', None, 'kv_heads', None)
    return sharding.per_device(
      local,
      (
        queries,
        keys,
        keys,
        jax.tree.map(lambda _: ('batch', 'length'), mask),
        None if memory is None else (queries, slots, slots),
      ),
      queries,
    )(q_BTNH, k_BSKH, v_BSKH, mask, memory)

  def keys_values(
    self,
    x_BSD: jax.Array,
    angles: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """The layer's keys and values of vectors, [B, S, K, H] each."""
    k_BSKH = self.project('key', x_BSD, self.num_kv_heads, 'kv_heads')
    k_BSKH = hooks.point(self, 'key', self.norm('key_norm', k_BSKH))
    k_BSKH = rotated(k_BSKH, angles)
    v_BSKH = self.project('value', x_BSD, self.num_kv_heads, 'kv_heads')
    return k_BSKH, hooks.point(self, 'value', v_BSKH)

  def latent_memory(self, latent_BZ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values made from z, [B, M, K, H] each."""
    shape = (self.num_memory, self.num_kv_heads, self.head_dim)
    project = lambda name: linear.Einsum(
      (latent_BZ.shape[-1], *shape),
      (None, None, 'kv_heads', None),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      init_scale=self.init_scale,
      name=name,
    )('BZ,ZMKH->BMKH', latent_BZ)
    k_BMKH = self.norm('memory_norm', project('memory_key'))
    return k_BMKH, project('memory_value')

  def project(
    self, name: str, x_BTD: jax.Array, num_heads: int, axis: str
  ) -> jax.Array:
    """One of query, key and value, [B, T, heads, H]."""
    return linear.Einsum(
      (x_BTD.shape[-1], num_heads, self.head_dim),
      ('embed', axis, None),
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      init_scale=self.init_scale,
      name=name,
    )('BTD,DNH->BTNH', x_BTD)

  def norm(self, name: str, x_BTNH: jax.Array) -> jax.Array:
    """Queries or keys after the norm, if there is one."""
    if not self.qk_norm:
      return x_BTNH
    return linear.RMSNorm(self.norm_eps, self.dtype, name=name)(x_BTNH)


class MemoryKeys(Attention):
  """The keys and values of a cross-attention alone, with its parameters."""

  @nn.compact
  def __call__(self, memory_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the encoder's output, [B, S, K, H] each."""
    return self.keys_values(memory_BSD)


def rotated(
  x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array] | None
) -> jax.Array:
  """Queries or keys after the rotation, if there is one."""
  return x_BTNH if angles is None else embedding.rotate(x_BTNH, angles)
