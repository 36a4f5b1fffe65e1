"""Scalars of a run as TensorBoard's event files."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any


class TensorBoard:
  """Writes scalars for TensorBoard, in the calling thread.

  The thread of tensorboardX's SummaryWriter ends when the disk is full, and a
  training that writes to its queue would then wait forever.
  """

  # Longest time until a scalar is on the disk.
  _FLUSH_SECONDS = 120

  def __init__(self, folder: pathlib.Path, purge_step: int):
    """Opens a new event file.

    Args:
      folder: of the event files; it is made.
      purge_step: scalars that earlier files have from this step on are hidden.
    """
    # Imported here: importing it is slow, and only training needs it. It tries
    # to import torch, which would take seconds and is not used here.
    with _missing('torch'):
      from tensorboardX import event_file_writer, summary
      from tensorboardX.proto import event_pb2
    # protobuf makes its classes on import, so a type checker cannot see them.
    messages: Any = event_pb2
    self._scalar, self._event = summary.scalar, messages.Event
    folder.mkdir(exist_ok=True)
    self._events = event_file_writer.EventsWriter(str(folder / 'events'))
    start = messages.SessionLog(status=messages.SessionLog.START)
    self._add(purge_step, session_log=start)
    self._flushed = 0.0

  def _add(self, step: int, **content: Any):
    self._events.write_event(
      self._event(step=step, wall_time=time.time(), **content)
    )

  def write(self, step: int, values: Mapping[str, float]):
    """Adds the scalars of a step."""
    for name, value in values.items():
      self._add(step, summary=self._scalar(name, value))
    if time.monotonic() - self._flushed > self._FLUSH_SECONDS:
      self._flushed = time.monotonic()
      self._events.flush()

  def close(self):
    """Closes the event file."""
    self._events.close()


@contextlib.contextmanager
def _missing(module: str):
  """Makes imports of `module` fail meanwhile, unless it is imported already."""
  if module in sys.modules:
    yield
    return
  # None makes Python's import raise ModuleNotFoundError.
  sys.modules[module] = None  # pyright: ignore
  try:
    yield
  finally:
    del sys.modules[module]
