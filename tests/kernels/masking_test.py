"""Masks against matrices written by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax import batch
from gemini_jax.kernels import masking


def sequence(segments, positions=None):
  segments_BT = np.array([segments], np.int32)
  if positions is None:
    positions = range(len(segments))
  positions_BT = np.array([positions], np.int32)
  return batch.Sequence(np.zeros_like(segments_BT), positions_BT, segments_BT)


def check(mask, *rows):
  """Compares with rows of '1' (seen) and '.' (hidden)."""
  mask_BTS = mask.dense()
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
    masking.visible(PACKED, keys),
    '11..',
    '11..',
    '..1.',
    '..1.',
    '..1.',
    '....',
  )


@pytest.mark.parametrize('window', [None, 1, 3, 40])
@pytest.mark.parametrize('causal', [True, False])
def test_nothing_is_seen_beyond_the_reach(causal, window):
  """And where the rule is one of slots, what is at its ends is seen."""
  packed = sequence([1] * 16 + [2] * 7 + [0], [*range(16), *range(7), 0])
  mask = masking.visible(packed, packed, causal=causal, window=window)
  seen_TS = np.asarray(mask.dense())[0]
  for start in range(0, 24, 8):
    low, high = mask.reach(start, start + 8)
    assert not seen_TS[start : start + 8, :low].any()
    assert not seen_TS[start : start + 8, high:].any()
  assert mask.reach(8, 16) == (
    0 if window in (None, 40) else 9 - window,
    16 if causal else 24 if window in (None, 40) else 15 + window,
  )


def test_a_prefix_or_a_cache_is_reached_whole():
  prefix_BS = np.ones((1, 4), bool)
  prefix = masking.visible(PLAIN, PLAIN, causal=True, prefix_BS=prefix_BS)
  assert prefix.reach(0, 2) == (0, 4)
  slots = sequence([1] * 9)
  assert masking.visible(PLAIN, slots, causal=True).reach(0, 2) == (0, 9)


def test_a_part_is_the_same_rule():
  mask = masking.visible(PACKED, PACKED, causal=True, window=2)
  whole = np.asarray(mask.dense())
  part = mask.part((1, 3), (0, 4)).dense()
  np.testing.assert_array_equal(part, whole[:, 1:4, 0:4])
  assert whole[:, 1:4, 0:4].any()
