"""Attention masks as rules, in memory linear in the lengths.

B batch, T query length, S key length.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch


@flax.struct.dataclass
class Mask:
  """A rule over segments and positions; nothing here has T times S numbers.

  A query sees a key of its own segment, not padding (segment 0), that
  `causal` and `window` admit.

  Attributes:
    query_segments_BT: int32.
    query_positions_BT: int32.
    key_segments_BS: int32; B may be 1 for keys.
    key_positions_BS: int32.
    prefix_BS: bool, keys that every query of their segment sees.
    causal: only keys at the query's position or before.
    window: only keys nearer than this many positions.
    aligned: query t and key t are the same token, and positions rise by one
      along a segment, so that order in the row is order in the segment.
  """

  query_segments_BT: jax.Array
  query_positions_BT: jax.Array
  key_segments_BS: jax.Array
  key_positions_BS: jax.Array
  prefix_BS: jax.Array | None = None
  causal: bool = flax.struct.field(pytree_node=False, default=False)
  window: int | None = flax.struct.field(pytree_node=False, default=None)
  aligned: bool = flax.struct.field(pytree_node=False, default=False)

  def dense(self) -> jax.Array:
    """bool[B, T, S]: true where a query sees a key."""
    keys_B1S = self.key_segments_BS[:, None, :]
    mask_BTS = (self.query_segments_BT[:, :, None] == keys_B1S) & (keys_B1S > 0)
    if not self.causal and self.window is None:
      return mask_BTS
    distance_BTS = (
      self.query_positions_BT[:, :, None] - self.key_positions_BS[:, None, :]
    )
    if self.causal:
      past_BTS = distance_BTS >= 0
      if self.prefix_BS is not None:
        past_BTS |= self.prefix_BS[:, None, :]
      mask_BTS &= past_BTS
    if self.window is not None:
      mask_BTS &= jnp.abs(distance_BTS) < self.window
    return mask_BTS

  def reach(self, start: int, stop: int) -> tuple[int, int]:
    """The range [low, high) of keys that queries [start, stop) may see."""
    low, high = 0, self.key_segments_BS.shape[1]
    if not self.aligned:
      return low, high
    if self.window is not None:
      low, high = max(low, start - self.window + 1), stop + self.window - 1
    if self.causal and self.prefix_BS is None:
      high = stop
    return low, min(high, self.key_segments_BS.shape[1])

  def part(
    self, queries: tuple[int | jax.Array, int], keys: tuple[int, int]
  ) -> 'Mask':
    """The rule for the queries and the keys at two (start, size)."""
    cut = lambda leaf, part: (
      None
      if leaf is None
      else jax.lax.dynamic_slice_in_dim(leaf, *part, axis=1)
    )
    return dataclasses.replace(
      self,
      query_segments_BT=cut(self.query_segments_BT, queries),
      query_positions_BT=cut(self.query_positions_BT, queries),
      key_segments_BS=cut(self.key_segments_BS, keys),
      key_positions_BS=cut(self.key_positions_BS, keys),
      prefix_BS=cut(self.prefix_BS, keys),
      aligned=False,
    )


def visible(
  queries: batch.Sequence,
  keys: batch.Sequence,
  *,
  causal: bool = False,
  window: int | None = None,
  prefix_BS: jax.Array | None = None,
) -> Mask:
  """Queries see keys of their segment; see `Mask` for the rest."""
  return Mask(
    queries.segments,
    queries.positions,
    keys.segments,
    keys.positions,
    prefix_BS,
    causal=causal,
    window=window,
    aligned=queries is keys,
  )
