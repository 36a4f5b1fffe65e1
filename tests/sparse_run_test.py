"""A sparse run: zeros in all that it leaves behind, and a resume to the bit."""

import shutil

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.commands import convert
from gemini_jax.train import metrics_file

# As a Llama is, so that it can be exported.
LINES = (
  "model.activation = 'silu'",
  "model.norm = 'pre'",
  'model.tie_embeddings = False',
  "optimizer.name = '{rule}'",
  "sparsity.method = '{method}'",
  'sparsity.sparsity = 0.8',
  "sparsity.distribution = 'erk'",
  r"sparsity.pattern = '@(matrix|embedding)$'",
  'sparsity.update_every = 3',
  'train.log_every = 1',
  'train.save_every = 5',
  'train.keep_last = 4',
)


def trained(folder, method, rule='adamw', *lines):
  """(experiment, workdir of a whole run)."""
  values = {'method': method, 'rule': rule}
  file = tiny.experiment(
    folder, *(line.format(**values) for line in (*LINES, *lines))
  )
  assert tiny.run(file, folder / 'run') == 0
  return file, folder / 'run'


def masks_of(arrays):
  """Each mask of a checkpoint, by the path of its parameter."""
  begin = 'extra/masks/masks/'
  return {
    path.removeprefix(begin): leaf
    for path, leaf in arrays.items()
    if path.startswith(begin)
  }


def read(workdir):
  """The parameters to be evaluated, of the newest checkpoint."""
  config = config_lib.read(workdir / 'config.json')
  params = run_lib.open_run(config, workdir).restore_params().params
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


@pytest.mark.parametrize(
  ('method', 'rule', 'line', 'name', 'flags'),
  [
    (
      *('rigl', 'adamw', 'optimizer.ema_decay = 0.9'),
      *('hf', {'format': 'huggingface'}),
    ),
    (
      *('set', 'schedule_free', 'optimizer.b2 = 0.95'),
      *('q8.gguf', {'format': 'gguf', 'type': 'Q8_0'}),
    ),
  ],
)
def test_zeros_everywhere_and_a_bitwise_resume(
  method, rule, line, name, flags, tmp_path
):
  file, workdir = trained(tmp_path, method, rule, line)
  for step in (5, 10, 15, 20):
    arrays = tiny.arrays(workdir, step)
    masks = masks_of(arrays)
    assert len(masks) >= 8
    mirrored = 0
    for path, mask in masks.items():
      for array, leaf in arrays.items():
        own = array.startswith('extra/masks/')
        if array.endswith(f'/{path}') and not own:
          mirrored += leaf.shape == mask.shape
          assert not leaf[~mask].any(), array
          assert leaf[mask].any(), array
    assert mirrored >= 2 * len(masks)
    share = 1 - sum(map(np.sum, masks.values())) / sum(
      mask.size for mask in masks.values()
    )
    assert share == pytest.approx(0.8, abs=0.01)
  # Exports hold what is evaluated.
  mine = read(workdir)
  argv = {'source': workdir, 'target': tmp_path / name} | flags
  argv = [f'--{key}={value}' for key, value in argv.items()]
  assert convert.main(['convert', *argv]) == 0
  argv = [f'--source={tmp_path / name}', f'--target={tmp_path / "back"}']
  assert convert.main(['convert', *argv]) == 0
  theirs = read(tmp_path / 'back')
  for path, mask in masks.items():
    for leaf in (mine[path], theirs[path]):
      leaf = np.asarray(leaf)
      assert leaf.shape == mask.shape
      assert not leaf[~mask].any(), path
      assert (leaf[mask] != 0).mean() > 0.5
  # From the middle again.
  again = tmp_path / 'again'
  shutil.copytree(workdir, again)
  checkpoints = checkpointer.Checkpointer(again / 'checkpoints')
  for step in (15, 20):
    shutil.rmtree(checkpoints.path(step))
  assert tiny.run(file, again) == 0
  lines = tiny.metrics(again, *metrics_file.TIMINGS)
  assert lines == tiny.metrics(workdir, *metrics_file.TIMINGS)
  assert any('train/sparsity' in line for line in lines)
  found, wanted = tiny.arrays(again), tiny.arrays(workdir)
  assert found.keys() == wanted.keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (['sparsity.sparsity=1.5'], 'sparsity.sparsity=1.5 must be at least 0'),
    (
      ['sparsity.pattern=feedfoward/up'],
      "sparsity.pattern='feedfoward/up' matches the path of no parameter; the "
      'nearest are decoder/layers/feedforward/up',
    ),
    (
      ['sparsity.n_m=3:5'],
      "sparsity.n_m='3:5': 5 does not divide the 32 inputs of decoder/",
    ),
    (
      ['sparsity.block=24'],
      'sparsity.block=24 does not divide the 32 ',
    ),
  ],
)
def test_bad_input_is_told_in_one_line(fields, message, tmp_path, capsys):
  file = tiny.experiment(tmp_path)
  assert tiny.run(file, tmp_path / 'run', 'sparsity.method=rigl', *fields) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert message in line
  assert not (tmp_path / 'run').exists()
