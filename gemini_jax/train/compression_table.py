"""`compress.json`: what compressed models are like beside the dense one."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.evaluate import figures

FILE, PICTURE_FILE = 'compress.json', 'compress.png'
DENSE = 'dense'
# Columns of the table: of a row of the file, title and format.
_COLUMNS = {
  'name': ('model', str),
  'alpha': ('pruned', '{:.0%}'.format),
  'bits': ('bits', str),
  'loss': ('loss', '{:.4f}'.format),
  'parameters': ('parameters not zero', '{:,}'.format),
  'bytes': ('MB on disk', lambda size: f'{size / 1e6:.2f}'),
  'memory_bytes': ('MB in memory', lambda size: f'{size / 1e6:.2f}'),
  'prefill_tokens_per_second': ('prefill tokens/s', '{:.0f}'.format),
  'decode_tokens_per_second': ('decode tokens/s', '{:.1f}'.format),
  'decode_speedup': ('decode, times dense', '{:.2f}'.format),
}


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows in a folder; none where there is no such file.

  Raises:
    ConfigError: the file holds no rows.
  """
  path = workdir / FILE
  if not path.exists():
    return []
  try:
    rows = json.loads(host.read_file(path))
  except (OSError, ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{path} cannot be read: {error}') from error
  config_lib.check(
    isinstance(rows, list)
    and all(
      isinstance(row, dict) and set(_COLUMNS) <= set(row) for row in rows
    ),
    f'{path} is not what --mode=compress writes; move it away',
  )
  return rows


def add(workdir: pathlib.Path, new: Sequence[Mapping[str, Any]]):
  """Puts rows into the file, in place of those of the same name.

  Raises:
    ConfigError: the file that is there holds no rows.
    OSError: it cannot be written.
  """
  rows = {row['name']: row for row in (*read(workdir), *new)}
  text = json.dumps(list(rows.values()), indent=1) + '\n'
  host.replace_file(workdir / FILE, text.encode())
  png = picture(list(rows.values()))
  if png is not None:
    host.replace_file(workdir / PICTURE_FILE, png)


def table(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
  """Titles and cells."""
  cells = [
    [show(row[key]) for key, (_, show) in _COLUMNS.items()] for row in rows
  ]
  return [title for title, _ in _COLUMNS.values()], cells


def best(rows: Sequence[Mapping[str, Any]], size: str) -> list[str]:
  """Names of the rows than which none is both smaller and better.

  Args:
    rows: of the file.
    size: the field that is compared beside `loss`.
  """
  return [
    row['name']
    for row in rows
    if not any(
      other[size] <= row[size]
      and other['loss'] <= row['loss']
      and (other[size], other['loss']) != (row[size], row['loss'])
      for other in rows
    )
  ]


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
  """A PNG of the loss over bytes on disk and over speed, the best joined.

  None where matplotlib is not installed.
  """
  figure = figures.new(10, 4)
  if figure is None:
    return None
  rows = [
    dict(row, milliseconds=1e3 / row['decode_tokens_per_second'])
    for row in rows
  ]
  panels = {'bytes': 'bytes on disk', 'milliseconds': 'ms a token, decoding'}
  for i, (key, title) in enumerate(panels.items()):
    axes = figure.add_subplot(1, 2, i + 1)
    axes.scatter([row[key] for row in rows], [row['loss'] for row in rows], 12)
    for row in rows:
      axes.annotate(
        row['name'],
        (row[key], row['loss']),
        fontsize=6,
        xytext=(3, 3),
        textcoords='offset points',
        parse_math=False,
      )
    names = best(rows, key)
    line = sorted(
      (row[key], row['loss']) for row in rows if row['name'] in names
    )
    axes.plot(*zip(*line, strict=True), linewidth=1)
    axes.set_xlabel(title)
    axes.set_ylabel('loss')
    axes.set_xscale('log')
    axes.tick_params(labelsize=7, which='both')
  figure.subplots_adjust(0.08, 0.14, 0.98, 0.96, wspace=0.2)
  return figures.png(figure)
