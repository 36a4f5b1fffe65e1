"""What is opened to be read, and which folders are refused."""

import logging
import os
import shutil

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.models import build
from gemini_jax.train import session as session_lib


@pytest.fixture
def config(tmp_path):
  return tiny.parse(tmp_path)


def test_the_token_table_has_room_for_the_tokenizer(config):
  rows = lambda config, size: build.with_vocab(config, size).model.vocab_size
  assert rows(config, 1) == 64
  assert rows(config, 64) == 64
  assert rows(config, 65) == 128
  assert rows(tiny.replace(config, 'model.vocab_size', 70), 65) == 70


def test_what_may_change_and_what_may_not(config, tmp_path, caplog):
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  for path, value in (
    ('model.scan_layers', False),
    ('model.remat', True),
    ('model.remat_offload', ('attended',)),
    ('model.dropout', 0.1),
    ('train.num_steps', 30),
    ('optimizer.learning_rate', 0.1),
    ('generate.temperature', 0.1),
  ):
    changed = tiny.replace(config, path, value)
    caplog.clear()
    with caplog.at_level(logging.INFO):
      run_lib.open_run(changed, tmp_path / 'run')
    outputs = f'{path} was ' in caplog.text
    assert outputs == (not path.startswith('generate'))
  for path, value in (
    ('model.num_heads', 4),
    ('model.activation', 'silu'),
    ('tokenizer.kind', 'characters'),
  ):
    with pytest.raises(
      config_lib.ConfigError, match=f'holds another model: {path} is '
    ):
      run_lib.open_run(tiny.replace(config, path, value), tmp_path / 'run')


@pytest.mark.parametrize('opens', [run_lib.open_run, session_lib.open_session])
def test_a_changed_tokenizer_is_refused(config, tmp_path, opens):
  """One bit of it: another character has the id."""
  config = tiny.replace(config, 'tokenizer.kind', 'characters')
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  file = tmp_path / 'run' / 'tokenizer'
  content = file.read_bytes()
  for changed, message in (
    (content.replace(b'z', b'{'), 'is not the tokenizer that the model in'),
    (content[:-1], 'not a tokenizer'),
    (b'\x0a\x07', 'not a SentencePiece model'),
    (b'', 'not a SentencePiece model'),
    (None, 'tokenizer: not a regular file'),
  ):
    file.unlink()
    os.mkfifo(file) if changed is None else file.write_bytes(changed)
    with pytest.raises(config_lib.ConfigError, match=message):
      opens(config, tmp_path / 'run')
  file.unlink()
  file.write_bytes(content)
  opens(config, tmp_path / 'run')


def test_checkpoints_without_a_config_are_refused(config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  for content in ('{', None):
    path = tmp_path / 'run' / 'config.json'
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(
      config_lib.ConfigError, match=r'no readable config\.json'
    ):
      session_lib.open_session(config, tmp_path / 'run')


def test_the_best_checkpoint_is_damaged(config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  assert session.run.restore_params('best').step == 1
  path = tmp_path / 'run' / 'checkpoints' / '00000001' / 'manifest.json'
  path.write_text(path.read_text().replace('1', '2', 1))
  with pytest.raises(config_lib.ConfigError, match='no checkpoint of'):
    session.run.restore_params('best')
  with pytest.raises(config_lib.ConfigError, match='every checkpoint'):
    session.run.restore_params()


def test_no_checkpoint_was_validated(config, tmp_path):
  """The best of none is not the newest."""
  session = session_lib.open_session(config, tmp_path / 'run')
  with pytest.raises(config_lib.ConfigError, match='holds no checkpoint'):
    session.run.restore_params('best')
  tiny.save_zeros(session, 1, metric=None)
  with pytest.raises(
    config_lib.ConfigError, match=r'generate\.checkpoint=best: no checkpoint'
  ):
    session.run.restore_params('best')
  assert session.run.restore_params().step == 1


def test_a_folder_that_cannot_hold_checkpoints(config, tmp_path):
  with pytest.raises(config_lib.ConfigError, match='cannot hold checkpoints'):
    session_lib.open_session(config, tmp_path / 'a\\b')


@pytest.mark.parametrize('name', ['config.json', 'tokenizer'])
@pytest.mark.parametrize('kind', ['fifo', 'device'])
def test_what_is_no_file_is_not_read(name, kind, config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  path = tmp_path / 'run' / name
  path.unlink()
  os.mkfifo(path) if kind == 'fifo' else path.symlink_to('/dev/zero')
  with pytest.raises(
    config_lib.ConfigError, match=f'{name}.*not a regular file'
  ):
    session_lib.open_session(config, tmp_path / 'run')


@pytest.mark.parametrize('which', ['latest', 'best'])
def test_reading_while_the_run_removes_checkpoints(
  which, config, tmp_path, monkeypatch
):
  """The one that is being read goes, at any moment; a newer one is there."""
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  reader = run_lib.open_run(config, tmp_path / 'run')
  moments = []

  def removed_after(owner, name):
    function = getattr(owner, name)

    def removing(*args, **kwargs):
      result = function(*args, **kwargs)
      moments.append(name)
      step = session.run.checkpoints.steps()[-1]
      if step < 3:
        tiny.save_zeros(session, step + 1)
        shutil.rmtree(session.run.checkpoints.path(step))
      return result

    monkeypatch.setattr(owner, name, removing)

  removed_after(reader.checkpoints, 'manifest' if which == 'latest' else 'best')
  removed_after(reader.checkpoints, '_match')
  assert reader.restore_params(which).step == 3
  assert '_match' in moments
  assert sorted(path.name for path in (tmp_path / 'run/checkpoints').iterdir())[
    -1:
  ] == ['00000003']


def test_reading_changes_nothing(config, tmp_path):
  """A damaged checkpoint is passed over, and set aside by training alone."""
  session = session_lib.open_session(config, tmp_path / 'run')
  for step in (1, 2):
    tiny.save_zeros(session, step)
  manifest = session.run.checkpoints.path(2) / 'manifest.json'
  manifest.write_text(manifest.read_text().replace('1', '2', 1))
  (tmp_path / 'run/checkpoints/00000003').mkdir()
  names = lambda: sorted(path.name for path in tmp_path.rglob('*'))
  before = names()
  reader = run_lib.open_run(config, tmp_path / 'run')
  assert reader.restore_params().step == 1
  assert names() == before
