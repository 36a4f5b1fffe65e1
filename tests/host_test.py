"""Paths of a user, and where caches go when there is no home."""

import os
import pathlib
import tempfile

import pytest

from gemini_jax import host


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  host._temporary_folder.cache_clear()
  yield
  host._temporary_folder.cache_clear()


def test_a_home_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/homes/a')
  assert host.expand_path('~/x') == pathlib.Path('/homes/a/x')
  assert host.expand_path(pathlib.Path('~')) == pathlib.Path('/homes/a')
  assert host.expand_path('x/~/y') == pathlib.Path('x/~/y')
  assert host.expand_path('~nobody_here/x') == pathlib.Path('~nobody_here/x')


def test_caches_are_in_the_home(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  expected = tmp_path / '.cache/gemini_jax/xla'
  assert host.cache_folder('xla') == expected and expected.is_dir()
  monkeypatch.setenv('XDG_CACHE_HOME', f'{tmp_path}/other')
  assert host.cache_folder('xla') == tmp_path / 'other/gemini_jax/xla'


def test_without_a_home_they_are_temporary(monkeypatch, tmp_path, caplog):
  # Nobody has this number.
  monkeypatch.delenv('HOME')
  monkeypatch.setattr(os, 'getuid', lambda: 12345678)
  folder = host.cache_folder('tokens')
  assert folder.parent.parent == tmp_path and folder.parent.is_dir()
  assert host.cache_folder('xla').parent == folder.parent
  assert caplog.text.count('no home folder is known') == 1


def test_where_nothing_can_be_made_they_are_temporary(
  monkeypatch, tmp_path, caplog
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('HOME', str(tmp_path / 'file'))
  folder = host.cache_folder('tokens')
  assert folder.parent.parent == tmp_path
  assert 'cannot be made: Not a directory' in caplog.text
  # Nor a temporary one: the path says where it would have been.
  host._temporary_folder.cache_clear()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'file'))
  folder = host.cache_folder('tokens')
  assert folder == tmp_path / 'file/.cache/gemini_jax/tokens'
