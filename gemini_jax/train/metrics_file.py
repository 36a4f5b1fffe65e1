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

# Fields that measure this machine and not the run; all others repeat.
TIMINGS = ('train/tokens_per_second', 'train/step_seconds', 'train/mfu')

FILE = 'metrics.jsonl'

# Bytes at the end of metrics.jsonl that surely hold a whole line.
_TAIL = 1 << 20


def newest_lines(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The last lines of metrics.jsonl, the newest first.

  What was cut off or damaged is passed over.

  Raises:
    ConfigError: it is no file.
  """
  with _open_record(workdir) as file:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    lines = file.read().splitlines()
  for line in reversed(lines):
    try:
      values = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(values, dict) and type(values.get('step')) is int:
      yield legacy.metrics(values)


def last_step(workdir: pathlib.Path) -> int:
  """The last step that metrics.jsonl tells of; 0 where it tells of none."""
  return next((line['step'] for line in newest_lines(workdir)), 0)


def check_record(workdir: pathlib.Path, size: int):
  """Refuses a metrics.jsonl that has lost lines which a checkpoint counts on.

  An empty one may stand for those that a user does not want.

  Args:
    workdir: folder of the run.
    size: bytes that it had at the step of the checkpoint.

  Raises:
    ConfigError: it is missing, shorter or changed, or no file.
  """
  path = workdir / FILE
  problem = '' if path.exists() or not size else 'is missing'
  with _open_record(workdir) as file:
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


def _open_record(workdir: pathlib.Path) -> io.BufferedIOBase:
  path = workdir / FILE
  try:
    host.check_regular(path)
    return path.open('rb')
  except FileNotFoundError:
    return io.BytesIO()
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
