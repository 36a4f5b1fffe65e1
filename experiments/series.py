r"""A class or a number of a series, such as of a machine or of a market.

  python -m gemini_jax.main --workdir=runs/series \
      --config=experiments/series.py:table=FILE.jsonl,target=class:label,fold=0

Each line of FILE is `{"series": [...], "label": ...}`, where a step is a number
or a list with one for each channel. The folds and what is measured are those of
`tables.py`.
"""

import itertools
import json
import pathlib

from experiments import tables

# Tokens that the longest series is cut into, about.
_NUM_PATCHES = 24
_NUM_SEEN = 100


def get_config(arg=''):
  """The config; `arg` is `table=FILE,target=KIND:COLUMN,fold=0`."""
  options, config = tables.started(arg)
  config.data.tasks = (f'{{series:series}} -> {{{options["target"]}}}',)
  length, channels = extent(options['table'])
  part = config.model.series
  part.length, part.channels = length, channels
  part.patch = max(1, round(length / _NUM_PATCHES))
  # bos, the patches and what ends them.
  config.data.sequence_length = -(-length // part.patch) + 3
  config.model.max_length = config.data.sequence_length
  return config


def extent(path: str) -> tuple[int, int]:
  """Steps of the longest of the first series of a file, and channels."""
  with pathlib.Path(path).expanduser().open(encoding='utf-8') as file:
    lines = itertools.islice(file, _NUM_SEEN)
    series = [json.loads(line)['series'] for line in lines]
  channels = len(series[0][0]) if isinstance(series[0][0], list) else 1
  return max(map(len, series)), channels
