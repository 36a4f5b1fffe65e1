"""Plans equal what a plain loop over documents and tokens would do."""

import numpy as np
import pytest

from gemini_jax.data import packing


def documents(seed, count=30):
  lengths = np.random.default_rng(seed).integers(1, 20, count)
  starts = np.cumsum(lengths + 1) - lengths - 1
  return starts, lengths


def naive_stream(starts, lengths, width, order, begin):
  """Rows of [(first token, positions)], token by token."""
  stream = [(d, k) for d in order for k in range(lengths[d])]
  stream = stream[begin:] + stream[:begin]
  rows = []
  for left in range(0, len(stream), width):
    row = []
    for d, k in stream[left : left + width]:
      if row and k and row[-1][0] == d:
        row[-1][2] += 1
      else:
        row.append([d, k, 1])
    rows.append([(starts[d] + k, n) for d, k, n in row])
  return rows


def rows_of(plan, rows):
  pieces = plan.pieces(np.asarray(rows))
  return [
    [
      (start, length)
      for row, start, length, _ in zip(*pieces, strict=True)
      if row == i
    ]
    for i in range(len(rows))
  ]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('width', [1, 7, 64, 1000])
def test_a_stream_equals_the_plain_loop(seed, width):
  starts, lengths = documents(seed)
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(starts))
  begin = int(rng.integers(min(width, lengths.sum())))
  plan = packing.StreamPlan.make(starts, lengths, width, order, begin)
  expected = naive_stream(starts, lengths, width, order, begin)
  assert plan.num_rows == len(expected)
  assert rows_of(plan, np.arange(plan.num_rows)) == expected
  mixed = rng.permutation(plan.num_rows)
  assert rows_of(plan, mixed) == [expected[row] for row in mixed]
  assert rows_of(plan, [plan.num_rows, plan.num_rows + 3]) == [[], []]


def test_one_document_that_goes_round_is_two_pieces():
  plan = packing.StreamPlan.make(np.array([0]), np.array([10]), 4, None, 3)
  assert rows_of(plan, [0, 1, 2]) == [[(3, 4)], [(7, 3), (0, 1)], [(1, 2)]]


def test_cut_takes_as_many_rows_as_a_text_needs():
  plan = packing.cut(np.array([0, 10, 20]), np.array([9, 4, 1]), 4)
  expected = [[(0, 4)], [(4, 4)], [(8, 1)], [(10, 4)], [(20, 1)]]
  assert rows_of(plan, range(5)) == expected
  assert rows_of(plan, [7]) == [[]]


@pytest.mark.parametrize('seed', range(5))
def test_next_fit_equals_the_plain_loop(seed):
  rng = np.random.default_rng(seed)
  sizes = [rng.integers(1, 9, 50), rng.integers(1, 12, 50)]
  capacities = [10, 16]
  bounds, used = [0], [0, 0]
  for i in range(50):
    used = [u + s[i] for u, s in zip(used, sizes, strict=True)]
    if any(u > c for u, c in zip(used, capacities, strict=True)):
      bounds.append(i)
      used = [s[i] for s in sizes]
  assert packing.next_fit(sizes, capacities).tolist() == [*bounds, 50]


@pytest.mark.parametrize(
  'weights', [[1], [0.5, 0.5], [3, 1], [0.7, 0.2, 0.1], [1, 1, 1, 5, 0.01]]
)
def test_shares_of_a_mixture_are_kept_after_every_row(weights):
  owners, ranks, counts = packing.schedule(weights)
  shares = counts / counts.sum()
  assert np.abs(shares - np.array(weights) / sum(weights)).max() <= 2e-4
  given = np.cumsum(owners[:, None] == np.arange(len(weights)), axis=0)
  rows = np.arange(1, len(owners) + 1)[:, None]
  assert np.abs(given - rows * shares).max() < 1
  assert np.array_equal(given[-1], counts)
  for i in range(len(weights)):
    assert np.array_equal(ranks[owners == i], np.arange(counts[i]))
