"""Metrics over the steps: as series, as sparklines and as a picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemini_jax.evaluate import figures
from gemini_jax.train import metrics_file

# Of each step alone or of the machine; a curve of them tells nothing.
_NO_CURVES = {*metrics_file.TIMINGS, 'train/tokens', 'step'}
# Metrics whose panels come first, by the last part of their name.
_FIRST = ('loss', 'bits_per_byte', 'kl', 'learning_rate', 'accuracy')
_MAX_PANELS = 12
_LEVELS = '▁▂▃▄▅▆▇█'

# Of one metric: steps and values.
Series = tuple[list[int], list[float]]


def series(lines: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
  """Steps and values of each metric that has a value at two steps at least.

  Args:
    lines: of `metrics.jsonl`, in order.
  """
  found: dict[str, Series] = {}
  for line in lines:
    for name, value in line.items():
      if name not in _NO_CURVES and isinstance(value, int | float):
        steps, values = found.setdefault(name, ([], []))
        steps.append(line['step'])
        values.append(float(value))
  return {name: curve for name, curve in found.items() if len(curve[0]) > 1}


def panels(curves: Mapping[str, Series]) -> dict[str, list[str]]:
  """Names of metrics by what a picture shows together, such as both losses."""
  grouped: dict[str, list[str]] = {}
  for name in curves:
    grouped.setdefault(name.rpartition('/')[2], []).append(name)
  order = {name: i for i, name in enumerate(_FIRST)}
  titles = sorted(grouped, key=lambda title: order.get(title, len(order)))
  return {title: grouped[title] for title in titles}


def sparkline(values: Sequence[float], width: int = 32) -> str:
  """The course of some numbers as a line of blocks, at most `width` of them."""
  size = max(1, math.ceil(len(values) / width))
  means = [
    sum(values[i : i + size]) / len(values[i : i + size])
    for i in range(0, len(values), size)
  ]
  low, high = min(means), max(means)
  if not high > low:
    return _LEVELS[0] * len(means)
  return ''.join(
    _LEVELS[round((mean - low) / (high - low) * (len(_LEVELS) - 1))]
    for mean in means
  )


def picture(curves: Mapping[str, Series]) -> bytes | None:
  """A PNG with a panel for each group of metrics.

  None where there are no curves or matplotlib is not installed.
  """
  if not curves:
    return None
  groups = list(panels(curves).items())[:_MAX_PANELS]
  num_columns = min(3, len(groups))
  num_rows = math.ceil(len(groups) / num_columns)
  figure = figures.new(4 * num_columns, 2.6 * num_rows)
  if figure is None:
    return None
  for i, (title, names) in enumerate(groups):
    axes = figure.add_subplot(num_rows, num_columns, i + 1)
    for name in names:
      axes.plot(*curves[name], label=name.rpartition('/')[0], linewidth=1)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=7)
    if len(names) > 1:
      axes.legend(fontsize=7, frameon=False)
  figure.subplots_adjust(
    left=0.6 / (4 * num_columns),
    right=1 - 0.15 / (4 * num_columns),
    bottom=0.3 / (2.6 * num_rows),
    top=1 - 0.3 / (2.6 * num_rows),
    wspace=0.2,
    hspace=0.4,
  )
  return figures.png(figure)
