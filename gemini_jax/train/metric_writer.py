"""Writes a run's metrics: to `metrics.jsonl`, TensorBoard and W&B."""

import json
import logging
import math
import os
import pathlib
from collections.abc import Mapping

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.parallel import processes
from gemini_jax.train import metrics_file, tensorboard_writer, wandb_writer


class Writer:
  """Writes metrics of a step to every sink.

  Every process has the same metrics; process zero writes them.
  """

  def __init__(
    self, workdir: pathlib.Path, config: config_lib.Config, step: int, size: int
  ):
    """Opens the sinks.

    Args:
      workdir: folder of the run.
      config: the run's config.
      step: the step that the run goes on from.
      size: bytes of metrics.jsonl at that step; the lines after it are
        dropped, since the resumed run writes them again.

    Raises:
      ConfigError: metrics.jsonl has lost lines, or wandb cannot be used.
    """
    self._writes = processes.is_process_zero()
    if not self._writes:
      return
    self._wandb = (
      wandb_writer.start(workdir, config, step)
      if config.train.wandb_project
      else None
    )
    metrics_file.check(workdir, size)
    path = workdir / metrics_file.FILE
    # Appended, whatever is done to the file meanwhile.
    self._file = path.open('a')
    # A file that is shorter, such as an empty one, must not grow by zeros.
    self._path, self._size = path, min(size, path.stat().st_size)
    self._file.truncate(self._size)
    self._board = tensorboard_writer.TensorBoard(
      workdir / 'tensorboard', step + 1
    )

  def write(self, step: int, values: Mapping[str, float | None]):
    """One line: `step`, then the values; None and NaN become null."""
    if not self._writes:
      return
    values = {
      name: value if value is not None and math.isfinite(value) else None
      for name, value in values.items()
    }
    line = json.dumps({'step': step} | values) + '\n'
    self._file.write(line)
    self._file.flush()
    self._size += len(line)
    numbers = {
      name: value for name, value in values.items() if value is not None
    }
    self._board.write(step, numbers)
    if self._wandb:
      self._wandb.log(numbers, step=step)

  def size(self) -> int:
    """Bytes of metrics.jsonl, flushed to disk; 0 in other processes."""
    if not self._writes:
      return 0
    self._file.flush()
    os.fsync(self._file.fileno())
    if not host.is_at(self._file.fileno(), self._path):
      logging.warning('%s was removed; it begins anew', self._path)
      self._file.close()
      self._file, self._size = self._path.open('a'), 0
    size = os.fstat(self._file.fileno()).st_size
    if size < self._size:
      logging.warning('%s has lost lines during the run', self._path)
    self._size = size
    return size

  def close(self):
    """Closes every sink."""
    if not self._writes:
      return
    self._file.close()
    self._board.close()
    if self._wandb:
      self._wandb.finish()
