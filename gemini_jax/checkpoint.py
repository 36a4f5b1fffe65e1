"""Checkpoints: the only user of Orbax; knows nothing else of ours.

A checkpoint is a folder `checkpoints/<step>` with the arrays in `state` and,
written last, `manifest.json`: what the caller put in, the shape of every
array and the checksum of every file. A folder without a manifest was cut off
while it was written and does not count.

Of several processes each writes its own arrays into the folder, which they
share, and reads back a part of the files; the first does the rest. All of
them make the same calls.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import shutil
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

MANIFEST = 'manifest.json'
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
    """Keeps the `keep_last` newest and the one of the lowest metric."""
    self._directory = pathlib.Path(directory).absolute()
    self._keep_last = keep_last
    self._keep_best = keep_best
    self._worker = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future | None = None

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    if not self._directory.is_dir():
      return []
    return sorted(
      int(path.parent.name)
      for path in self._directory.glob(f'*/{MANIFEST}')
      if path.parent.name.isdigit()
    )

  def path(self, step: int) -> pathlib.Path:
    """The folder of one checkpoint."""
    return self._directory / f'{step:08d}'

  def manifest(self, step: int) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
      DamageError: it is not readable.
    """
    try:
      manifest = json.loads((self.path(step) / MANIFEST).read_text())
      checksum = manifest.pop('checksum')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise DamageError(f'{MANIFEST} is not readable: {error!r}') from error
    if checksum != zlib.crc32(_encode(manifest)):
      raise DamageError(f'{MANIFEST} has changed since it was written')
    return manifest

  def best(self) -> int | None:
    """The step of the lowest metric, if any checkpoint has one."""
    scored = []
    for step in self.steps():
      try:
        metric = self.manifest(step).get('metric')
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
    """Saves `state`; returns once the arrays have left the device."""
    self.wait()
    path = self.path(step)
    manifest = manifest | {
      'step': step,
      'metric': metric,
      'arrays': _shapes(state),
    }
    if jax.process_index() == 0:
      if path.exists():
        shutil.rmtree(path)
      path.mkdir(parents=True)
    # Orbax lets the processes wait for each other before it looks at `path`.
    writing = ocp.save_async(str(path / 'state'), state)
    self._pending = self._worker.submit(
      self._finish, path, writing, manifest, next(_SERIAL)
    )

  def _finish(
    self, path: pathlib.Path, writing: Any, manifest: dict, serial: int
  ):
    """On every process, in its background thread."""
    barrier = multihost.get_barrier_sync_fn()
    wait = lambda name: barrier(
      key=f'{name} of save {serial}', timeout_ms=_BARRIER_MILLISECONDS
    )
    # Orbax returns on any process once the arrays of all are in the files.
    writing.result()
    names = sorted(
      str(file.relative_to(path))
      for file in (path / 'state').rglob('*')
      if file.is_file()
    )
    files = {
      name: [(path / name).stat().st_size, _checksum(path / name)]
      for name in _share(names)
    }
    if jax.process_index() > 0:
      _part(path, jax.process_index()).write_bytes(_encode(files))
    wait('files')
    if jax.process_index() == 0:
      for process in range(1, jax.process_count()):
        part = _part(path, process)
        files |= json.loads(part.read_bytes())
        part.unlink()
      if sorted(files) != names:
        raise OSError(f'the processes do not see the same files in {path}')
      self._write_manifest(path, manifest | {'files': files})
      self._prune()
    wait('manifest')

  def _write_manifest(self, path: pathlib.Path, manifest: dict):
    manifest['checksum'] = zlib.crc32(_encode(manifest))
    draft = path / f'{MANIFEST}.draft'
    with draft.open('wb') as file:
      file.write(_encode(manifest))
      file.flush()
      os.fsync(file.fileno())
    draft.replace(path / MANIFEST)

  def _prune(self):
    steps = self.steps()
    keep: set[int | None] = set(steps[-self._keep_last :])
    if self._keep_best:
      keep.add(self.best())
    for step in steps:
      if step not in keep:
        # Without its manifest a half-removed folder does not count.
        (self.path(step) / MANIFEST).unlink()
        shutil.rmtree(self.path(step))

  def wait(self):
    """Returns when the last save is on disk; raises what it raised."""
    if self._pending is not None:
      self._pending.result()
      self._pending = None

  def close(self):
    """Waits, and lets the background thread go."""
    self.wait()
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
      manifest = self.manifest(step) | values | {'metric': metric}
      self._write_manifest(self.path(step), manifest)
      self._prune()

  def clean(self):
    """Removes what an interrupted save left behind."""
    for path in self._directory.glob('*'):
      unfinished = path.name.isdigit() and not (path / MANIFEST).exists()
      if unfinished and path.is_dir():
        logging.warning('removing the unfinished checkpoint %s', path)
        shutil.rmtree(path)

  def restore(
    self, abstract: Any, step: int | None = None, *, repair: bool = True
  ) -> Restored | None:
    """The newest whole checkpoint (or that of `step`), or None.

    A damaged one is reported, set aside as `<step>.damaged`, and the one
    before it is used. All processes restore the same.

    Args:
      abstract: ShapeDtypeStructs with the shardings to restore to.
      step: only this one.
      repair: set a damaged one aside. False for reading what another process
        may be writing: nothing is changed, and a checkpoint that is removed
        while it is read is passed over like a damaged one.

    Raises:
      MismatchError: it holds other arrays than `abstract`.
      DamageError: `step` was asked for and is damaged.
    """
    step = _of_first(step)
    passed_over: set[int] = set()
    while True:
      steps = (own for own in self.steps() if own not in passed_over)
      candidate = _of_first(max(steps, default=None))
      candidate = candidate if step is None else step
      if candidate is None:
        return None
      damage, manifest = None, {}
      try:
        manifest = self.manifest(candidate)
        self._verify(candidate, manifest)
      except DamageError as error:
        damage = error
      if not _anywhere(damage is not None):
        self._match(candidate, manifest, abstract)
        try:
          state = ocp.load(str(self.path(candidate) / 'state'), abstract)
        except (OSError, ValueError, KeyError) as error:
          # Orbax and TensorStore have several errors for a missing file.
          if repair or (self.path(candidate) / MANIFEST).exists():
            raise
          damage = DamageError(f'it was removed: {error}')
        else:
          return Restored(candidate, state, manifest)
      if step is not None:
        raise damage or DamageError('as another process says')
      if repair:
        self._set_aside(candidate, damage)
        continue
      passed_over.add(candidate)
      if candidate in self.steps():
        logging.error(
          'checkpoint %s is damaged (%s); using the one before it',
          self.path(candidate),
          damage,
        )

  def _set_aside(self, step: int, damage: DamageError | None):
    """Told by those who saw the damage, done by the first process."""
    path = self.path(step)
    aside = path.with_name(f'{path.name}.damaged')
    if damage is not None:
      logging.error(
        'checkpoint %s is damaged (%s); set aside as %s, using the one '
        'before it',
        path,
        damage,
        aside.name,
      )
    if jax.process_index() == 0:
      shutil.rmtree(aside, ignore_errors=True)
      path.rename(aside)

  def _verify(self, step: int, manifest: dict[str, Any]):
    """Reads this process's part of the files back."""
    for name in _share(sorted(manifest['files'])):
      size, checksum = manifest['files'][name]
      file = self.path(step) / name
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

  def _match(self, step: int, manifest: dict[str, Any], abstract: Any):
    saved, wanted = manifest['arrays'], _shapes(abstract)
    for name in sorted(saved.keys() | wanted.keys()):
      if saved.get(name) != wanted.get(name):
        raise MismatchError(
          f'{self.path(step)} holds another model: {name} is '
          f'{saved.get(name, "absent")} there and '
          f'{wanted.get(name, "absent")} in this config'
        )


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


def _shapes(tree: Any) -> dict[str, str]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      f'{leaf.dtype}{list(leaf.shape)}'
    )
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _encode(manifest: dict[str, Any]) -> bytes:
  return json.dumps(manifest, indent=1).encode()


def _checksum(path: pathlib.Path) -> int:
  value = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      value = zlib.crc32(chunk, value)
  return value
