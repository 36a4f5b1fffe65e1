"""Checkpoints: whole trees of arrays with a manifest, the newest and the best.

A checkpoint is a folder `checkpoints/<step>` with the arrays in `state` and
`manifest.json`: what the caller put in, the shape of every array and the
checksum of every file. It is written as `<step>.unfinished`, read back, and
gets its name last, so one that was cut off does not count. Folders of other
names are not ours and are left alone.

Of several processes each writes its own arrays into the folder, which they
share, and reads back a part of the files; the first does the rest. All of
them make the same calls.
"""

import concurrent.futures
import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gemini_jax.checkpoint import folders, saving, storage
from gemini_jax.checkpoint import manifest as manifest_lib

MANIFEST = manifest_lib.FILE
DamageError = manifest_lib.DamageError
PathError = storage.PathError


class MismatchError(ValueError):
  """The checkpoint holds other arrays than the run that reads it."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held: its step, the arrays and the manifest."""

  step: int
  state: Any
  manifest: dict[str, Any]


class Checkpointer:
  """Saves in the background; restores the newest checkpoint that is whole."""

  def __init__(
    self,
    directory: str | os.PathLike,
    keep_last: int = 2,
    keep_best: bool = True,
  ):
    """Keeps the `keep_last` newest and the one of the lowest metric.

    Raises:
      PathError: Orbax cannot write to a folder of this name.
    """
    directory = pathlib.Path(directory).absolute()
    storage.check_path(directory)
    self._folders = folders.Folders(directory)
    self._keep_last = keep_last
    self._keep_best = keep_best
    self._worker = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future | None = None

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    return self._folders.steps()

  def path(self, step: int) -> pathlib.Path:
    """The folder of one checkpoint."""
    return self._folders.path(step)

  def _arrays(self, step: int) -> pathlib.Path:
    return self.path(step) / manifest_lib.STATE

  def has_leftovers(self) -> bool:
    """Whether a save was begun here that did not end."""
    return self._folders.has_leftovers()

  def damaged(self) -> list[pathlib.Path]:
    """Checkpoints that were set aside."""
    return self._folders.damaged()

  def clean(self):
    """Removes what an interrupted save or removal left behind.

    Raises:
      PathError: a folder that is not ours is where a checkpoint would be.
    """
    self._folders.clean()

  def manifest(self, step: int) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
      DamageError: it is not readable, or not that of this step.
    """
    return manifest_lib.read(self.path(step), step)

  def best(self) -> int | None:
    """The step of the lowest metric, if any checkpoint has one."""
    scored = []
    for step in self.steps():
      try:
        metric = _finite(self.manifest(step).get('metric'))
      except DamageError:
        continue
      if metric is not None:
        scored.append((metric, step))
    return min(scored)[1] if scored else None

  def save(
    self,
    step: int,
    state: Any,
    manifest: dict[str, Any],
    metric: float | None = None,
    *,
    one_by_one: bool = False,
  ):
    """Saves `state`; returns once the arrays have left the device.

    Args:
      step: updates so far.
      state: the arrays.
      manifest: JSON values to keep with them.
      metric: how good this very state is, lower is better; None where nobody
        measured it. A metric that is not finite is none.
      one_by_one: take the memory of about one array more, and no more, for as
        long; the state must not be given away until `wait` returns.

    Raises:
      OSError: this save, or the one before it, could not be written.
      DamageError: the save before it could not be read back, the folder was
        removed, or another process failed.
    """
    self.wait()
    manifest = manifest | {
      'step': step,
      'metric': _finite(metric),
      'arrays': storage.shapes(state),
    }
    self._make_draft(step)
    # Orbax lets the processes wait for each other before it looks at `draft`.
    draft = self._folders.draft(step)
    file = draft / manifest_lib.STATE
    writing = storage.Writing(file, state, one_by_one=one_by_one)
    save = saving.Save(self.path(step), draft, writing, manifest)
    self._pending = self._worker.submit(save.finish, self._prune)

  def _make_draft(self, step: int):
    """The folder to write into, by the first process; raises on all."""
    failure = None
    if jax.process_index() == 0:
      try:
        self._folders.make_draft(step)
      except FileNotFoundError:
        parent = self._folders.directory.parent
        failure = DamageError(f'{parent} was removed')
      except OSError as error:
        failure = error
    _raise_together(failure)

  def _prune(self):
    steps = self.steps()
    keep: set[int | None] = set(steps[-self._keep_last :])
    if self._keep_best:
      keep.add(self.best())
    for step in steps:
      if step not in keep:
        self._folders.delete(step)

  def wait(self):
    """Returns when the last save is on disk; raises what it raised.

    All processes make the call, and all raise where one does.
    """
    if self._pending is not None:
      pending, self._pending = self._pending, None
      _raise_together(pending.exception())

  def close(self):
    """Waits, and lets the background thread go.

    Also where the other processes do something else, such as after an error.
    """
    try:
      if self._pending is not None:
        pending, self._pending = self._pending, None
        pending.result()
    finally:
      self._worker.shutdown()

  def attach(self, step: int, values: dict[str, Any], metric: float | None):
    """Adds what is known since to the manifest of the checkpoint just saved.

    Written in one piece, so a reader sees the old manifest or the new one.
    After `wait`; the first process's call counts.

    Raises:
      DamageError: its manifest is no longer there.
    """
    self.wait()
    if jax.process_index() == 0:
      manifest = self.manifest(step) | values | {'metric': _finite(metric)}
      manifest_lib.write(self.path(step), manifest)
      self._prune()

  def holds(self, step: int) -> bool:
    """Whether every process sees the checkpoint of a step."""
    return not _anywhere(step not in self.steps())

  def agreed_newest(self) -> int | None:
    """The newest step, as the first process sees it."""
    return _of_first(max(self.steps(), default=None))

  def agreed_best(self) -> int | None:
    """The step of the lowest metric, as the first process sees it."""
    return _of_first(self.best())

  def restore(
    self, abstract: Any, step: int | None = None, *, set_aside: bool = True
  ) -> Restored | None:
    """The newest whole checkpoint (or that of `step`); None if none was saved.

    A damaged one is reported and the one before it is used. All processes
    restore the same. Arrays of floats are converted to the type wanted.

    Args:
      abstract: ShapeDtypeStructs with the shardings to restore to.
      step: only this one.
      set_aside: renames the damaged ones to `<step>.damaged`, once an older
        one could be restored; without one nothing is changed.

    Raises:
      MismatchError: it holds other arrays than `abstract`.
      DamageError: `step` was asked for and is damaged, or all are.
    """

    def load(number: int, manifest: dict[str, Any]) -> Callable[[], Any]:
      self._match(number, manifest['arrays'], storage.shapes(abstract))
      return lambda: storage.load(self._arrays(number), abstract)

    return self._restore(load, step, set_aside)

  def restore_arrays(
    self,
    select: Callable[[dict[str, str]], dict[str, jax.ShapeDtypeStruct]],
    step: int | None = None,
    *,
    set_aside: bool = False,
  ) -> Restored | None:
    """Like `restore`, but some of the arrays alone, by name.

    The state of what is returned is a dict.

    Args:
      select: what to restore, with its sharding, of arrays of these types and
        shapes.
      step: only this one.
      set_aside: see `restore`.

    Raises:
      MismatchError: an array is missing, or has another shape.
      DamageError: `step` was asked for and is damaged, or all are.
    """

    def load(number: int, manifest: dict[str, Any]) -> Callable[[], Any]:
      saved = manifest['arrays']
      wanted = select(saved)
      present = {name: saved[name] for name in wanted if name in saved}
      self._match(number, present, storage.shapes(wanted))
      return lambda: storage.load_arrays(self._arrays(number), wanted)

    return self._restore(load, step, set_aside)

  def _restore(
    self,
    load: Callable[[int, dict[str, Any]], Callable[[], Any]],
    step: int | None,
    set_aside: bool,
  ) -> Restored | None:
    """Restores what `load` makes of the newest checkpoint that is whole.

    Args:
      load: given a step and its manifest, what reads the arrays; raises
        MismatchError where they are not those wanted.
      step: only this one.
      set_aside: see `restore`.
    """
    step = _of_first(step)
    damaged: dict[int, DamageError | None] = {}
    while True:
      candidate = step
      if step is None:
        steps = [number for number in self.steps() if number not in damaged]
        candidate = _of_first(max(steps, default=None))
      if candidate is None:
        if not damaged:
          return None
        raise DamageError(
          f'every checkpoint in {self._folders.directory} is damaged (steps '
          f'{", ".join(map(str, sorted(damaged)))})'
        )
      damage, manifest, state = None, {}, None
      try:
        manifest = self.manifest(candidate)
        manifest_lib.verify(self.path(candidate), manifest)
      except DamageError as error:
        damage = error
      if not _anywhere(damage is not None):
        read = load(candidate, manifest)
        try:
          state = read()
        except storage.UnreadableError as error:
          damage = DamageError(f'{manifest_lib.STATE} {error}')
        if not _anywhere(damage is not None):
          break
      if step is not None:
        raise damage or DamageError('as another process says')
      damaged[candidate] = damage
      # A run may remove it while it is read for an evaluation.
      if damage is not None and self.path(candidate).exists():
        logging.error(
          'checkpoint %s is damaged (%s)', self.path(candidate), damage
        )
    if set_aside and jax.process_index() == 0:
      for number in damaged:
        self._folders.set_aside(number)
    return Restored(candidate, state, manifest)

  def _match(self, step: int, saved: dict[str, str], wanted: dict[str, str]):
    converted = []
    for name in sorted(saved.keys() | wanted.keys()):
      if saved.get(name) == wanted.get(name):
        continue
      if not storage.is_convertible(saved.get(name, ''), wanted.get(name, '')):
        raise MismatchError(
          f'{self.path(step)} holds another model: {name} is '
          f'{saved.get(name, "absent")} there and '
          f'{wanted.get(name, "absent")} in this config'
        )
      converted.append(name)
    if converted:
      name = converted[0]
      logging.info(
        '%s: converting %d of %d arrays to the types of this config, such as '
        '%s from %s to %s',
        self.path(step),
        len(converted),
        len(wanted),
        name,
        saved[name],
        wanted[name],
      )


def _finite(metric: Any) -> float | None:
  """The metric if it can be compared, or None."""
  if isinstance(metric, (int, float)) and math.isfinite(metric):
    return float(metric)
  return None


def _of_first(step: int | None) -> int | None:
  """The first process's `step`, on all."""
  if jax.process_count() == 1:
    return step
  number = np.int32(-1 if step is None else step)
  agreed = int(multihost_utils.broadcast_one_to_all(number))
  return None if agreed < 0 else agreed


def _anywhere(flag: bool) -> bool:
  """Whether `flag` is true on any process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.int32(flag))))


def _raise_together(error: BaseException | None):
  """Raises a process's own error, or on the others that there was one."""
  if not _anywhere(error is not None):
    return
  raise error or DamageError('another process cannot save; see its message')
