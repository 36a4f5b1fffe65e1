"""A run drafts for another one of the same tokenizer, from the command line."""

import dataclasses
import logging

import jax
import pytest

import tiny
import toy
from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import draft_model
from gemini_jax.kernels import native
from gemini_jax.parallel import sharding
from gemini_jax.train import session as session_lib
from gemini_jax.weights import int8, tuning


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """(folder, experiment) of runs that are called target, draft and letters."""
  folder = tmp_path_factory.mktemp('drafts')
  file = tiny.experiment(folder)
  for name, override in (
    ('target', 'train.seed=1'),
    ('draft', 'model.num_layers=1'),
    ('letters', 'tokenizer.kind=characters'),
  ):
    argv = ['main', *tiny.arguments(file, folder / name, override)]
    config = command.parse(argv, {'workdir': None, 'mode': None}).config
    tiny.save_zeros(session_lib.open_session(config, folder / name), 1)
  return folder, file


def generate(folder, file, *options):
  return tiny.run(
    file,
    folder / 'target',
    'generate.prompt=one two',
    'generate.temperature=0.0',
    *options,
    mode='generate',
  )


def test_a_draft_changes_no_greedy_token(runs, caplog, monkeypatch):
  folder, file = runs
  restore = run_lib.Run.restore_params

  def drawn(run, *args):
    restored = restore(run, *args)
    params = toy.random_tree(restored.params, run.config.model.num_layers)
    return dataclasses.replace(restored, params=params)

  monkeypatch.setattr(run_lib.Run, 'restore_params', drawn)
  assert generate(folder, file) == 0
  (expected,) = tiny.generated(folder / 'target')
  with caplog.at_level(logging.INFO):
    draft = f'generate.draft={folder / "draft"}'
    assert generate(folder, file, draft, 'generate.draft_tokens=2') == 0
  (found,) = tiny.generated(folder / 'target')
  assert found['tokens'] == expected['tokens'] and len(found['tokens']) == 6
  assert 'drafted tokens accepted' in caplog.text


@pytest.mark.parametrize(
  ('draft', 'message'),
  [
    ('nowhere', 'is no folder of a run: it has no config.json'),
    ('letters', 'its tokenizer is another one; only models of one tokenizer'),
  ],
)
def test_what_cannot_draft_is_refused(draft, message, runs, capsys):
  folder, file = runs
  assert generate(folder, file, f'generate.draft={folder / draft}') == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert f'generate.draft={folder / draft}' in line and message in line


def test_int8_drafts_have_the_kernel_of_ours(runs, monkeypatch):
  folder, _ = runs
  config = config_lib.read(folder / 'target/config.json')
  options = dataclasses.replace(config.generate, draft=str(folder / 'draft'))
  config = dataclasses.replace(config, generate=options)
  run = run_lib.open_run(config, folder / 'target')
  restore = run_lib.Run.restore_params

  def quantised(run, *args):
    restored = restore(run, *args)
    return dataclasses.replace(restored, params=int8.quantize(restored.params))

  monkeypatch.setattr(run_lib.Run, 'restore_params', quantised)
  monkeypatch.setattr(native, 'choose', lambda name: f'chosen by {name}')
  with sharding.use(run.mesh):
    draft = draft_model.open_draft(run)
  leaves = jax.tree.leaves(draft.params, is_leaf=tuning.is_weight)
  kernels = [leaf.kernel for leaf in leaves if tuning.is_weight(leaf)]
  assert kernels and set(kernels) == {'chosen by auto'}
