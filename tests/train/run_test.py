"""What a run is made of, and which folders it refuses."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import pytest

import tiny
from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax.train import run as run_lib


@pytest.fixture
def config(tmp_path):
  file = tiny.experiment(tmp_path)
  argv = ['main', *tiny.arguments(file, tmp_path / 'run')]
  return command.parse(argv, {'workdir': None, 'mode': None}).config


def save(run, step):
  """A checkpoint of zeros."""
  state = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
    run.abstract,
  )
  run.checkpoints.save(step, state, {}, metric=1.0)
  run.checkpoints.wait()


def test_opened_again_it_is_the_same(config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  assert run.config.model.vocab_size == 320
  assert run.checkpoints.steps() == []
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config_lib.from_config_dict(written) == run.config
  again = run_lib.open_run(config, tmp_path / 'run', create=False)
  assert again.config == run.config
  assert again.tokenizer.fingerprint == run.tokenizer.fingerprint
  assert not list((tmp_path / 'run').glob('*.draft'))
  assert not (tmp_path / 'run' / '.writable').exists()


def test_the_token_table_has_room_for_the_tokenizer(config):
  rows = lambda config, size: run_lib.with_vocab(config, size).model.vocab_size
  assert rows(config, 1) == 64
  assert rows(config, 64) == 64
  assert rows(config, 65) == 128
  assert rows(tiny.replace(config, 'model.vocab_size', 70), 65) == 70


def test_the_text_of_the_token_table_is_the_tokenizers(config, tmp_path):
  """Behind it are padding and placeholders; older runs did not write it."""
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  assert run.config.model.text_vocab_size == run.config.model.text_rows == 259
  config = tiny.replace(config, 'model.text_vocab_size', 70)
  assert run_lib.with_vocab(config, 200).model.text_vocab_size == 70
  save(run, 1)
  path = tmp_path / 'run' / 'config.json'
  for edit in (lambda model: model.pop('text_vocab_size'), lambda model: None):
    written = json.loads(path.read_text())
    edit(written['model'])
    path.write_text(json.dumps(written))
    again = run_lib.open_run(
      tiny.replace(config, 'model.text_vocab_size', None),
      tmp_path / 'run',
      create=True,
    )
    assert again.config == run.config


def test_a_pattern_without_a_parameter_is_refused_before_data_is_read(
  config, tmp_path
):
  config = tiny.replace(config, 'optimizer.frozen', '^encodr/')
  config = tiny.replace(config, 'data.train', ('text:/nowhere/*',))
  with pytest.raises(config_lib.ConfigError, match=r'^optimizer\.frozen='):
    run_lib.open_run(config, tmp_path / 'run', create=True)
  assert not (tmp_path / 'run').exists()


def test_the_tokenizer_of_a_run_stays(config, tmp_path):
  """Other texts do not change the ids of a model that was trained."""
  config = tiny.replace(config, 'tokenizer.kind', 'characters')
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  (tmp_path / '0.txt').write_text('ΑΒΓΔ')
  again = run_lib.open_run(config, tmp_path / 'run', create=True)
  assert again.tokenizer.pieces == run.tokenizer.pieces
  (tmp_path / 'run' / 'tokenizer').unlink()
  with pytest.raises(config_lib.ConfigError, match='no tokenizer'):
    run_lib.open_run(config, tmp_path / 'run', create=True)


def test_what_may_change_and_what_may_not(config, tmp_path, caplog):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  for path, value in (
    ('model.scan_layers', False),
    ('model.remat', True),
    ('model.remat_offload', ('attended',)),
    ('model.dropout', 0.1),
    ('train.num_steps', 30),
    ('generate.temperature', 0.1),
  ):
    changed = tiny.replace(config, path, value)
    caplog.clear()
    with caplog.at_level(logging.INFO):
      run_lib.open_run(changed, tmp_path / 'run', create=False)
    said = f'{path} was ' in caplog.text
    assert said == (not path.startswith('generate'))
  for path, value in (
    ('model.num_heads', 4),
    ('model.activation', 'silu'),
    ('tokenizer.kind', 'characters'),
  ):
    with pytest.raises(
      config_lib.ConfigError, match=f'holds another model: {path} is '
    ):
      run_lib.open_run(
        tiny.replace(config, path, value), tmp_path / 'run', create=True
      )


def test_a_folder_of_an_earlier_version_has_the_defaults(config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  path = tmp_path / 'run' / 'config.json'
  then = json.loads(path.read_text())
  del then['model']['contrast_dim'], then['model']['image']['patch']
  del then['plan']
  path.write_text(json.dumps(then))
  run_lib.open_run(config, tmp_path / 'run', create=True)
  path.write_text(json.dumps(then))
  other = tiny.replace(config, 'model.image', config_lib.Image(patch=7))
  with pytest.raises(config_lib.ConfigError, match='holds another model'):
    run_lib.open_run(other, tmp_path / 'run', create=True)


def test_checkpoints_without_a_config_are_refused(config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  for content in ('{', None):
    path = tmp_path / 'run' / 'config.json'
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(
      config_lib.ConfigError, match=r'no readable config\.json'
    ):
      run_lib.open_run(config, tmp_path / 'run', create=True)


def test_the_best_checkpoint_is_damaged(config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  assert run.restore('best').step == 1
  path = tmp_path / 'run' / 'checkpoints' / '00000001' / 'manifest.json'
  path.write_text(path.read_text().replace('1', '2', 1))
  with pytest.raises(config_lib.ConfigError, match='holds no checkpoint'):
    run.restore('best')


def test_the_mesh_is_checked_before_the_data(config, tmp_path):
  config = tiny.replace(config, 'data.train', ('text:/nowhere/*.txt',))
  config = dataclasses.replace(
    config, parallel=config_lib.Parallel(data=1, tensor=8)
  )
  with pytest.raises(config_lib.ConfigError, match=r'parallel\.tensor=8 does'):
    run_lib.open_run(config, tmp_path / 'run', create=True)
  assert not (tmp_path / 'run').exists()
