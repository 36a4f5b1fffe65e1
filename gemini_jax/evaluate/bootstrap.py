"""Intervals of 95 % by the bootstrap: percentiles over resampled rows."""

from collections.abc import Callable

import numpy as np

_PERCENTILES = (2.5, 97.5)


def intervals(
  statistic: Callable[[np.ndarray], dict[str, float]],
  num_rows: int,
  num_resamples: int = 1000,
  seed: int = 0,
) -> dict[str, float]:
  """`NAME_low` and `NAME_high` of each value of a statistic.

  Args:
    statistic: of the indices of some rows, int[N]: values by name.
    num_rows: N, of which as many are drawn with replacement each time.
    num_resamples: how often; 0: no interval at all.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  draws = [
    statistic(rng.integers(num_rows, size=num_rows))
    for _ in range(num_resamples)
  ]
  found = {}
  for name in draws[0] if draws else ():
    low, high = np.percentile([draw[name] for draw in draws], _PERCENTILES)
    found |= {f'{name}_low': float(low), f'{name}_high': float(high)}
  return found
