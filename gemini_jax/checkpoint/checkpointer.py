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
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gemini_jax import host
from gemini_jax.checkpoint import storage

MANIFEST = 'manifest.json'
_STATE = 'state'
# Endings of folders that are no checkpoints: one that is being written, one
# that is being deleted, one that could not be read.
_UNFINISHED, _REMOVED, _DAMAGED = '.unfinished', '.removed', '.damaged'
# What lay in a checkpoint without a manifest before `.unfinished` was used.
_LEFTOVER = re.compile(
  rf'{_STATE}(\.orbax-checkpoint-tmp.*)?|{MANIFEST}\.draft|checksums\.\d+'
)
_CHUNK = 1 << 24
# Longest wait for the other processes' part of a save. A process that dies is
# noticed sooner, by jax itself.
_BARRIER_MILLISECONDS = 3_600_000
# The names of barriers, of which jax allows each one once.
_SERIAL = itertools.count()


class MismatchError(ValueError):
  """The checkpoint holds other arrays than the run that reads it."""


class DamageError(Exception):
  """A file of a checkpoint is missing or not what was written."""


PathError = storage.PathError


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
    self._directory = pathlib.Path(directory).absolute()
    self._keep_last = keep_last
    self._keep_best = keep_best
    self._worker = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future | None = None
    storage.check_path(self._directory)

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    return sorted(
      int(path.name)
      for path in self._folders()
      if _is_step(path.name) and (path / MANIFEST).exists()
    )

  def _folders(self) -> list[pathlib.Path]:
    try:
      return sorted(path for path in self._directory.iterdir() if path.is_dir())
    except FileNotFoundError:
      return []

  def path(self, step: int) -> pathlib.Path:
    """The folder of one checkpoint."""
    return self._directory / f'{step:08d}'

  def has_leftovers(self) -> bool:
    """Whether a save was begun here that did not end."""
    return any(
      path.suffix == _UNFINISHED or _is_step(path.name)
      for path in self._folders()
    )

  def damaged(self) -> list[pathlib.Path]:
    """Checkpoints that were set aside."""
    return [
      path
      for path in self._folders()
      if path.suffix == _DAMAGED and _is_step(path.stem)
    ]

  def manifest(self, step: int) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
      DamageError: it is not readable, or not that of this step.
    """
    try:
      manifest = json.loads(host.read_file(self.path(step) / MANIFEST))
      checksum = manifest.pop('checksum')
    except (
      OSError,
      ValueError,
      KeyError,
      TypeError,
      AttributeError,
      RecursionError,
    ) as error:
      raise DamageError(f'{MANIFEST} is not readable: {error!r}') from error
    if checksum != zlib.crc32(_encode(manifest)):
      raise DamageError(f'{MANIFEST} has changed since it was written')
    _check_manifest(manifest, step)
    return manifest

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
  ):
    """Saves `state`; returns once the arrays have left the device.

    Args:
      step: updates so far.
      state: the arrays.
      manifest: JSON values to keep with them.
      metric: how good this very state is, lower is better; None where nobody
        measured it. A metric that is not finite is none.

    Raises:
      OSError: this save, or the one before it, could not be written.
      DamageError: the save before it could not be read back.
    """
    self.wait()
    path = self.path(step)
    manifest = manifest | {
      'step': step,
      'metric': _finite(metric),
      'arrays': storage.shapes(state),
    }
    draft = _with_ending(path, _UNFINISHED)
    if jax.process_index() == 0:
      _remove(draft)
      try:
        # The work folder itself is not made again where somebody removed it.
        self._directory.mkdir(exist_ok=True)
        draft.mkdir()
      except FileNotFoundError as error:
        raise DamageError(f'{self._directory.parent} was removed') from error
    # Orbax lets the processes wait for each other before it looks at `draft`.
    writing = storage.Writing(draft / _STATE, state)
    self._pending = self._worker.submit(
      self._finish, path, draft, writing, manifest, next(_SERIAL)
    )

  def _finish(
    self,
    path: pathlib.Path,
    draft: pathlib.Path,
    writing: Any,
    manifest: dict,
    serial: int,
  ):
    """On every process, in its background thread.

    Raises:
      OSError: the files cannot be written.
      DamageError: they cannot be read back, or were removed meanwhile.
    """
    try:
      self._write(path, draft, writing, manifest, serial)
    # Whatever Orbax makes of a folder that is not there any more.
    except Exception as error:
      if draft.exists() or path.exists():
        raise
      raise DamageError(f'{draft} was removed while it was written') from error

  def _write(
    self,
    path: pathlib.Path,
    draft: pathlib.Path,
    writing: Any,
    manifest: dict,
    serial: int,
  ):
    wait = lambda name: storage.barrier(
      f'{name} of save {serial}', _BARRIER_MILLISECONDS
    )
    # Orbax returns on any process once the arrays of all are in the files.
    writing.result()
    names = sorted(
      str(file.relative_to(draft))
      for file in (draft / _STATE).rglob('*')
      if file.is_file()
    )
    files = {
      name: [(draft / name).stat().st_size, _checksum(draft / name)]
      for name in _share(names)
    }
    if jax.process_index() > 0:
      _part(draft, jax.process_index()).write_bytes(_encode(files))
    wait('files')
    if jax.process_index() == 0:
      for process in range(1, jax.process_count()):
        part = _part(draft, process)
        files |= json.loads(part.read_bytes())
        part.unlink()
      if sorted(files) != names:
        raise OSError(f'the processes do not see the same files in {path}')
      try:
        _check_arrays(draft, manifest['arrays'])
      except DamageError as error:
        raise DamageError(
          f'{path} was written but cannot be read back: {error}'
        ) from error
      _write_manifest(draft, manifest | {'files': files})
      # Only one of the same step could be in the way.
      _remove(path)
      draft.rename(path)
      self._prune()
    wait('manifest')

  def _prune(self):
    steps = self.steps()
    keep: set[int | None] = set(steps[-self._keep_last :])
    if self._keep_best:
      keep.add(self.best())
    for step in steps:
      if step not in keep:
        # A half-removed folder must not count.
        removed = _with_ending(self.path(step), _REMOVED)
        _remove(removed)
        self.path(step).rename(removed)
        _remove(removed)

  def wait(self):
    """Returns when the last save is on disk; raises what it raised."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      pending.result()

  def close(self):
    """Waits, and lets the background thread go."""
    try:
      self.wait()
    finally:
      self._worker.shutdown()

  def attach(self, step: int, values: dict[str, Any], metric: float | None):
    """Adds what is known since to the manifest of the checkpoint just saved.

    Written in one piece, so a reader sees the old manifest or the new one.
    All processes make the call.

    Raises:
      DamageError: its manifest is no longer there.
    """
    self.wait()
    if jax.process_index() == 0:
      manifest = self.manifest(step) | values | {'metric': _finite(metric)}
      _write_manifest(self.path(step), manifest)
      self._prune()

  def clean(self):
    """Removes what an interrupted save or removal left behind.

    Raises:
      PathError: a folder that is not ours is where a checkpoint would be.
    """
    for path in self._folders():
      if _is_step(path.name):
        if (path / MANIFEST).exists():
          continue
        if path.is_symlink() or not all(
          _LEFTOVER.fullmatch(entry.name) for entry in path.iterdir()
        ):
          raise PathError(
            f'{path} has the name of a checkpoint and is none, as it has no '
            f'{MANIFEST}; move it to another place'
          )
      elif path.suffix not in (_UNFINISHED, _REMOVED) or not _is_step(
        path.stem
      ):
        continue
      logging.warning('removing the unfinished checkpoint %s', path)
      _remove(path)

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
      return lambda: storage.load(self.path(number) / _STATE, abstract)

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
      return lambda: storage.load_arrays(self.path(number) / _STATE, wanted)

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
          f'every checkpoint in {self._directory} is damaged (steps '
          f'{", ".join(map(str, sorted(damaged)))})'
        )
      damage, manifest, state = None, {}, None
      try:
        manifest = self.manifest(candidate)
        self._verify(candidate, manifest)
      except DamageError as error:
        damage = error
      if not _anywhere(damage is not None):
        read = load(candidate, manifest)
        try:
          state = read()
        except storage.UnreadableError as error:
          damage = DamageError(f'{_STATE} {error}')
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
        self._set_aside(number)
    return Restored(candidate, state, manifest)

  def _set_aside(self, step: int):
    path = self.path(step)
    aside = _with_ending(path, _DAMAGED)
    _remove(aside)
    path.rename(aside)
    logging.error('%s is not used; set aside as %s', path, aside.name)

  def _verify(self, step: int, manifest: dict[str, Any]):
    """Reads this process's part of the files back."""
    path = self.path(step)
    for folder, folders, files in os.walk(path / _STATE):
      for name in (*folders, *files):
        _check_kind(pathlib.Path(folder, name), path)
    for name in _share(sorted(manifest['files'])):
      size, checksum = manifest['files'][name]
      file = path / name
      if not file.is_file():
        raise DamageError(f'{name} is missing')
      try:
        actual = file.stat().st_size
        if actual != size:
          raise DamageError(f'{name} has {actual} bytes, {size} were written')
        if _checksum(file) != checksum:
          raise DamageError(f'{name} has changed since it was written')
      except FileNotFoundError as error:
        raise DamageError(f'{name} was removed while it was read') from error
    _check_arrays(path, manifest['arrays'])

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


def _is_step(name: str) -> bool:
  """Whether a folder is named as a checkpoint is."""
  return (
    name.isascii()
    and name.isdigit()
    and f'{int(name):08d}' == name
    and int(name) < 1 << 31
  )


def _with_ending(path: pathlib.Path, ending: str) -> pathlib.Path:
  return path.with_name(path.name + ending)


def _remove(path: pathlib.Path):
  """Removes a folder; of a link to one, only the link."""
  if path.is_symlink():
    path.unlink()
  elif path.exists():
    shutil.rmtree(path)


def _write_manifest(path: pathlib.Path, manifest: dict[str, Any]):
  # Encoded once: the caller may go on with what it gave.
  manifest = json.loads(_encode(manifest))
  manifest['checksum'] = zlib.crc32(_encode(manifest))
  host.replace_file(path / MANIFEST, _encode(manifest))


def _check_manifest(manifest: dict[str, Any], step: int):
  """What its checksum does not tell, since anybody can compute one."""
  files, arrays = manifest.get('files'), manifest.get('arrays')
  if manifest.get('step') != step:
    raise DamageError(
      f'{MANIFEST} is of step {manifest.get("step")!r}, not of {step}'
    )
  if not (
    isinstance(arrays, dict)
    and all(isinstance(shape, str) for shape in arrays.values())
  ):
    raise DamageError(f'{MANIFEST} does not tell the shapes of the arrays')
  if not (
    isinstance(files, dict)
    and all(
      isinstance(entry, list) and [type(x) for x in entry] == [int, int]
      for entry in files.values()
    )
  ):
    raise DamageError(
      f'{MANIFEST} does not tell size and checksum of the files'
    )
  for name in files:
    parts = pathlib.PurePosixPath(name).parts
    if parts[:1] != (_STATE,) or '..' in parts or '\0' in name:
      raise DamageError(f'{MANIFEST} names {name!r}, which is not its own')


def _check_kind(path: pathlib.Path, root: pathlib.Path):
  """Refuses what would be read for ever, or lies in another folder."""
  name = path.relative_to(root)
  if path.is_dir():
    if path.is_symlink():
      raise DamageError(f'{name} is a link to a folder')
    return
  try:
    host.check_regular(path)
  except OSError as error:
    raise DamageError(f'{name}: {error.strerror}') from error


def _check_arrays(path: pathlib.Path, arrays: dict[str, str]):
  """Opens every array in the files of a checkpoint, without its numbers.

  Raises:
    DamageError: they are not `arrays`.
  """
  try:
    stored = storage.stored_shapes(path / _STATE)
  except storage.UnreadableError as error:
    raise DamageError(f'{_STATE} {error}') from error
  for name in sorted(stored.keys() | arrays.keys()):
    if stored.get(name) != arrays.get(name):
      raise DamageError(
        f'{_STATE} holds {name} as {stored.get(name, "absent")}, '
        f'{arrays.get(name, "absent")} was written'
      )


def _finite(metric: Any) -> float | None:
  """The metric if it can be compared, or None."""
  if isinstance(metric, (int, float)) and math.isfinite(metric):
    return float(metric)
  return None


def _share(names: list[str]) -> list[str]:
  """The files that this process reads."""
  return names[jax.process_index() :: jax.process_count()]


def _part(path: pathlib.Path, process: int) -> pathlib.Path:
  """Where a process leaves the checksums of its files for the first."""
  return path / f'checksums.{process}'


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


def _encode(manifest: dict[str, Any]) -> bytes:
  return json.dumps(manifest, indent=1).encode()


def _checksum(path: pathlib.Path) -> int:
  value = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      value = zlib.crc32(chunk, value)
  return value
