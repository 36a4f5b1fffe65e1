"""A tuned run goes to where others read it, and an adapter comes from there."""

import json

import jax
import numpy as np
import pytest

import tiny
import tuned_runs
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import convert
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import tuning


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With the runs `base` and `tuned`."""
  folder = tmp_path_factory.mktemp('convert')
  config = tuned_runs.base_config(folder)
  tuned_runs.save(config, folder / 'base', source='/models/published')
  config = tuned_runs.tuned(config, folder / 'base', method='lora', rank=2)
  tuned_runs.save(config, folder / 'tuned')
  return folder


def call(**flags):
  argv = [f'--{name}={value}' for name, value in flags.items()]
  return convert.main(['convert', *argv])


def read(folder):
  config = config_lib.read(folder / 'config.json')
  return config, run_lib.open_run(config, folder).restore_params().params


def near(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_updates_are_merged(folder, tmp_path):
  _, tuned = read(folder / 'tuned')
  assert call(source=folder / 'tuned', target=tmp_path / 'out') == 0
  config, params = read(tmp_path / 'out')
  assert config.tune.method == 'full' and config.train.init_from == ''
  jax.tree.map(near, params, tuning.merged(tuned))
  format = 'huggingface'
  hf = tmp_path / 'hf'
  assert call(source=folder / 'tuned', target=hf, format=format) == 0
  assert call(source=hf, target=tmp_path / 'back') == 0
  jax.tree.map(near, read(tmp_path / 'back')[1], params)


@pytest.mark.parametrize('is_imported', [True, False])
def test_an_adapter_names_the_base_that_peft_can_read(
  is_imported, folder, tmp_path, monkeypatch
):
  """The folder that was imported; else the workdir is all that there is."""
  if not is_imported:
    monkeypatch.setattr(base_lib, 'SOURCE', 'no such entry')
  peft = tmp_path / 'peft'
  assert call(source=folder / 'tuned', target=peft, format='peft') == 0
  values = json.loads((peft / 'adapter_config.json').read_text())
  name = '/models/published' if is_imported else str(folder / 'base')
  assert values['base_model_name_or_path'] == name


def test_an_adapter_goes_out_and_comes_back(folder, tmp_path, capsys):
  _, tuned = read(folder / 'tuned')
  peft = tmp_path / 'peft'
  assert call(source=folder / 'tuned', target=peft, format='peft') == 0
  base = folder / 'base'
  assert call(source=peft, base=base, target=tmp_path / 'back') == 0
  config, params = read(tmp_path / 'back')
  assert config.train.init_from == str(base) and config.tune.rank == 2
  jax.tree.map(np.testing.assert_array_equal, params, tuned)
  saved = tiny.arrays(tmp_path / 'back')
  assert all(path.endswith(('/a', '/b')) for path in saved)
  # Not without its base, nor with one where there is none to be.
  assert call(source=peft, target=tmp_path / 'no') == 2
  assert call(source=base, base=base, target=tmp_path / 'no') == 2
  assert capsys.readouterr().err.count('--base=') == 2


def test_an_adapter_of_another_base_is_refused(folder, tmp_path, capsys):
  peft = tmp_path / 'peft'
  assert call(source=folder / 'tuned', target=peft, format='peft') == 0
  other = tmp_path / 'other'
  tuned_runs.save(tuned_runs.base_config(tmp_path), other, seed=7)
  assert call(source=peft, base=other, target=tmp_path / 'back') == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert 'was tuned from other parameters' in line and str(other) in line
