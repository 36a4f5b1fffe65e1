"""One training at a time in a work folder.

The first process of a run holds an advisory lock on a file in the folder. The
system drops the lock when the process ends, however it ends; on NFS the server
does. A file that a killed run left behind therefore locks nothing.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
import stat
import time

from gemini_jax import config as config_lib
from gemini_jax import host

try:
  import fcntl
except ImportError:
  # Windows.
  fcntl = None

FILE = 'train.lock'
# What a file system without locks answers.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_HELD = (errno.EAGAIN, errno.EACCES)


class LostError(Exception):
  """The work folder was removed or replaced during the run."""


class Lock:
  """The lock of a work folder, from `acquire` to the end of the `with`."""

  def __init__(self):
    self._path: pathlib.Path | None = None
    self._descriptor = -1
    self._folder: os.stat_result | None = None

  def acquire(self, workdir: pathlib.Path):
    """Takes the lock.

    Raises:
      ConfigError: another process trains in this folder.
      OSError: the file cannot be made.
    """
    path = workdir / FILE
    flags = os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
    while True:
      descriptor = os.open(path, flags, 0o666)
      try:
        config_lib.check(
          stat.S_ISREG(os.fstat(descriptor).st_mode), f'{path} is not a file'
        )
        _lock(descriptor, workdir)
      except BaseException:
        os.close(descriptor)
        raise
      # The holder removes the file when it ends: it may have done so between
      # the two calls, and another process may have made a new one.
      if host.is_at(descriptor, path):
        break
      os.close(descriptor)
    self._path, self._descriptor = path, descriptor
    self._folder = os.stat(workdir)
    holder = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'start': time.strftime('%Y-%m-%d %H:%M:%S'),
    }
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())

  def check(self):
    """Sees that the folder is still the one that was locked.

    Where only the file of the lock was removed, it is made and locked again.
    Does nothing on the processes that hold no lock.

    Raises:
      LostError: the folder is another, or none.
      ConfigError: another process has locked it meanwhile.
    """
    path, folder = self._path, self._folder
    if path is None or folder is None:
      return
    try:
      same = os.path.samestat(os.stat(path.parent), folder)
    except OSError as error:
      if error.errno not in host.GONE:
        raise
      same = False
    if not same:
      raise LostError(
        f'{path.parent} was removed or replaced during the run; what was not '
        'copied elsewhere is lost'
      )
    if not host.is_at(self._descriptor, path):
      logging.warning('%s was removed during the run; made again', path)
      os.close(self._descriptor)
      self._path = None
      self.acquire(path.parent)

  def __enter__(self) -> 'Lock':
    return self

  def __exit__(self, *error: object):
    if self._path is None:
      return
    # While it is locked, so that nobody else's file is removed.
    with contextlib.suppress(OSError):
      if host.is_at(self._descriptor, self._path):
        self._path.unlink()
    os.close(self._descriptor)
    self._path = None


def _lock(descriptor: int, workdir: pathlib.Path):
  """Locks an open file; ConfigError if another process has locked it."""
  try:
    if fcntl is None:
      raise OSError(errno.ENOTSUP, 'this system has no flock')
    # Not lockf, whose locks go when the process closes any descriptor of the
    # file. On NFS, Linux makes a lock of the server from it.
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _HELD:
      raise config_lib.ConfigError(
        f'--workdir={workdir} is in use: {_holder(descriptor)} trains there; '
        'wait for it, stop it or use another --workdir'
      ) from error
    if error.errno not in _UNSUPPORTED:
      raise
    logging.warning(
      '%s cannot be locked (%s): do not start a second run there',
      workdir,
      error.strerror,
    )


def _holder(descriptor: int) -> str:
  """Who has locked the file, as it says itself."""
  try:
    values = json.loads(os.pread(descriptor, 4096, 0))
    return (
      f'process {int(values["pid"])} on {str(values["host"])[:255]!r} (since '
      f'{str(values["start"])[:19]})'
    )
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    # It has locked the file and not written yet.
    return 'another process'
