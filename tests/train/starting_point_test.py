"""A run starts from another run's parameters, or says what does not fit."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.train import session as session_lib


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With a run of random parameters and their average, saved at step 7."""
  folder = tmp_path_factory.mktemp('starting_point')
  config = tiny.parse(folder)
  config = tiny.replace(config, 'optimizer.ema_decay', 0.9)
  session = session_lib.open_session(config, folder / 'before')
  state = session.init_state()
  average = jax.tree.map(lambda leaf: leaf + 1.0, state.extra['ema'])
  state = state.replace(extra={'ema': average})
  session.run.checkpoints.save(7, state, {})
  session.run.checkpoints.close()
  session.write_config()
  return folder


@pytest.fixture
def config(folder):
  config = tiny.parse(folder)
  return tiny.replace(config, 'train.init_from', str(folder / 'before'))


def test_it_starts_with_the_average(config, folder, tmp_path, caplog):
  before = run_lib.open_run(
    tiny.replace(config, 'train.init_from', ''), folder / 'before'
  ).restore_params()
  # Another type, and an average of its own.
  config = tiny.replace(config, 'model.param_dtype', 'bfloat16')
  config = tiny.replace(config, 'optimizer.ema_decay', 0.5)
  session = session_lib.open_session(config, tmp_path / 'run')
  with caplog.at_level(logging.INFO):
    state = session.init_state()
  assert f'parameters of step 7 of {folder / "before"}' in caplog.text
  assert int(state.step) == 0
  for actual, average, expected in zip(
    *map(jax.tree.leaves, (state.params, state.extra['ema'], before.params)),
    strict=True,
  ):
    # All but norms.
    expected = np.asarray(expected.astype(actual.dtype))
    np.testing.assert_array_equal(np.asarray(actual), expected)
    np.testing.assert_array_equal(average, expected.astype(np.float32))
  assert state.params['token']['embedding'].dtype == jnp.bfloat16
  session.write_config()
  saved = config_lib.read(tmp_path / 'run' / 'config.json')
  assert saved.train.init_from == str(folder / 'before')


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    (
      *('model.mlp_dim', 64),
      r'holds another model: decoder/layers/\S+ is float32\[2, 48, 32\] there '
      r'and float32\[2, 64, 32\] here',
    ),
    ('model.tie_embeddings', False, r'head/\S+ is absent there and float32'),
    (
      *('tokenizer.kind', 'characters'),
      'tokenizer.kind is bytes there and characters here',
    ),
    ('train.init_from', '/nowhere', 'is no folder of a run'),
  ],
)
def test_what_does_not_fit_is_named(field, value, message, config, tmp_path):
  config = tiny.replace(config, field, value)
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    session_lib.open_session(config, tmp_path / 'run')
  assert str(error.value).startswith('train.init_from=/')
  assert '\n' not in str(error.value)


def test_once_there_is_a_checkpoint_it_does_not_matter(
  config, folder, tmp_path
):
  shutil.copytree(folder / 'before', tmp_path / 'gone')
  config = tiny.replace(config, 'train.init_from', str(tmp_path / 'gone'))
  session = session_lib.open_session(config, tmp_path / 'run')
  tiny.save_zeros(session, 1)
  shutil.rmtree(tmp_path / 'gone')
  again = session_lib.open_session(config, tmp_path / 'run')
  assert again.starting_point is None
