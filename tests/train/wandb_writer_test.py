"""A folder is one run on Weights & Biases."""

import sys
import types

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax.train import metric_writer


def test_weights_and_biases_are_an_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = tiny.config(train={'wandb_project': 'p'})
  with pytest.raises(
    config_lib.ConfigError, match=r"pip install 'gemini_jax\[wandb\]'"
  ):
    metric_writer.Writer(tmp_path, config, 0, 0)


def test_a_folder_is_one_run_on_weights_and_biases(tmp_path, monkeypatch):
  """Not that of another folder of the same name, and still it when resumed."""
  calls = []
  wandb = types.ModuleType('wandb')
  wandb.Error = type('Error', (Exception,), {})
  wandb.init = lambda **kwargs: (
    calls.append(kwargs)
    or types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
  )
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  config = tiny.config(train={'wandb_project': 'p'})
  for parent in 'a', 'b', 'a':
    workdir = tmp_path / parent / 'vae'
    workdir.mkdir(parents=True, exist_ok=True)
    metric_writer.Writer(workdir, config, 0, 0).close()
  assert [call['name'] for call in calls] == ['vae'] * 3
  assert [call['dir'] for call in calls] == [
    str(tmp_path / parent / 'vae') for parent in 'aba'
  ]
  first, second, third = (call['id'] for call in calls)
  assert first == third != second
  assert calls[0]['resume'] == 'allow'

  def refuse(**kwargs):
    raise wandb.Error('no API key\nconfigured')

  wandb.init = refuse
  with pytest.raises(config_lib.ConfigError, match='no API key configured; '):
    metric_writer.Writer(workdir, config, 0, 0)
