"""The folders of checkpoints: `<step>`, and what their names can end in."""

import logging
import pathlib
import re
import shutil

from gemini_jax.checkpoint import manifest as manifest_lib
from gemini_jax.checkpoint import storage

# Endings of folders that are no checkpoints: one that is being written, one
# that is being deleted, one that could not be read.
_UNFINISHED, _REMOVED, _DAMAGED = '.unfinished', '.removed', '.damaged'
# What lay in a checkpoint without a manifest before `.unfinished` was used.
_LEFTOVER = re.compile(
  rf'{manifest_lib.STATE}(\.orbax-checkpoint-tmp.*)?|'
  rf'{manifest_lib.FILE}\.draft|checksums\.\d+'
)


class Folders:
  """The folders in a directory; those of other names are left alone."""

  def __init__(self, directory: pathlib.Path):
    self.directory = directory

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    return sorted(
      int(path.name)
      for path in self._all()
      if _is_step(path.name) and (path / manifest_lib.FILE).exists()
    )

  def _all(self) -> list[pathlib.Path]:
    try:
      return sorted(path for path in self.directory.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
      return []

  def path(self, step: int) -> pathlib.Path:
    """The folder of one checkpoint."""
    return self.directory / f'{step:08d}'

  def has_leftovers(self) -> bool:
    """Whether a save was begun here that did not end."""
    return any(
      path.suffix == _UNFINISHED or _is_step(path.name) for path in self._all()
    )

  def damaged(self) -> list[pathlib.Path]:
    """Checkpoints that were set aside."""
    return [
      path
      for path in self._all()
      if path.suffix == _DAMAGED and _is_step(path.stem)
    ]

  def make_draft(self, step: int) -> pathlib.Path:
    """An empty folder to write a checkpoint into.

    Raises:
      OSError: it cannot be made.
    """
    draft = self.draft(step)
    remove(draft)
    # The work folder itself is not made again where somebody removed it.
    self.directory.mkdir(exist_ok=True)
    draft.mkdir()
    return draft

  def draft(self, step: int) -> pathlib.Path:
    """Where a checkpoint is written."""
    return _with_ending(self.path(step), _UNFINISHED)

  def delete(self, step: int):
    """Removes a checkpoint; one that is removed by half does not count."""
    removed = _with_ending(self.path(step), _REMOVED)
    remove(removed)
    self.path(step).rename(removed)
    remove(removed)

  def set_aside(self, step: int):
    """Takes a damaged checkpoint's name from it."""
    path = self.path(step)
    aside = _with_ending(path, _DAMAGED)
    remove(aside)
    path.rename(aside)
    logging.error('%s is not used; set aside as %s', path, aside.name)

  def clean(self):
    """Removes what an interrupted save or removal left behind.

    Raises:
      PathError: a folder that is not ours is where a checkpoint would be.
    """
    for path in self._all():
      if _is_step(path.name):
        if (path / manifest_lib.FILE).exists():
          continue
        if path.is_symlink() or not all(
          _LEFTOVER.fullmatch(entry.name) for entry in path.iterdir()
        ):
          raise storage.PathError(
            f'{path} has the name of a checkpoint and is none, as it has no '
            f'{manifest_lib.FILE}; move it to another place'
          )
      elif path.suffix not in (_UNFINISHED, _REMOVED) or not _is_step(
        path.stem
      ):
        continue
      logging.warning('removing the unfinished checkpoint %s', path)
      remove(path)


def remove(path: pathlib.Path):
  """Removes a folder; of a link to one, only the link."""
  if path.is_symlink():
    path.unlink()
  elif path.exists():
    shutil.rmtree(path)


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
