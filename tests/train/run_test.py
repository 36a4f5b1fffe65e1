"""What a run is made of, and which folders it refuses."""

import dataclasses
import json
import logging
import os
import shutil

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


def save(run, step, manifest=None, metric=1.0):
  """A checkpoint of zeros."""
  state = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
    run.abstract,
  )
  data = {'fingerprint': {'tokenizer': run.tokenizer.fingerprint}}
  run.checkpoints.save(step, state, manifest or {'data': data}, metric)
  run.checkpoints.wait()
  run.write_config()


def test_opened_again_it_is_the_same(config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  assert not (tmp_path / 'run' / 'config.json').exists()
  run.write_config()
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
    ('optimizer.learning_rate', 0.1),
    ('generate.temperature', 0.1),
  ):
    changed = tiny.replace(config, path, value)
    caplog.clear()
    with caplog.at_level(logging.INFO):
      run_lib.open_run(changed, tmp_path / 'run', create=False)
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
      run_lib.open_run(
        tiny.replace(config, path, value), tmp_path / 'run', create=True
      )


def test_a_forgotten_flag_of_the_optimizer_is_named(config, tmp_path):
  """Where it changes what a state of training is made of."""
  save(run_lib.open_run(config, tmp_path / 'run', create=True), 1)
  changed = tiny.replace(config, 'optimizer.frozen', '^token/')
  with pytest.raises(config_lib.ConfigError) as error:
    run_lib.open_run(changed, tmp_path / 'run', create=False)
  assert str(error.value) == (
    f'--workdir={tmp_path / "run"} holds another state of training: '
    'optimizer.frozen is  there and ^token/ here; use another --workdir or the '
    'same values'
  )


@pytest.mark.parametrize('create', [True, False])
def test_a_changed_tokenizer_is_refused(config, tmp_path, create):
  """One bit of it: another character has the id."""
  config = tiny.replace(config, 'tokenizer.kind', 'characters')
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
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
      run_lib.open_run(config, tmp_path / 'run', create=create)
  file.unlink()
  file.write_bytes(content)
  run_lib.open_run(config, tmp_path / 'run', create=create)


def test_what_is_refused_is_not_kept(config, tmp_path):
  """config.json stays that of the checkpoints."""
  save(run_lib.open_run(config, tmp_path / 'run', create=True), 1)
  file = tmp_path / 'run' / 'config.json'
  before = file.read_bytes()
  changed = tiny.replace(config, 'train.num_steps', 30)
  again = run_lib.open_run(changed, tmp_path / 'run', create=True)
  assert file.read_bytes() == before
  again.write_config()
  assert config_lib.read(file).train.num_steps == 30


def test_a_config_that_cannot_be_written(config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  (tmp_path / 'run' / 'config.json').mkdir()
  with pytest.raises(
    config_lib.ConfigError, match=r'config\.json cannot be wr'
  ):
    run.write_config()


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
  with pytest.raises(config_lib.ConfigError, match='no checkpoint of'):
    run.restore('best')
  with pytest.raises(config_lib.ConfigError, match='every checkpoint'):
    run.restore()


def test_no_checkpoint_was_validated(config, tmp_path):
  """The best of none is not the newest."""
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  with pytest.raises(config_lib.ConfigError, match='holds no checkpoint'):
    run.restore('best')
  save(run, 1, metric=None)
  with pytest.raises(
    config_lib.ConfigError, match=r'generate\.checkpoint=best: no checkpoint'
  ):
    run.restore('best')
  assert run.restore().step == 1


def test_a_folder_that_cannot_hold_checkpoints(config, tmp_path):
  with pytest.raises(config_lib.ConfigError, match='cannot hold checkpoints'):
    run_lib.open_run(config, tmp_path / 'a\\b', create=True)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer'])
@pytest.mark.parametrize('kind', ['fifo', 'device'])
def test_what_is_no_file_is_not_read(name, kind, config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  path = tmp_path / 'run' / name
  path.unlink()
  os.mkfifo(path) if kind == 'fifo' else path.symlink_to('/dev/zero')
  with pytest.raises(
    config_lib.ConfigError, match=f'{name}.*not a regular file'
  ):
    run_lib.open_run(config, tmp_path / 'run', create=True)


@pytest.mark.parametrize(
  'values',
  [
    {},
    {'data': {}},
    {'metrics_bytes': '0'},
    {'metrics_bytes': -1},
    {'results': [1.0]},
    {'results': {'a': 'b'}},
    {'config': 3},
    {'config': {'train': 3}},
    {'observed': 'x'},
  ],
)
def test_a_checkpoint_that_no_training_saved(values, config, tmp_path):
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  data = {'fingerprint': {}, 'next_batch': 0}
  right = {'data': data, 'metrics_bytes': 0, 'results': {}}
  save(run, 1, right)
  assert run.resume().step == 1
  save(run, 2, right | values if values else {})
  with pytest.raises(config_lib.ConfigError, match='cannot be gone on from'):
    run.resume()


@pytest.mark.parametrize('which', ['latest', 'best'])
def test_reading_while_the_run_removes_checkpoints(
  which, config, tmp_path, monkeypatch
):
  """The one that is being read goes, at any moment; a newer one is there."""
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  save(run, 1)
  reader = run_lib.open_run(config, tmp_path / 'run', create=False)
  moments = []

  def removed_after(owner, name):
    function = getattr(owner, name)

    def removing(*args, **kwargs):
      result = function(*args, **kwargs)
      moments.append(name)
      step = run.checkpoints.steps()[-1]
      if step < 3:
        save(run, step + 1)
        shutil.rmtree(run.checkpoints.path(step))
      return result

    monkeypatch.setattr(owner, name, removing)

  removed_after(reader.checkpoints, 'manifest' if which == 'latest' else 'best')
  removed_after(reader.checkpoints, '_match')
  assert reader.restore(which).step == 3
  assert '_match' in moments
  assert sorted(path.name for path in (tmp_path / 'run/checkpoints').iterdir())[
    -1:
  ] == ['00000003']


def test_reading_changes_nothing(config, tmp_path):
  """A damaged checkpoint is passed over, and set aside by training alone."""
  run = run_lib.open_run(config, tmp_path / 'run', create=True)
  for step in (1, 2):
    save(run, step)
  manifest = run.checkpoints.path(2) / 'manifest.json'
  manifest.write_text(manifest.read_text().replace('1', '2', 1))
  (tmp_path / 'run/checkpoints/00000003').mkdir()
  names = lambda: sorted(path.name for path in tmp_path.rglob('*'))
  before = names()
  reader = run_lib.open_run(config, tmp_path / 'run', create=False)
  assert reader.restore().step == 1
  assert names() == before


def test_the_mesh_is_checked_before_the_data(config, tmp_path):
  config = tiny.replace(config, 'data.train', ('text:/nowhere/*.txt',))
  config = dataclasses.replace(
    config, parallel=config_lib.Parallel(data=1, tensor=8)
  )
  with pytest.raises(config_lib.ConfigError, match=r'parallel\.tensor=8 does'):
    run_lib.open_run(config, tmp_path / 'run', create=True)
  assert not (tmp_path / 'run').exists()
