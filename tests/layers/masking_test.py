"""Masks against matrices written by hand."""

import jax.numpy as jnp
import numpy as np

from gemini_jax import batch
from gemini_jax.layers import masking


def sequence(segments, positions=None):
  segments_BT = np.array([segments], np.int32)
  if positions is None:
    positions = range(len(segments))
  positions_BT = np.array([positions], np.int32)
  return batch.Sequence(np.zeros_like(segments_BT), positions_BT, segments_BT)


def check(mask_BTS, *rows):
  """Compares with rows of '1' (seen) and '.' (hidden)."""
  actual = [
    ''.join('.1'[int(x)] for x in row) for row in np.asarray(mask_BTS)[0]
  ]
  assert mask_BTS.dtype == jnp.bool_
  assert actual == list(rows)


PLAIN = sequence([1, 1, 1, 1])
# Two records of two and three tokens, then padding.
PACKED = sequence([1, 1, 2, 2, 2, 0], [0, 1, 0, 1, 2, 0])


def test_causal():
  check(
    masking.visible(PLAIN, PLAIN, causal=True),
    '1...',
    '11..',
    '111.',
    '1111',
  )


def test_both_directions():
  check(masking.visible(PLAIN, PLAIN, causal=False), *['1111'] * 4)


def test_window_counts_the_position_itself():
  check(
    masking.visible(PLAIN, PLAIN, causal=True, window=2),
    '1...',
    '11..',
    '.11.',
    '..11',
  )
  check(
    masking.visible(PLAIN, PLAIN, causal=False, window=2),
    '11..',
    '111.',
    '.111',
    '..11',
  )


def test_prefix_is_seen_by_all():
  check(
    masking.visible(
      PLAIN,
      PLAIN,
      causal=True,
      prefix_BS=np.array([[True, True, False, False]]),
    ),
    '11..',
    '11..',
    '111.',
    '1111',
  )


def test_segments_and_padding():
  check(
    masking.visible(PACKED, PACKED, causal=True),
    '1.....',
    '11....',
    '..1...',
    '..11..',
    '..111.',
    '......',
  )


def test_a_prefix_stays_inside_its_segment_and_window():
  prefix_BS = np.array([[True, True, True, True, False, False]])
  check(
    masking.visible(PACKED, PACKED, causal=True, prefix_BS=prefix_BS),
    '11....',
    '11....',
    '..11..',
    '..11..',
    '..111.',
    '......',
  )
  check(
    masking.visible(
      PLAIN, PLAIN, causal=True, window=2, prefix_BS=np.ones((1, 4), bool)
    ),
    '11..',
    '111.',
    '.111',
    '..11',
  )


def test_distance_is_of_positions_not_of_places():
  """As in a cache, whose slots are positions, read by a later query."""
  query = sequence([1], [2])
  check(masking.visible(query, PLAIN, causal=True), '111.')
  check(masking.visible(query, PLAIN, causal=True, window=2), '.11.')


def test_cross_attention_sees_its_segment_whole():
  keys = sequence([1, 1, 2, 0])
  check(
    masking.same_segment(PACKED, keys),
    '11..',
    '11..',
    '..1.',
    '..1.',
    '..1.',
    '....',
  )
