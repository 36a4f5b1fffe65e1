"""A file of predictions that is written a batch at a time.

What is written before the end lies in OUTPUT.part, with a key of what it is of
in OUTPUT.part.key; it is gone on with where that is the same.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from gemini_jax import config as config_lib


class PredictionFile:
  """JSON lines, those of a batch on the disk before those of the next.

  Attributes:
    num_lines: that were written before, whole batches of them.
    num_errors: lines of these with an error.
  """

  def __init__(self, output: pathlib.Path, key: str, batch_size: int):
    """Opens what there is of it.

    Args:
      output: the file, which is there when it is whole.
      key: of what is predicted, by which model.
      batch_size: lines of a batch.

    Raises:
      ConfigError: what there is has another key, or it cannot be written.
    """
    self._output = output
    self._path = output.with_name(f'{output.name}.part')
    self._key = output.with_name(f'{output.name}.part.key')
    self.num_lines = self.num_errors = 0
    try:
      if self._path.exists():
        config_lib.check(
          self._key.exists() and self._key.read_text() == key,
          f'{self._path} has predictions of another model or for another file; '
          'move it away',
        )
        self._cut(batch_size)
      self._key.write_text(key)
      self._path.touch()
    except OSError as error:
      raise config_lib.ConfigError(
        f'{self._path} cannot be written: {error.strerror}'
      ) from error

  def _cut(self, batch_size: int):
    """Leaves whole batches of whole lines."""
    num_lines = num_errors = offset = end = 0
    with open(self._path, 'rb') as file:
      for line in file:
        if not line.endswith(b'\n'):
          break
        offset += len(line)
        num_lines += 1
        num_errors += 'error' in json.loads(line)
        if num_lines % batch_size == 0:
          self.num_lines, self.num_errors, end = num_lines, num_errors, offset
    os.truncate(self._path, end)

  def write(self, lines: Iterable[Mapping[str, Any]]):
    """Appends the lines of a batch."""
    text = ''.join(
      f'{json.dumps(line, ensure_ascii=False)}\n' for line in lines
    )
    # A name of a file may be no text.
    errors = 'backslashreplace'
    with open(self._path, 'a', encoding='utf-8', errors=errors) as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())

  def finish(self):
    """Gives the file its name."""
    self._path.rename(self._output)
    self._key.unlink()
