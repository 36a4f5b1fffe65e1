"""Whether draws have a distribution."""

import numpy as np


def chi_square(counts, probs):
  """The statistic, and what it exceeds with probability of about 1e-4."""
  expected = counts.sum() * probs
  assert expected.min() > 5, 'too few draws for the approximation'
  value = np.sum((counts - expected) ** 2 / expected)
  freedom = len(probs) - 1
  # Wilson and Hilferty's approximation of the quantile.
  limit = freedom * (1 - 2 / 9 / freedom + 3.72 * (2 / 9 / freedom) ** 0.5) ** 3
  return value, limit
