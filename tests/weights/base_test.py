"""A tuned run keeps what it trained, and knows the run that it needs."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.checkpoint import manifest as manifest_lib
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import tuning

OPTIONS = (
  'train.num_steps = 4',
  'train.log_every = 1',
  'train.save_every = 2',
  'train.eval_every = 4',
  "tune.method = 'lora'",
  'tune.rank = 2',
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """(folder, experiment): with the run `base`, and `tuned` from it.

  `other` has other parameters of the same shapes, at the same step.
  """
  folder = tmp_path_factory.mktemp('base')
  session = session_lib.open_session(tiny.parse(folder), folder / 'base')
  state = session.init_state()
  session.run.checkpoints.save(7, state, {})
  session.run.checkpoints.close()
  session.write_config()
  shutil.copytree(folder / 'base', folder / 'other')
  shutil.rmtree(folder / 'other' / 'checkpoints')
  other = checkpointer.Checkpointer(folder / 'other' / 'checkpoints')
  moved = jax.tree.map(lambda leaf: leaf + 1e-3, state.params)
  other.save(7, state.replace(params=moved), {})
  other.close()
  file = tiny.experiment(folder, *OPTIONS, f"train.init_from = '{folder}/base'")
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    assert tiny.run(file, folder / 'tuned') == 0
  assert re.search(
    r'parameters, of which \d,\d{3} \(\d\.\d\d%\) are trained, on',
    output.getvalue(),
  )
  return folder, file


@pytest.fixture
def copy(runs, tmp_path):
  """The two runs, to be damaged."""
  folder, _ = runs
  for name in ('base', 'other', 'tuned'):
    shutil.copytree(folder / name, tmp_path / name)
  config = config_lib.read(tmp_path / 'tuned' / 'config.json')
  train = dataclasses.replace(
    config.train, init_from=str(tmp_path / 'base'), num_steps=6
  )
  return tmp_path, dataclasses.replace(config, train=train)


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def restored(config, folder):
  return run_lib.open_run(config, folder).restore_params().params


def test_a_checkpoint_holds_what_is_trained_alone(runs):
  folder, _ = runs
  config = config_lib.read(folder / 'tuned' / 'config.json')
  params = by_path(restored(config, folder / 'tuned'))
  saved = tiny.arrays(folder / 'tuned')
  kept = {
    path.removeprefix('params/'): array
    for path, array in saved.items()
    if path.startswith('params/')
  }
  assert kept and all(
    path.endswith(('/kernel/a', '/kernel/b')) for path in kept
  )
  for path, array in kept.items():
    np.testing.assert_array_equal(params[path], array, err_msg=path)
    assert np.any(array)
  base = tiny.arrays(folder / 'base')
  paths = {path for path in base if path.startswith('params/')}
  for path in paths:
    name = path.removeprefix('params/')
    array = params[name] if name in params else params[f'{name}/base']
    np.testing.assert_array_equal(array, base[path], err_msg=path)
  # With moments: three numbers of each.
  size = sum(array.size for array in kept.values())
  assert sum(array.size for array in saved.values()) - 3 * size < 10
  manifest = checkpointer.Checkpointer(folder / 'tuned/checkpoints').manifest(4)
  assert manifest['base']['step'] == 7
  assert len(manifest['base']['fingerprint']) == 16


@pytest.mark.parametrize(
  'options',
  [
    {'method': 'head'},
    {'method': 'adapter', 'width': 4},
    {'method': 'adalora', 'rank': 2},
    {'method': 'lora', 'rank': 2, 'base': 'nf4'},
  ],
  ids=lambda options: '_'.join(map(str, options.values())),
)
def test_what_was_saved_is_restored(options, copy, tmp_path):
  """By each method, on several devices; the base comes from its own run."""
  _, config = copy
  config = dataclasses.replace(
    config,
    tune=config_lib.Tune(**options),
    parallel=config_lib.Parallel(data=2, fsdp=2, tensor=2),
  )
  session = session_lib.open_session(config, tmp_path / 'run')
  state = session.init_state()
  moved = jax.tree.map(
    lambda leaf: leaf + 0.1, parameter_groups.own(config.tune, state.params)
  )
  state = state.replace(params=parameter_groups.merged(moved, state.params))
  leaves = map(jax.tree.leaves, (state, session.abstract))
  for leaf, shape in zip(*leaves, strict=True):
    assert leaf.sharding == shape.sharding and leaf.dtype == shape.dtype
  session.run.checkpoints.save(
    1, state_lib.saved(config, state), {base_lib.KEY: session.base}
  )
  session.run.checkpoints.close()
  session.write_config()
  params = restored(config, tmp_path / 'run')
  assert jax.tree.structure(params) == jax.tree.structure(state.params)
  jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_it_is_evaluated_and_generates(runs, capfd):
  folder, _ = runs
  for mode in ('eval', 'generate'):
    argv = ['main', f'--workdir={folder}/tuned', f'--mode={mode}']
    assert tiny.main.main([*argv, '--config.generate.prompt=one']) == 0
  assert 'one' in capfd.readouterr().out
  losses = [
    line['validation/loss']
    for line in tiny.metrics(folder / 'tuned')
    if 'validation/loss' in line
  ]
  assert len(losses) == 1


def test_it_goes_on_from_its_checkpoint(copy, caplog, capfd):
  folder, config = copy
  session = session_lib.open_session(config, folder / 'tuned')
  state = session.resume().state
  expected = by_path(restored(config, folder / 'tuned'))
  assert jax.tree.structure(state) == jax.tree.structure(session.abstract)
  for path, leaf in by_path(state.params).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  assert session.base['step'] == 7


def assert_refused(config, folder, message):
  """Wherever the parameters are read, in one line."""
  for read in (
    lambda: restored(config, folder / 'tuned'),
    lambda: session_lib.open_session(config, folder / 'tuned').resume(),
  ):
    with pytest.raises(config_lib.ConfigError, match=message) as error:
      read()
    assert '\n' not in str(error.value)


def test_a_base_that_is_gone_is_named(copy):
  folder, config = copy
  (folder / 'base').rename(folder / 'elsewhere')
  assert_refused(
    config, folder, rf'^train.init_from={folder}/base is no folder'
  )
  moved = tiny.replace(config, 'train.init_from', str(folder / 'elsewhere'))
  assert restored(moved, folder / 'tuned')


def test_another_base_is_refused(copy):
  """Of the same shapes, at the same step; and a base that trained on."""
  folder, config = copy
  other = tiny.replace(config, 'train.init_from', str(folder / 'other'))
  assert_refused(other, folder, 'at step 7 has other parameters')
  # It still has the checkpoint that was tuned.
  checkpoints = checkpointer.Checkpointer(folder / 'base' / 'checkpoints')
  shutil.copytree(folder / 'other' / 'checkpoints', folder / 'later')
  manifest = json.loads((folder / 'later/00000007/manifest.json').read_text())
  del manifest['checksum']
  manifest_lib.write(folder / 'later' / '00000007', manifest | {'step': 9})
  (folder / 'later' / '00000007').rename(checkpoints.path(9))
  assert restored(config, folder / 'tuned')
  shutil.rmtree(checkpoints.path(7))
  assert_refused(config, folder, 'at step 9 has other parameters')


def test_a_run_may_start_from_a_tuned_one(copy, tmp_path):
  """It gets the merged parameters, in plain arrays."""
  folder, config = copy
  tuned = tuning.merged(restored(config, folder / 'tuned'))
  train = dataclasses.replace(config.train, init_from=str(folder / 'tuned'))
  # As the folder was copied, it tunes the first `base`, which is still there.
  plain = dataclasses.replace(config, tune=config_lib.Tune(), train=train)
  state = session_lib.open_session(plain, tmp_path / 'next').init_state()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    state.params,
    tuned,
  )
  plain = tiny.replace(plain, 'model.mlp_dim', 64)
  with pytest.raises(config_lib.ConfigError, match='holds another model: dec'):
    session_lib.open_session(plain, tmp_path / 'more').init_state()


@pytest.mark.parametrize(
  ('field', 'value'), [('tune.rank', 4), ('tune.alpha', 3.0)]
)
def test_another_way_of_tuning_is_another_model(field, value, copy):
  folder, config = copy
  config = tiny.replace(config, field, value)
  with pytest.raises(config_lib.ConfigError, match=f'{field} is .* there and'):
    session_lib.open_session(config, folder / 'tuned')


def test_a_fingerprint_is_that_of_the_numbers():
  """On any mesh; of their order, their type and the last bit of each."""
  config = tiny.config(model={'num_kv_heads': 4, 'vocab_size': 24})
  model = gemini.Gemini(config.model)
  params = toy.model_params(model)
  prints = set()
  for sizes in ({}, {'fsdp': 2, 'tensor': 4}, {'pipeline': 2, 'tensor': 2}):
    abstract = build.abstract_params(model, toy.make_mesh(**sizes))
    placed = jax.tree.map(
      lambda leaf, where: jax.device_put(leaf, where.sharding), params, abstract
    )
    prints.add(base_lib.fingerprint(placed))
  assert len(prints) == 1
  mesh = toy.make_mesh()
  place = lambda array: jax.device_put(
    array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
  array = np.asarray(toy.normal((5, 6)))
  others = [array, array[::-1], array.T.reshape(5, 6), array.astype('bfloat16')]
  bit = array.copy()
  bit[3, 4] = np.nextafter(bit[3, 4], np.float32(9))
  others += [bit, array.reshape(6, 5)]
  found = {base_lib.fingerprint({'x': place(jnp.asarray(x))}) for x in others}
  assert len(found) == len(others)
