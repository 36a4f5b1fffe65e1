"""One training in a folder; what a killed one left behind locks nothing."""

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax.train import lock


def test_the_second_is_told_who_holds_it(tmp_path):
  with lock.Lock() as first:
    first.acquire(tmp_path)
    with (
      pytest.raises(
        config_lib.ConfigError,
        match=f'process {os.getpid()} on .* trains there',
      ),
      lock.Lock() as second,
    ):
      second.acquire(tmp_path)
    first.check()
  assert not list(tmp_path.iterdir())
  with lock.Lock() as third:
    third.acquire(tmp_path)


def test_a_killed_holder_is_succeeded_at_once(tmp_path):
  program = (
    'import os, pathlib, signal, sys\n'
    'from gemini_jax.train import lock\n'
    'lock.Lock().acquire(pathlib.Path(sys.argv[1]))\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n'
  )
  subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)], cwd=tiny.ROOT, check=False
  )
  assert (tmp_path / lock.FILE).stat().st_size > 0
  with lock.Lock() as own:
    own.acquire(tmp_path)
    own.check()


@pytest.mark.parametrize(
  'content', [b'', b'[' * 5000, b'{"pid": "x"}', b'\xff']
)
def test_a_holder_that_does_not_say_who_it_is(content, tmp_path):
  with (tmp_path / lock.FILE).open('wb') as file:
    file.write(content)
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    with (
      pytest.raises(
        config_lib.ConfigError, match='another process trains there'
      ),
      lock.Lock() as own,
    ):
      own.acquire(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
  def flock(*args):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with caplog.at_level(logging.WARNING), lock.Lock() as own:
    own.acquire(tmp_path)
    own.check()
  assert 'cannot be locked (No locks available)' in caplog.text


def test_what_is_no_file(tmp_path):
  os.mkfifo(tmp_path / lock.FILE)
  with (
    pytest.raises(config_lib.ConfigError, match='is not a file'),
    lock.Lock() as own,
  ):
    own.acquire(tmp_path)


@pytest.mark.parametrize('replaced', [False, True])
def test_a_folder_that_is_removed(replaced, tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  with lock.Lock() as own:
    own.acquire(folder)
    shutil.rmtree(folder)
    if replaced:
      folder.mkdir()
      other = lock.Lock()
      other.acquire(folder)
    with pytest.raises(lock.LostError, match='was removed or replaced'):
      own.check()
  if replaced:
    # It is not ours to remove.
    other.check()
    other.__exit__()


def test_a_lock_that_is_cleaned_away_is_made_again(tmp_path, caplog):
  """By whoever removes files that he does not know."""
  with lock.Lock() as own:
    own.acquire(tmp_path)
    (tmp_path / lock.FILE).unlink()
    own.check()
    assert 'was removed during the run; made again' in caplog.text
    with (
      pytest.raises(config_lib.ConfigError, match='trains there'),
      lock.Lock() as other,
    ):
      other.acquire(tmp_path)
