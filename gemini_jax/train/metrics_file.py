"""`metrics.jsonl`, the record of a run: one JSON object a line."""

import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.config import legacy

# Metrics of the machine; all others are the same when a run is repeated.
TIMINGS = ('train/tokens_per_second', 'train/step_seconds', 'train/mfu')

FILE = 'metrics.jsonl'

# Bytes at the end of metrics.jsonl that surely hold a whole line.
_TAIL_BYTES = 1 << 20


def all_lines(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The lines of metrics.jsonl in order, under the names of this version.

  Lines that are cut off or damaged are left out.

  Raises:
    ConfigError: the file cannot be read.
  """
  with _open(workdir) as file:
    for line in file:
      if (values := _parse(line)) is not None:
        yield values


def newest_lines(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The last lines of metrics.jsonl, the newest first; see `all_lines`.

  Raises:
    ConfigError: the file cannot be read.
  """
  with _open(workdir) as file:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = file.read().splitlines()
  for line in reversed(lines):
    if (values := _parse(line)) is not None:
      yield values


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    values = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if isinstance(values, dict) and type(values.get('step')) is int:
    return legacy.metrics(values)
  return None


def check(workdir: pathlib.Path, size: int):
  """Refuses a metrics.jsonl that has lost lines which a checkpoint counts on.

  An empty file is accepted: a user who does not want the lines puts one there.

  Args:
    workdir: folder of the run.
    size: bytes that the file had at the step of the checkpoint.

  Raises:
    ConfigError: the file is missing, shorter or changed, or no regular file.
  """
  path = workdir / FILE
  problem = '' if path.exists() or not size else 'is missing'
  with _open(workdir) as file:
    length = file.seek(0, os.SEEK_END)
    if 0 < length < size:
      problem = f'has {length:,} bytes'
    elif 0 < size <= length:
      file.seek(size - 1)
      if file.read(1) != b'\n':
        problem = f'has no line that ends at byte {size:,}'
  config_lib.check(
    not problem,
    f'{path} {problem}, but the checkpoint counts on the {size:,} that it had; '
    'put a copy of it back, or to go on without those lines, put an empty '
    'file there',
  )


def _open(workdir: pathlib.Path) -> io.BufferedIOBase:
  """The file, opened; an empty one where there is none."""
  path = workdir / FILE
  try:
    host.check_regular(path)
    return path.open('rb')
  except FileNotFoundError:
    return io.BytesIO()
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
