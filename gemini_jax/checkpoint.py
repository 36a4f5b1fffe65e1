"""Checkpoints: the only user of Orbax; knows nothing else of ours.

A checkpoint is a folder `checkpoints/<step>` with the arrays in `state` and,
written last, `manifest.json`: what the caller put in, the shape of every
array and the checksum of every file. A folder without a manifest was cut off
while it was written and does not count.
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import zlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

MANIFEST = 'manifest.json'
_CHUNK = 1 << 24


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
    if path.exists():
      shutil.rmtree(path)
    manifest = manifest | {
      'step': step,
      'metric': metric,
      'arrays': _shapes(state),
    }
    path.mkdir(parents=True)
    writing = ocp.save_async(str(path / 'state'), state)
    self._pending = self._worker.submit(self._finish, path, writing, manifest)

  def _finish(self, path: pathlib.Path, writing: Any, manifest: dict):
    writing.result()
    manifest['files'] = {
      str(file.relative_to(path)): [file.stat().st_size, _checksum(file)]
      for file in sorted(path.rglob('*'))
      if file.is_file()
    }
    manifest['checksum'] = zlib.crc32(_encode(manifest))
    draft = path / f'{MANIFEST}.draft'
    with draft.open('wb') as file:
      file.write(_encode(manifest))
      file.flush()
      os.fsync(file.fileno())
    draft.replace(path / MANIFEST)
    self._prune()

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

  def clean(self):
    """Removes what an interrupted save left behind."""
    for path in self._directory.glob('*'):
      unfinished = path.name.isdigit() and not (path / MANIFEST).exists()
      if unfinished and path.is_dir():
        logging.warning('removing the unfinished checkpoint %s', path)
        shutil.rmtree(path)

  def restore(self, abstract: Any, step: int | None = None) -> Restored | None:
    """The newest whole checkpoint (or that of `step`), or None.

    A damaged one is reported, set aside as `<step>.damaged`, and the one
    before it is used.

    Args:
      abstract: ShapeDtypeStructs with the shardings to restore to.
      step: only this one.

    Raises:
      MismatchError: it holds other arrays than `abstract`.
      DamageError: `step` was asked for and is damaged.
    """
    for candidate in [step] if step is not None else self.steps()[::-1]:
      try:
        manifest = self.manifest(candidate)
        self._verify(candidate, manifest)
      except DamageError as error:
        if step is not None:
          raise
        path = self.path(candidate)
        aside = path.with_name(f'{path.name}.damaged')
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logging.error(
          'checkpoint %s is damaged (%s); set aside as %s, using the one '
          'before it',
          path,
          error,
          aside.name,
        )
        continue
      self._match(candidate, manifest, abstract)
      state = ocp.load(str(self.path(candidate) / 'state'), abstract)
      return Restored(candidate, state, manifest)
    return None

  def _verify(self, step: int, manifest: dict[str, Any]):
    for name, (size, checksum) in manifest['files'].items():
      file = self.path(step) / name
      if not file.is_file():
        raise DamageError(f'{name} is missing')
      if file.stat().st_size != size:
        raise DamageError(
          f'{name} has {file.stat().st_size} bytes, {size} were written'
        )
      if _checksum(file) != checksum:
        raise DamageError(f'{name} has changed since it was written')

  def _match(self, step: int, manifest: dict[str, Any], abstract: Any):
    saved, wanted = manifest['arrays'], _shapes(abstract)
    for name in sorted(saved.keys() | wanted.keys()):
      if saved.get(name) != wanted.get(name):
        raise MismatchError(
          f'{self.path(step)} holds another model: {name} is '
          f'{saved.get(name, "absent")} there and '
          f'{wanted.get(name, "absent")} in this config'
        )


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
