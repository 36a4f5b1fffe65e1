"""Every experiment makes a model, an optimizer and a step that go together."""

import functools
import pathlib

import jax
import pytest

from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import sharding
from gemini_jax.tools import plan, program
from gemini_jax.train import run, step

FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'
FILES = sorted(
  path for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'base')
)
# What their names promise.
SIZES = {
  'gemini_100b': (100e9, 200e9),
  'gemini_moe_1t': (1e12, 2e12),
  'gpt2_124m': (120e6, 130e6),
}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def experiment(request, tmp_path):
  """The name of an experiment and its config, with a vocabulary."""
  argv = ['main', f'--config={request.param}']
  config = command.parse(argv, {}).config
  return request.param.stem, plan.with_vocab(config, tmp_path, [])


def test_an_experiment_builds(experiment):
  name, config = experiment
  one = sharding.make_mesh(config_lib.Parallel(), jax.devices()[:1])
  model, optimizer, state = run.abstract_parts(config, one)
  batch = program.abstract_batch(config, one)
  new, values = jax.eval_shape(
    functools.partial(
      step.train_step, config=config, model=model, optimizer=optimizer
    ),
    state,
    batch,
    jax.ShapeDtypeStruct((), 'int32'),
  )
  assert values['loss'].shape == ()
  shapes = lambda tree: jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), tree
  )
  assert shapes(new) == shapes(state)
  low, high = SIZES.get(name, (1e4, 1e14))
  assert low <= gemini.param_count(state.params) <= high
