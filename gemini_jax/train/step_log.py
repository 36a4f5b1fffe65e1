"""Metrics of steps: read from the device a step late, and logged."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax.parallel import processes
from gemini_jax.train import flops, metric_writer
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import milestones as milestones_lib
from gemini_jax.train import progress as progress_lib


class StepLog:
  """Logs the metrics of steps, each while the next one runs.

  Attributes:
    stopwatch: of the steps; to be paused while something else is done.
    stops: whether any process has been asked to stop.
  """

  def __init__(
    self,
    config: config_lib.Config,
    milestones: milestones_lib.Milestones,
    writer: metric_writer.Writer,
    progress: progress_lib.Progress,
    lock: lock_lib.Lock,
    step: int,
  ):
    """Starts the stopwatch.

    Args:
      config: of the run.
      milestones: when a line is written.
      writer: of lines.
      progress: what a person sees.
      lock: of the folder, which must still be there when a line is written.
      step: the step that the run goes on from.
    """
    self._config, self._milestones = config, milestones
    self._writer, self._progress, self._lock = writer, progress, lock
    # The step of the last line, and the tokens since.
    self._line_step, self._tokens = step, 0.0
    self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
    self.stopwatch = progress_lib.Stopwatch()
    self.stops = False

  def add(self, step: int, metrics: Mapping[str, jax.Array]):
    """Keeps the metrics of a step that may still run.

    Args:
      step: updates, with this one.
      metrics: on the devices; `finite` and `stops` are flags, no numbers.
    """
    assert self._pending is None
    self._pending = step, metrics

  def process(self, on_not_finite: Callable[[int, Mapping[str, Any]], None]):
    """Waits for the step that was added, if any; writes a line if one is due.

    Args:
      on_not_finite: called with the step and its metrics; raises an error.
    """
    if self._pending is None:
      return
    step, device_metrics = self._pending
    self._pending = None
    metrics = {k: float(v) for k, v in jax.device_get(device_metrics).items()}
    self.stops = bool(metrics.pop('stops')) or self.stops
    if not metrics.pop('finite'):
      on_not_finite(step, metrics)
    self._tokens += metrics['tokens']
    if self._milestones.logs(step):
      self._write(step, metrics)

  def _write(self, step: int, metrics: Mapping[str, float]):
    processes.on_process_zero(self._lock.check)
    seconds = self.stopwatch.lap()
    step_seconds = seconds / (step - self._line_step)
    line: dict[str, float | None] = {
      f'train/{name}': value for name, value in metrics.items()
    }
    line['train/step_seconds'] = step_seconds
    line['train/tokens_per_second'] = self._tokens / seconds
    line['train/mfu'] = flops.mfu(self._config, step_seconds)
    self._line_step, self._tokens = step, 0.0
    self._writer.write(step, line)
    self._progress.update(step, line)
