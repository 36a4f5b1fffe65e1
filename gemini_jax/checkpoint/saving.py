"""A checkpoint that is being written, in a background thread."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from gemini_jax.checkpoint import folders, storage
from gemini_jax.checkpoint import manifest as manifest_lib

# Longest wait for the other processes' part of a save. A process that dies is
# noticed sooner, by jax itself.
_BARRIER_MILLISECONDS = 3_600_000
# The names of barriers, of which jax allows each one once.
_SERIAL = itertools.count()


@dataclasses.dataclass(frozen=True)
class Save:
  """One save.

  Attributes:
    path: the folder that it gets in the end.
    draft: the one that it is written into.
    writing: the arrays on their way to the disk.
    manifest: what to keep with them, without the files.
    serial: a number of this save's own, the same on all processes.
  """

  path: pathlib.Path
  draft: pathlib.Path
  writing: storage.Writing
  manifest: dict[str, Any]
  serial: int = dataclasses.field(default_factory=lambda: next(_SERIAL))

  def finish(self, conclude: Callable[[], None]):
    """Returns on any process once the checkpoint of all is in its place.

    Where one process fails the others do not wait for it; each has to learn
    of it from the others, as `Checkpointer.wait` does.

    Args:
      conclude: what the first process does in the end.

    Raises:
      OSError: the files cannot be written.
      DamageError: they cannot be read back, or were removed meanwhile.
    """
    try:
      try:
        files = self._describe()
      finally:
        self._wait('files')
      if jax.process_index() == 0:
        self._put_in_place(files)
        conclude()
    # Whatever Orbax makes of a folder that is not there any more.
    except Exception as error:
      if self.draft.exists() or self.path.exists():
        raise
      raise manifest_lib.DamageError(
        f'{self.draft} was removed while it was written'
      ) from error
    finally:
      self._wait('manifest')

  def _wait(self, name: str):
    storage.barrier(f'{name} of save {self.serial}', _BARRIER_MILLISECONDS)

  def _describe(self) -> dict[str, list[int]]:
    """Size and checksum of this process's share of the files."""
    # Orbax returns on any process once the arrays of all are in the files.
    self.writing.result()
    files = manifest_lib.describe_files(self.draft)
    if jax.process_index() > 0:
      self._part(jax.process_index()).write_bytes(manifest_lib.encode(files))
    return files

  def _part(self, process: int) -> pathlib.Path:
    """Where a process leaves the checksums of its files for the first."""
    return self.draft / f'checksums.{process}'

  def _put_in_place(self, files: dict[str, list[int]]):
    """Writes the manifest of all processes' files; the name comes last."""
    for process in range(1, jax.process_count()):
      part = self._part(process)
      files |= json.loads(part.read_bytes())
      part.unlink()
    if sorted(files) != manifest_lib.file_names(self.draft):
      raise OSError(f'the processes do not see the same files in {self.path}')
    try:
      manifest_lib.verify_arrays(self.draft, self.manifest['arrays'])
    except manifest_lib.DamageError as error:
      raise manifest_lib.DamageError(
        f'{self.path} was written but cannot be read back: {error}'
      ) from error
    manifest_lib.write(self.draft, self.manifest | {'files': files})
    # Only one of the same step could be in the way.
    folders.remove(self.path)
    self.draft.rename(self.path)
