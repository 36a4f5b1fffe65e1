"""`--mode=compress`: from a run to a smaller one that opens as it does."""

import json

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax import main
from gemini_jax import run as run_lib
from gemini_jax.compress import speed
from gemini_jax.weights import block_ell, compressed, int4


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(experiment, workdir) of a run that was trained a little."""
  folder = tmp_path_factory.mktemp('compress')
  file = tiny.experiment(folder)
  assert tiny.run(file, folder / 'run') == 0
  return file, folder / 'run'


@pytest.fixture(autouse=True)
def _speeds_are_not_measured_each_time(monkeypatch):
  """`small` measures them, once; here they would be most of the time."""
  seconds = {'prefill_tokens_per_second': 1.0, 'decode_tokens_per_second': 2.0}
  measure = lambda run, variants: {name: dict(seconds) for name in variants}
  monkeypatch.setattr(speed, 'measure', measure)


def compress(workdir, *fields):
  flags = [f'--config.compress.{field}' for field in fields]
  return main.main(['main', f'--workdir={workdir}', '--mode=compress', *flags])


def rows(workdir):
  found = json.loads((workdir / 'compress.json').read_text())
  return {row['name']: row for row in found}


def newest(workdir):
  """The workdir of the model that was compressed last."""
  *_, row = rows(workdir).values()
  return workdir / row['workdir']


@pytest.fixture(scope='module')
def small(trained):
  """The workdir of a model that was pruned and quantised in one pass."""
  _, workdir = trained
  fields = ['method=sparsegpt', 'alpha=0.5', 'weights=int4', 'group=16']
  fields += ['sequences=16', 'recovery.steps=2']
  assert compress(workdir, *fields) == 0
  found = newest(workdir)
  # Another number of sequences is another model.
  assert found.name.startswith('sparsegpt-0.5-int4-group16-recovered2-')
  return found


def test_a_row_beside_the_dense_model(trained, small):
  _, workdir = trained
  found = rows(workdir)
  dense, row = found['dense'], found[small.name]
  assert row['method'] == 'sparsegpt' and row['bits'] == 4
  assert row['alpha'] == 0.5
  assert row['parameters'] < 0.8 * dense['parameters']
  assert row['bytes'] < dense['bytes']
  assert row['memory_bytes'] < 0.5 * dense['memory_bytes']
  assert abs(row['loss'] - dense['loss']) < 1
  assert row['decode_tokens_per_second'] > 0
  report = (workdir / 'report.md').read_text()
  assert '## Compression' in report and small.name in report
  assert (workdir / 'compress.png').read_bytes().startswith(b'\x89PNG')
  arrays = tiny.arrays(small)
  assert any(name.endswith('query/kernel/mask') for name in arrays)


def test_it_opens_as_any_other(small, capsys):
  flags = [f'--workdir={small}', '--config.generate.prompt=one two']
  assert main.main(['main', *flags, '--mode=generate']) == 0
  assert main.main(['main', *flags, '--mode=eval']) == 0
  loss = json.loads(capsys.readouterr().out.splitlines()[-1])
  row = rows(small.parents[1])[small.name]
  assert loss['validation/loss'] == pytest.approx(row['loss'], rel=1e-5)
  run = run_lib.open_run(config_lib.read(small / 'config.json'), small)
  params = run.restore_params().params
  kernel = params['decoder']['layers']['feedforward']['up']['kernel']
  assert isinstance(kernel, int4.Int4)
  assert np.mean(np.asarray(kernel.to_array('float32')) == 0) >= 0.5


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (['method=none'], "compress.method='none' compresses nothing"),
    (['method=wanda'], 'compress.alpha=0 prunes nothing'),
    (['method=wanda', 'alpha=1.0'], 'compress.alpha=1.0 must be'),
    (['method=wanda', 'alpha=-0.1'], 'compress.alpha=-0.1 must be'),
    (['method=wanda', 'n_m=5:7'], '7 does not divide the 32 inputs'),
    (['method=wanda', 'n_m=2of4'], "compress.n_m='2of4' must be N:M"),
    (['method=wanda', 'n_m=4:4'], 'must keep fewer than all'),
    (['method=gptq'], "compress.method='gptq' rounds to codes"),
    (
      ['method=wanda', 'alpha=0.5', 'block=24'],
      'compress.block=24 does not divide the 32 inputs of decoder/',
    ),
    (
      ['method=sparsegpt', 'alpha=0.5', 'block=8'],
      "compress.block=8 does not go with compress.method='sparsegpt'",
    ),
    (['method=wanda', 'block=8'], 'set compress.alpha=0.0 above 0'),
    (['method=round', 'weights=int8', 'alpha=0.5'], 'prunes nothing'),
    (
      ['method=wanda', 'alpha=0.5', 'pattern=no/such'],
      "compress.pattern='no/such' matches the path of no parameter",
    ),
  ],
)
def test_a_mistake_is_one_line(fields, message, trained, capsys):
  assert compress(trained[1], *fields) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith('error: ') and message in error


def test_what_is_quantised_is_not_quantised_again(small, capsys):
  assert compress(small, 'method=gptq', 'weights=int8', 'alpha=0.0') == 2
  assert 'is quantised already (int4)' in capsys.readouterr().err
  assert main.main(['main', f'--workdir={small}']) == 2
  assert 'holds compressed parameters' in capsys.readouterr().err
  assert main.main(['main', f'--workdir={small}', '--mode=plan']) == 2
  assert 'is for the run that was compressed' in capsys.readouterr().err


def test_no_calibration_without_data(trained, capsys):
  flags = [f'--workdir={trained[1]}', '--mode=compress']
  flags += ['--config.compress.method=wanda', '--config.compress.alpha=0.5']
  assert main.main(['main', *flags, '--config.data.train=()']) == 2
  assert 'calibration has no batch' in capsys.readouterr().err


def test_a_pruned_run_is_quantised_and_trained_on(trained, tmp_path):
  """Zeros stay, and plain arrays of it begin another run."""
  file, workdir = trained
  assert compress(workdir, 'method=magnitude', 'n_m=2:4') == 0
  pruned = newest(workdir)
  assert pruned.name == 'magnitude-2of4'
  fields = ['method=round', 'weights=int8']
  assert compress(pruned, *fields) == 0
  both = newest(pruned)
  assert both.name == 'round-0.5-int8'
  opened = [
    run_lib.open_run(config_lib.read(path / 'config.json'), path)
    .restore_params()
    .params['decoder']['layers']['attention']['query']['kernel']
    for path in (pruned, both)
  ]
  is_zero = [np.asarray(opened[0]) == 0]
  is_zero.append(np.asarray(opened[1].to_array('float32')) == 0)
  assert is_zero[0].mean() == 0.5 and (is_zero[1] >= is_zero[0]).all()
  fields = [f'train.init_from={both}', 'train.num_steps=1']
  assert tiny.run(file, tmp_path / 'next', *fields) == 0
  arrays = jax.tree.leaves(tiny.arrays(tmp_path / 'next'))
  assert arrays


def test_a_run_trained_in_blocks_is_stored_in_blocks(trained, tmp_path):
  """Zeros stay where training left them, through recovery and codes too."""
  fields = ['method=rigl', 'block=8', 'sparsity=0.7', 'update_every=3']
  fields = [f'sparsity.{field}' for field in fields]
  assert tiny.run(trained[0], tmp_path / 'run', *fields) == 0
  fields = ['method=magnitude', 'alpha=0.7', 'block=8']
  assert compress(tmp_path / 'run', *fields) == 0
  assert compress(tmp_path / 'run', *fields, 'recovery.steps=2') == 0
  folder = tmp_path / 'run' / 'compressed'
  small = folder / 'magnitude-0.7-blocks8'
  assert compress(small, 'method=round', 'weights=int8') == 0
  dense = kernels(tmp_path / 'run')
  found = rows(tmp_path / 'run')
  for name, kernel in kernels(small).items():
    assert isinstance(kernel, block_ell.BlockSparse)
    array = kernel.to_array('float32')
    np.testing.assert_array_equal(array, dense[name], err_msg=name)
  row, other = found[small.name], found[f'{small.name}-recovered2']
  assert row['loss'] == pytest.approx(found['dense']['loss'], rel=1e-4)
  assert row['memory_bytes'] < 0.6 * found['dense']['memory_bytes']
  assert row['bytes'] == pytest.approx(other['bytes'], rel=0.01)
  assert row['decode_tokens_per_second'] > 0
  folders = (
    folder / other['name'],
    newest(small),
  )
  for path in folders:
    for name, kernel in kernels(path).items():
      array = np.asarray(kernel.to_array('float32'))
      assert (array != dense[name]).any()
      assert not array[np.asarray(dense[name]) == 0].any(), name


def kernels(workdir):
  """The matrices of the layers, as a run is opened."""
  run = run_lib.open_run(config_lib.read(workdir / 'config.json'), workdir)
  flat = jax.tree_util.tree_leaves_with_path(
    run.restore_params().params['decoder']['layers'],
    is_leaf=compressed.is_weight,
  )
  named = {compressed.name_of(path): leaf for path, leaf in flat}
  return {k: leaf for k, leaf in named.items() if k.endswith('kernel')}
