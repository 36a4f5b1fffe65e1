"""A folder that an earlier version wrote opens, resumes and generates.

legacy_run.tar.xz holds the run of commit b0b4979 after 8 of its steps: words
reversed from a latent, with an average of the parameters and a plateau rule;
names of fields, metrics and parts of the state are those of that version.
"""

import json
import tarfile

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax import main

# What that version went on with.
TRAIN_LOSS = {10: 6.360165596008301, 12: 6.315009593963623}
VALIDATION_LOSS = 6.275736175458253


@pytest.fixture
def workdir(tmp_path):
  path = tmp_path / 'run'
  with tarfile.open(tiny.ROOT / 'tests' / 'legacy_run.tar.xz') as archive:
    archive.extractall(path, filter='data')
  return path


def test_old_names_are_read(workdir):
  saved = json.loads((workdir / 'config.json').read_text())
  config = config_lib.read(workdir / 'config.json')
  assert config.train.kl_annealing.ramp_fraction == 0.25
  assert saved['train']['bottleneck']['ramp'] == 0.25
  assert config.data.mixture_weights == (1.0,)


def test_it_goes_on_as_it_would_have(workdir):
  saved = json.loads((workdir / 'config.json').read_text())
  options = f'--config.train.num_steps=12 --workdir={workdir}'.split()
  assert saved['train']['num_steps'] == 8
  assert main.main(['main', *options]) == 0
  lines = tiny.metrics(workdir)
  for step, loss in TRAIN_LOSS.items():
    line = next(
      line for line in lines if line['step'] == step and 'train/loss' in line
    )
    assert line['train/loss'] == pytest.approx(loss, rel=1e-5)
    assert 'train/kl' in line and 'train/token_accuracy' in line
  assert lines[-1]['validation/loss'] == pytest.approx(
    VALIDATION_LOSS, rel=1e-5
  )
  assert 'validation/exact_match' in lines[-1]


def test_it_generates(workdir):
  options = f'--workdir={workdir} --mode=generate --config.generate.prompt=abc'
  assert main.main(['main', *options.split()]) == 0
  assert len(tiny.generated(workdir)) == 1
