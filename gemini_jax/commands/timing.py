"""Timing of several programs in turn, and the ceilings of the device."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib

# Number of rounds in which programs take turns, and seconds of a turn.
_ROUNDS = 20
_TURN = 0.6


def turns(
  timers: dict[str, Callable[[int], list[float]]],
) -> dict[str, list[float]]:
  """Median seconds of each program in each round; the programs take turns.

  Turns make them comparable on a machine whose speed varies.

  Args:
    timers: by name, what runs a program so many times and gives the seconds.
  """
  counts = {}
  for name, times in timers.items():
    times(3)
    counts[name] = max(1, round(_TURN / statistics.median(times(3))))
  medians: dict[str, list[float]] = {name: [] for name in timers}
  for _ in range(_ROUNDS):
    for name, times in timers.items():
      medians[name].append(statistics.median(times(counts[name])))
  return medians


def seconds(call: Callable[[], Any]) -> float:
  """Seconds of a call, until its results are ready."""
  begin = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - begin


def ceilings(config: config_lib.Config) -> dict[str, float]:
  """FLOP/s of a matrix product and bytes/s of a copy, the best of 20."""
  dtype = jnp.dtype(config.model.dtype)
  size = 1024 if jax.default_backend() == 'cpu' else 8192
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  # Read and written once; larger than a cache.
  y = jnp.tile(x, (16, 1))
  copy = jax.jit(lambda y: y + 1).lower(y).compile()
  best = lambda call: min(seconds(call) for _ in range(20))
  return {
    'matmul_flops_per_second': 2 * size**3 / best(lambda: product(x, x)),
    'copy_bytes_per_second': 2 * y.nbytes / best(lambda: copy(y)),
  }


def spread(name: str, seconds: Sequence[float]) -> dict[str, Any]:
  """Median and quartiles of times, which are also printed."""
  low, median, high = statistics.quantiles(seconds, n=4)
  print(
    f'{name}: median {median * 1e3:.2f} ms, {low * 1e3:.2f} to {high * 1e3:.2f}'
  )
  return {f'{name}_seconds': median, f'{name}_quartiles': (low, high)}


def _timer(call: Callable[[], Any]) -> Callable[[int], list[float]]:
  return lambda count: [seconds(call) for _ in range(count)]


def side_by_side(
  what: str, config: config_lib.Config, calls: dict[str, Callable[[], Any]]
) -> dict[str, Any]:
  """The result of a benchmark: times of calls in turn, and the ceilings."""
  medians = turns({name: _timer(call) for name, call in calls.items()})
  result: dict[str, Any] = {
    'what': what,
    'device': jax.devices()[0].device_kind,
    **ceilings(config),
  }
  for name, values in medians.items():
    result |= spread(name, values)
  return result
