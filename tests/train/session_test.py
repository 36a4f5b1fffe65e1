"""What training adds to a run, and which folders it refuses."""

import dataclasses
import json

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.models import build
from gemini_jax.train import session as session_lib


@pytest.fixture
def config(tmp_path):
  return tiny.parse(tmp_path)


def test_opened_again_it_is_the_same(config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()
  session.write_config()
  assert session.run.config.model.vocab_size == 320
  assert session.run.checkpoints.steps() == []
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config_lib.from_config_dict(written) == session.run.config
  again = run_lib.open_run(config, tmp_path / 'run')
  assert again.config == session.run.config
  assert again.tokenizer.fingerprint == session.run.tokenizer.fingerprint
  assert not list((tmp_path / 'run').glob('*.draft'))
  assert not (tmp_path / 'run' / '.writable').exists()


def test_the_text_of_the_token_table_is_the_tokenizers(config, tmp_path):
  """Behind it are padding and placeholders; older runs did not write it."""
  session = session_lib.open_session(config, tmp_path / 'run')
  model = session.run.config.model
  assert model.text_vocab_size == model.text_rows == 259
  config = tiny.replace(config, 'model.text_vocab_size', 70)
  assert build.with_vocab(config, 200).model.text_vocab_size == 70
  tiny.save_zeros(session, 1)
  path = tmp_path / 'run' / 'config.json'
  for edit in (lambda model: model.pop('text_vocab_size'), lambda model: None):
    written = json.loads(path.read_text())
    edit(written['model'])
    path.write_text(json.dumps(written))
    again = session_lib.open_session(
      tiny.replace(config, 'model.text_vocab_size', None), tmp_path / 'run'
    )
    assert again.run.config == session.run.config


def test_a_pattern_without_a_parameter_is_refused_before_data_is_read(
  config, tmp_path
):
  config = tiny.replace(config, 'optimizer.frozen', '^encodr/')
  config = tiny.replace(config, 'data.train', ('text:/nowhere/*',))
  with pytest.raises(config_lib.ConfigError, match=r'^optimizer\.frozen='):
    session_lib.open_session(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_the_tokenizer_of_a_run_stays(config, tmp_path):
  """Other texts do not change the ids of a model that was trained."""
  config = tiny.replace(config, 'tokenizer.kind', 'characters')
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  (tmp_path / '0.txt').write_text('ΑΒΓΔ')
  again = session_lib.open_session(config, tmp_path / 'run')
  assert again.run.tokenizer.pieces == session.run.tokenizer.pieces
  (tmp_path / 'run' / 'tokenizer').unlink()
  with pytest.raises(config_lib.ConfigError, match='no tokenizer'):
    session_lib.open_session(config, tmp_path / 'run')


def test_a_forgotten_flag_of_the_optimizer_is_named(config, tmp_path):
  """Where it changes what a state of training is made of."""
  tiny.save_zeros(session_lib.open_session(config, tmp_path / 'run'), 1)
  changed = tiny.replace(config, 'optimizer.frozen', '^token/')
  with pytest.raises(config_lib.ConfigError) as error:
    session_lib.open_session(changed, tmp_path / 'run')
  # Who only reads the parameters need not know.
  run_lib.open_run(changed, tmp_path / 'run')
  assert str(error.value) == (
    f'--workdir={tmp_path / "run"} holds another state of training: '
    'optimizer.frozen is  there and ^token/ here; use another --workdir or the '
    'same values'
  )


def test_what_is_refused_is_not_kept(config, tmp_path):
  """config.json stays that of the checkpoints."""
  tiny.save_zeros(session_lib.open_session(config, tmp_path / 'run'), 1)
  file = tmp_path / 'run' / 'config.json'
  before = file.read_bytes()
  changed = tiny.replace(config, 'train.num_steps', 30)
  again = session_lib.open_session(changed, tmp_path / 'run')
  assert file.read_bytes() == before
  again.write_config()
  assert config_lib.read(file).train.num_steps == 30


def test_a_config_that_cannot_be_written(config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').mkdir()
  with pytest.raises(
    config_lib.ConfigError, match=r'config\.json cannot be wr'
  ):
    session.write_config()


def test_a_folder_of_an_earlier_version_has_the_defaults(config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  path = tmp_path / 'run' / 'config.json'
  then = json.loads(path.read_text())
  del then['model']['contrast_dim'], then['model']['image']['patch']
  del then['plan']
  path.write_text(json.dumps(then))
  session_lib.open_session(config, tmp_path / 'run')
  path.write_text(json.dumps(then))
  other = tiny.replace(config, 'model.image', config_lib.Image(patch=7))
  with pytest.raises(config_lib.ConfigError, match='holds another model'):
    session_lib.open_session(other, tmp_path / 'run')


def test_a_checkpoint_that_no_training_saved(config, tmp_path):
  session = session_lib.open_session(config, tmp_path / 'run')
  data = {'fingerprint': {}, 'next_batch': 0}
  right = {'data': data, 'metrics_bytes': 0, 'results': {}}
  tiny.save_zeros(session, 1, right)
  assert session.resume().step == 1
  for step, manifest in enumerate(
    (
      {},
      right | {'data': {}},
      right | {'metrics_bytes': '0'},
      right | {'metrics_bytes': -1},
      right | {'results': [1.0]},
      right | {'results': {'a': 'b'}},
      right | {'config': 3},
      right | {'config': {'train': 3}},
      right | {'observed': 'x'},
    ),
    start=2,
  ):
    tiny.save_zeros(session, step, manifest)
    newest = f'{step:08}.*cannot be gone on from'
    with pytest.raises(config_lib.ConfigError, match=newest):
      session.resume()


def test_the_mesh_is_checked_before_the_data(config, tmp_path):
  config = tiny.replace(config, 'data.train', ('text:/nowhere/*.txt',))
  config = dataclasses.replace(
    config, parallel=config_lib.Parallel(data=1, tensor=8)
  )
  with pytest.raises(config_lib.ConfigError, match=r'parallel\.tensor=8 does'):
    session_lib.open_session(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
