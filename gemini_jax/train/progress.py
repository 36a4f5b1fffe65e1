"""The progress of a training at a terminal or in a log, and its stopwatch."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import tqdm

from gemini_jax.parallel import processes


class Stopwatch:
  """Measures the seconds of training steps alone.

  It is paused during evaluations and checkpoints. They wait until the devices
  are idle, so no step runs during a pause.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts it; `clock` returns seconds."""
    self._clock = clock
    self._seconds = 0.0
    self._begin = clock()

  def pause(self):
    """Stops it; to be called once the devices are done with the last step."""
    self._seconds += self._clock() - self._begin

  def resume(self):
    """Goes on after a pause."""
    self._begin = self._clock()

  def lap(self) -> float:
    """Seconds, without pauses, since the start or the last lap."""
    now = self._clock()
    seconds = self._seconds + now - self._begin
    self._seconds, self._begin = 0.0, now
    return seconds


class Progress:
  """A progress bar at a terminal, plain lines in a log."""

  def __init__(self, start: int, total: int):
    """Shows `start` of `total` steps; only process zero has a bar."""
    self._bar = None
    self._begin = time.monotonic()
    self._start, self._total = start, total
    if sys.stderr.isatty() and processes.is_process_zero():
      self._bar = tqdm.tqdm(
        initial=start, total=total, unit='step', dynamic_ncols=True
      )

  def update(self, step: int, values: Mapping[str, float | None]):
    """Shows that `step` is done, with its loss and its speed."""
    shown = {
      name.removeprefix('train/'): value
      for name, value in values.items()
      if value is not None
    }
    if self._bar is not None:
      self._bar.set_postfix_str(_spell(shown), refresh=False)
      self._bar.update(step - self._bar.n)
      return
    elapsed = time.monotonic() - self._begin
    left = elapsed / max(1, step - self._start) * (self._total - step)
    self.note(
      f'step {step:,}/{self._total:,}  {_spell(shown)}  '
      f'{int(left) // 60}:{int(left) % 60:02d} left'
    )

  def note(self, line: str):
    """Prints a line, above the bar if there is one."""
    if self._bar is not None:
      self._bar.write(line)
    else:
      print(line, flush=True)

  def close(self):
    """Ends the bar; it stays on the screen as it is."""
    if self._bar is not None:
      self._bar.close()


def _spell(values: Mapping[str, Any]) -> str:
  """Loss and speed, as a person reads them."""
  formats = {
    'tokens_per_second': ('{:,.0f} tokens/s', 1),
    'mfu': ('MFU {:.1%}', 1),
    'loss': ('loss {:.4f}', 1),
  }
  return '  '.join(
    formats[name][0].format(value)
    for name, value in values.items()
    if name in formats
  )


def devices_line() -> str:
  """Number and kind of the devices, processes and the version of jax."""
  devices = jax.devices()
  count = jax.process_count()
  return (
    f'{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})'
    f'{f" of {count} processes" if count > 1 else ""}, jax {jax.__version__}'
  )


# Metrics of an evaluation that a line shows, by the last part of the name.
_SHOWN = frozenset(
  (
    *('loss', 'bits_per_byte', 'accuracy', 'exact_match'),
    *('nll', 'kl', 'mi', 'active_units'),
  )
)


def spell_results(values: Mapping[str, float]) -> str:
  """The main metrics of an evaluation, each after two blanks."""
  shown = [
    f'{name} {value:.4f}'
    for name, value in values.items()
    if name.split('/')[-1] in _SHOWN
    or (name.endswith('_accuracy') and not name.endswith('token_accuracy'))
  ]
  return ''.join(f'  {item}' for item in shown)
