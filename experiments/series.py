r"""A class or a number of a series, such as of a machine or of a market.

  python -m gemini_jax.main --workdir=runs/series \
      --config=experiments/series.py:table=FILE.jsonl,target=class:label,fold=0

Each line of FILE is `{"series": [...], "label": ...}`, where a step is a number
or a list with one for each channel; or it is a table with such columns. The
folds and what is measured are those of `tables.py`.

Measured over all folds, on one busy core (tests/tables_study.py):
accuracy on ItalyPowerDemand 0.973 (gradient boosting 0.973), on GunPoint 0.985
(gradient boosting 0.955).
"""

import json

from experiments import tables
from gemini_jax.data import readers

# Tokens that the longest series is cut into, about.
_NUM_PATCHES = 24


def get_config(arg=''):
  """The config; `arg` is `table=FILE,target=KIND:COLUMN,fold=0`."""
  options, config = tables.started(arg)
  config.data.tasks = (f'{{series:series}} -> {{{options["target"]}}}',)
  length, channels = extent(tables.read(options['table']))
  part = config.model.series
  part.length, part.channels = length, channels
  part.patch = max(1, round(length / _NUM_PATCHES))
  # bos, the patches and what ends them.
  config.data.sequence_length = -(-length // part.patch) + 3
  config.model.max_length = config.data.sequence_length
  return config


def extent(rows: readers.Rows) -> tuple[int, int]:
  """Steps of the longest series, and channels of the first."""
  series = [record['series'] for record in rows.records]
  # A table has JSON in its cells.
  series = [json.loads(s) if isinstance(s, str) else s for s in series]
  channels = len(series[0][0]) if isinstance(series[0][0], list) else 1
  return max(map(len, series)), channels
