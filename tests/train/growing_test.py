"""A run that grows: killed before, at and after it, it gives the same."""

import shutil

import numpy as np
import pytest

import tiny

GROWS = (
  "growth.method='preserve'",
  'growth.at_step=10',
  'growth.num_layers=1',
  'growth.width=16',
  'growth.num_heads=1',
  'growth.mlp_dim=32',
  'optimizer.ema_decay=0.5',
  'train.num_steps=14',
  'train.save_every=6',
  'train.keep_last=10',
)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp('growing')
  file = tiny.experiment(folder, *GROWS)
  assert tiny.run(file, folder / 'run') == 0
  return file, folder / 'run'


def test_it_grows_at_its_step(done):
  workdir = done[1]
  small, large = (tiny.arrays(workdir, step) for step in (10, 12))
  name = 'params/decoder/layers/feedforward/up/kernel'
  assert small[name].shape == (1, 16, 32)
  assert large[name].shape == (2, 32, 48)
  assert large[f'extra/ema/{name.removeprefix("params/")}'].shape == (2, 32, 48)


@pytest.mark.parametrize('step', [6, 10, 12])
def test_interrupted_it_gives_the_same_numbers(done, step, tmp_path):
  """As after a kill: later checkpoints are not there."""
  file, workdir = done
  shutil.copytree(workdir, tmp_path / 'run')
  for path in (tmp_path / 'run' / 'checkpoints').iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  assert tiny.run(file, tmp_path / 'run', mode='eval') == 0
  assert tiny.run(file, tmp_path / 'run') == 0
  expected, actual = tiny.arrays(workdir), tiny.arrays(tmp_path / 'run')
  assert expected.keys() == actual.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)
  timings = ('train/tokens_per_second', 'train/step_seconds', 'train/mfu')
  lines = [tiny.metrics(path, *timings) for path in (workdir, tmp_path / 'run')]
  assert lines[0] == lines[1]


def test_a_larger_run_starts_where_a_smaller_one_is(tmp_path, capsys):
  """By its validation loss, after an update that changes nothing."""
  file = tiny.experiment(tmp_path)
  larger = (
    'growth.method=preserve',
    f'train.init_from={tmp_path / "small"}',
    'model.num_layers=4',
    'model.mlp_dim=64',
    'optimizer.learning_rate=1e-9',
    'train.num_steps=1',
  )
  losses = []
  for name, *more in (('small',), ('large', *larger)):
    assert tiny.run(file, tmp_path / name, *more) == 0
    losses.append(tiny.metrics(tmp_path / name)[-1]['validation/loss'])
  assert losses[1] == pytest.approx(losses[0], rel=1e-4)
  wrong = (*larger, 'model.mlp_dim=40')
  assert tiny.run(file, tmp_path / 'wrong', *wrong) == 2
  assert 'growth makes no size smaller' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('growth.at_step=14', 'growth.at_step=14 must be below train.num_steps=14'),
    ('growth.width=24', 'growth.width=24 must divide model.width=32'),
    ('growth.num_layers=3', 'num_layers is 3 there and 2 in model'),
    ('growth.method=none', 'growth.at_step=10 needs growth.method'),
    ('growth.at_step=0', 'is a size before growth.at_step, which is 0'),
    ('optimizer.name=adafactor', 'needs optimizer.name adamw'),
  ],
)
def test_what_cannot_grow_is_told(override, message, tmp_path, capsys):
  file = tiny.experiment(tmp_path, *GROWS)
  assert tiny.run(file, tmp_path / 'bad', override) == 2
  assert message in capsys.readouterr().err
