"""Trees of arrays in folders: the only user of Orbax, and what it needs.

Orbax takes some characters of a path for patterns, raises what its libraries
raise, and logs a traceback in each of its threads.
"""

import contextlib
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils.epath import gpath
from orbax.checkpoint import multihost
from orbax.checkpoint import v1 as ocp

from gemini_jax import host

# Bytes of arrays that may leave the devices together.
_MIN_TRANSFER_BYTES = 1 << 26
# Of a file, where arrays are written one by one.
_FILE_BYTES = 1 << 25
# Of the part of an array that each of its copies gives. A part is sliced by a
# program of its own, whose compilation takes longer than a small array.
_MIN_PART_BYTES = 1 << 20
# Part of the paths of Orbax's files.
_ORBAX = f'{os.sep}orbax{os.sep}checkpoint{os.sep}'


class PathError(ValueError):
  """Nothing can be kept in this folder."""


class UnreadableError(Exception):
  """The files in a folder are not those of a tree."""


def check_path(folder: pathlib.Path):
  """Raises PathError where Orbax would write to another folder."""
  # TensorStore takes a backslash for a slash, etils /gs/x for gs://x, and
  # paths in TensorStore's specs are UTF-8.
  name = str(folder)
  printable = name.encode(errors='replace').decode()
  if '\\' in name or name != printable or str(_Path(name)) != name:
    raise PathError(
      f'{printable} cannot hold checkpoints: its name must be UTF-8 without '
      r'\ and must not begin with /gs, /s3, /az or /hf'
    )


class Writing:
  """A tree that is being written in the background."""

  def __init__(
    self, folder: pathlib.Path, tree: Any, *, one_by_one: bool = False
  ):
    """Begins; returns once the arrays have left the device.

    Args:
      folder: to write into.
      tree: the arrays.
      one_by_one: the host holds a copy of about one array at a time. Those that
        have not been written are still read later.

    Raises:
      OSError: the folder cannot be written.
    """
    context = ocp.Context()
    saving = context.array.saving
    saving.min_slice_bytes_for_replica_parallel = _MIN_PART_BYTES
    if one_by_one:
      sizes = [leaf.nbytes for leaf in jax.tree.leaves(tree)]
      # Orbax wants room for one byte more than the largest.
      limit = max(*sizes, _MIN_TRANSFER_BYTES) + 1
      context.memory.transfer_concurrent_bytes = limit
      context.memory.write_concurrent_bytes = limit
      # What is compressed waits in memory until a file is full.
      saving.ocdbt_target_data_file_size = _FILE_BYTES
    with _system_errors(), context:
      self._response = ocp.save_async(_Path(folder), tree)

  def result(self):
    """Returns once the arrays of all processes are in the files.

    Raises:
      OSError: they could not be written.
    """
    with _system_errors():
      self._response.result()


def load(folder: pathlib.Path, abstract: Any) -> Any:
  """The tree in a folder.

  Args:
    folder: where it lies.
    abstract: ShapeDtypeStructs with the shardings to restore to; floats are
      converted to the types wanted.

  Raises:
    UnreadableError: it is damaged.
  """
  with _reading():
    return ocp.load(_Path(folder), abstract)


def load_arrays(
  folder: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Some of the arrays of the tree in a folder, by name; no others are read.

  Args:
    folder: where it lies.
    wanted: what to restore, named as in `shapes`, with shardings; floats are
      converted to the types wanted.

  Raises:
    UnreadableError: it is damaged.
  """
  with _reading():
    tree = jax.tree_util.tree_map_with_path(
      lambda path, _: wanted.get(_name(path), ocp.PLACEHOLDER),
      ocp.metadata(_Path(folder)).metadata,
    )
    tree = ocp.load(_Path(folder), tree)
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {_name(path): leaf for path, leaf in leaves if _name(path) in wanted}


def stored_shapes(folder: pathlib.Path) -> dict[str, str]:
  """The `shapes` of the tree in a folder; no array's numbers are read.

  Raises:
    UnreadableError: it is damaged.
  """
  # Where something is not readable, Orbax tells less and logs why.
  with _reading():
    return shapes(ocp.metadata(_Path(folder)).metadata)


def shapes(tree: Any) -> dict[str, str]:
  """Type and shape of each array by path, such as `float32[2, 3]`."""
  return {
    _name(path): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def is_convertible(saved: str, wanted: str) -> bool:
  """Whether both are floats of the same shape, such as `float32[2, 3]`."""
  kinds, shapes = zip(
    *(text.partition('[')[::2] for text in (saved, wanted)), strict=True
  )
  return shapes[0] == shapes[1] and all(map(_is_floating, kinds))


def _is_floating(name: str) -> bool:
  try:
    return jnp.issubdtype(jnp.dtype(name), jnp.floating)
  except TypeError:
    return False


def barrier(name: str, milliseconds: int):
  """Waits for the other processes; each name serves once."""
  multihost.get_barrier_sync_fn()(key=name, timeout_ms=milliseconds)


def _short(error: BaseException) -> str:
  """The start of a message that may hold a whole TensorStore spec."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


class _Path(gpath.PosixGPath):
  """A folder for Orbax, which etils would take for part of a pattern.

  Orbax merges the processes' files by such a pattern. Where it matches
  nothing it leaves a checkpoint without arrays, and only logs it.
  """

  def glob(self, pattern: str) -> Iterator['_Path']:
    """Files in this folder, whose name may hold any character."""
    for path in pathlib.Path(os.fspath(self)).glob(pattern):
      yield type(self)(path)


# What Orbax and TensorStore raise for files that they did not write so: each
# was seen with changed files whose checksums had been forged. Nothing is lost
# should one have another cause: a checkpoint is set aside only if another can
# be restored in its place.
_UNREADABLE = (
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  RecursionError,
  FileNotFoundError,
  IsADirectoryError,
  NotADirectoryError,
)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
  """Raises what is raised for damaged files as UnreadableError."""
  try:
    with host.no_interrupt():
      yield
  except _UNREADABLE as error:
    raise UnreadableError(f'cannot be read: {_short(error)}') from error


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
  """Raises TensorStore's errors of the file system as OSError."""
  try:
    yield
  except ValueError as error:
    code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    if code is None:
      raise
    raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a line of the log is not a traceback of Orbax's threads.

  It logs one in each of them, and raises the exception to its caller too.
  """
  trace = record.exc_info[2] if record.exc_info else None
  while trace is not None:
    if _ORBAX in trace.tb_frame.f_code.co_filename:
      return False
    trace = trace.tb_next
  return True


def _tell_unraisable(unraisable: Any, tell: Any = sys.unraisablehook):
  """Leaves out what follows when Orbax stops at the first error.

  Its other reads are given up, and TensorStore's answers to them find no
  event loop to go to.
  """
  code = getattr(unraisable.object, 'cr_code', None)
  given_up = code is not None and _ORBAX in code.co_filename
  if not given_up and str(unraisable.exc_value) != 'Event loop is closed':
    tell(unraisable)


for _library in ('absl', 'asyncio'):
  logging.getLogger(_library).addFilter(_is_news)
sys.unraisablehook = _tell_unraisable
