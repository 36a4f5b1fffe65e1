"""A run that is tuned by preferences, from the command line."""

import json
import math
import re

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import command
from gemini_jax.train import metrics_file
from gemini_jax.train import session as session_lib

PAIRS = (
  "data.inputs_field = 'prompt'",
  "data.targets_field = 'chosen'",
  'data.sequence_length = 32',
  'model.max_length = 32',
  "optimizer.schedule = 'constant'",
  'optimizer.learning_rate = 1e-3',
  'train.log_every = 1',
  'train.save_every = 2',
  'train.eval_every = 4',
)


def open_session(file, workdir, *overrides):
  argv = ['main', *tiny.arguments(file, workdir, *overrides)]
  config = command.parse(argv, {'workdir': None, 'mode': None}).config
  return session_lib.open_session(config, workdir)


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
  """(folder, experiment, workdir of a tuned run of four steps)."""
  folder = tmp_path_factory.mktemp('preferences')
  records = (
    {'prompt': f'tell {i}', 'chosen': 'a' * (i % 5 + 2), 'rejected': 'b' * 4}
    for i in range(60)
  )
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / 'pairs.jsonl').write_text(lines)
  files = (
    f"data.train = ('jsonl:{folder}/pairs.jsonl#[:40]',)",
    f"data.validation = ('jsonl:{folder}/pairs.jsonl#[40:]',)",
  )
  before = tiny.experiment(folder, *PAIRS, *files)
  session = open_session(before, folder / 'before')
  session.run.checkpoints.save(7, session.init_state(), {})
  session.run.checkpoints.close()
  session.write_config()
  file = tiny.experiment(
    folder,
    *PAIRS,
    *files,
    "data.rejected_field = 'rejected'",
    f'train.init_from = {str(folder / "before")!r}',
    'train.num_steps = 4',
    "tune.method = 'lora'",
    'tune.rank = 2',
    name='dpo.py',
  )
  assert tiny.run(file, folder / 'whole') == 0
  return folder, file, folder / 'whole'


def test_it_starts_at_log_2_and_learns(tuned):
  _, _, workdir = tuned
  lines = [line for line in tiny.metrics(workdir) if 'train/dpo' in line]
  assert [line['step'] for line in lines] == [1, 2, 3, 4]
  np.testing.assert_allclose(lines[0]['train/dpo'], math.log(2), rtol=1e-5)
  assert abs(lines[0]['train/dpo_margin']) < 1e-4
  assert lines[3]['train/dpo'] < 0.98 * math.log(2)
  assert lines[3]['train/dpo_margin'] > 0.02
  (held_out,) = [x for x in tiny.metrics(workdir) if 'validation/dpo' in x]
  assert held_out['validation/dpo'] < 0.98 * math.log(2)
  assert held_out['validation/dpo_accuracy'] > 0.6


def test_the_reference_is_what_it_started_from(tuned):
  folder, file, workdir = tuned
  start, end = tiny.arrays(folder / 'before'), tiny.arrays(workdir)
  kept = {
    name.removeprefix('extra/reference/'): leaf
    for name, leaf in end.items()
    if name.startswith('extra/reference/')
  }
  # The base is its own reference; of the updates, b begins with zeros.
  assert kept and all(re.search(r'kernel/[ab]$', name) for name in kept)
  assert sum(leaf.size for leaf in kept.values()) < 4000
  for name, leaf in kept.items():
    assert leaf.any() == name.endswith('a')
    assert not np.array_equal(leaf, end[f'params/{name}'])
  # Without low rank it is a copy of all.
  state = open_session(file, folder / 'full', 'tune.method=full').init_state()
  for path, leaf in jax.tree_util.tree_flatten_with_path(
    state.extra['reference']
  )[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    np.testing.assert_array_equal(leaf, start[f'params/{name}'])


def test_it_resumes_exactly(tuned, tmp_path):
  _, file, whole = tuned
  assert tiny.run(file, tmp_path / 'run', 'train.num_steps=2') == 0
  assert tiny.run(file, tmp_path / 'run') == 0
  arrays, wanted = tiny.arrays(tmp_path / 'run'), tiny.arrays(whole)
  assert arrays.keys() == wanted.keys()
  for path, leaf in arrays.items():
    np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
  lines, expected = (
    [x for x in tiny.metrics(path, *metrics_file.TIMINGS) if 'train/dpo' in x]
    for path in (tmp_path / 'run', whole)
  )
  assert lines == expected


def test_the_evaluation_finds_the_reference(tuned, capsys):
  _, file, workdir = tuned
  assert tiny.run(file, workdir, mode='eval') == 0
  results = json.loads(capsys.readouterr().out)
  lines = [x for x in tiny.metrics(workdir) if 'validation/dpo' in x]
  for name in ('loss', 'dpo', 'dpo_margin', 'dpo_accuracy'):
    np.testing.assert_allclose(
      results[f'validation/{name}'], lines[-1][f'validation/{name}'], rtol=1e-6
    )


def test_preferences_need_a_start(tuned, tmp_path, capsys):
  _, file, _ = tuned
  without = ('train.init_from=', 'tune.method=full')
  assert tiny.run(file, tmp_path / 'run', *without) == 2
  assert (
    "data.rejected_field='rejected' tunes what was trained before; set "
    'train.init_from to the folder of a run'
  ) in capsys.readouterr().err
