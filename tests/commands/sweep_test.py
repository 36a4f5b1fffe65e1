"""Sweeps: their files, their plans, what they find, and that they resume."""

import dataclasses
import itertools
import json
import random
import signal
import time

import numpy as np
import pytest

import sweep_study
import tiny
from gemini_jax import config as config_lib
from gemini_jax.commands import sweep, sweep_plan, sweep_report
from gemini_jax.config import schema
from gemini_jax.train import lock as lock_lib

RANDOM = {
  'optimizer.learning_rate': {'log_uniform': [1e-5, 1e-2]},
  'model.dropout': {'uniform': [0, 0.3]},
  'model.num_layers': {'integers': [1, 4]},
  'optimizer.name': ['adamw', 'lion', 'muon'],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('sweeps')


def plan_of(**values):
  return schema.convert(values, sweep_plan.Sweep, 'sweep')


WIDTH = {'model.width': [16, 32]}


@pytest.mark.parametrize(
  ('plan', 'message'),
  [
    ({'trials': 2, 'fileds': WIDTH}, 'fileds is not a field of sweep; did you'),
    ({'trials': 2}, 'sweep.fields must have a field'),
    ({'fields': WIDTH}, 'sweep.trials=0 must be at least 1 for a random'),
    ({'search': 'grid', 'trials': 2, 'fields': WIDTH}, 'is of a random search'),
    ({'search': 'bayes', 'fields': WIDTH}, 'must be one of grid, random'),
    ({'trials': 1000, 'fields': WIDTH}, 'at most 999'),
    ({'trials': 3, 'fields': WIDTH}, 'only 2 different ones were found'),
    ({'trials': 2, 'goal': 'least', 'fields': WIDTH}, 'one of min, max'),
    ({'trials': 2, 'fields': {'model.widht': [16, 32]}}, 'did you mean width'),
    ({'trials': 2, 'fields': {'model': [16, 32]}}, 'model is a section'),
    (
      {'trials': 2, 'fields': {'model.width.x': [16, 32]}},
      'model.width is not a section of the config',
    ),
    ({'trials': 1, 'fields': {'model.width': []}}, 'must have a value'),
    ({'trials': 1, 'fields': {'model.width': [16, 16]}}, 'has a value twice'),
    ({'trials': 1, 'fields': {'model.width': 16}}, 'must be a list of values'),
    (
      {'trials': 1, 'fields': {'model.dropout': {'unifrom': [0, 1]}}},
      'did you mean uniform',
    ),
    (
      {'trials': 1, 'fields': {'model.dropout': {'uniform': [0.3, 0.3]}}},
      'low=0.3 must be less than high=0.3',
    ),
    (
      {'trials': 1, 'fields': {'model.dropout': {'log_uniform': [0, 1]}}},
      'low=0 must be above 0',
    ),
    (
      {'trials': 1, 'fields': {'model.width': {'integers': [1, 2.5]}}},
      'must have two integers',
    ),
    (
      {'search': 'grid', 'fields': {'model.dropout': {'uniform': [0, 1]}}},
      'is for a random search',
    ),
    (
      {'search': 'grid', 'fields': {'model.width': {'integers': [1, 2**40]}}},
      'has 1,099,511,627,776 combinations',
    ),
    (
      {'search': 'grid', 'fields': {'model.width': [16, 32, 31]}},
      'trial 3: model.',
    ),
    (
      {'search': 'grid', 'fields': {'model.width': ['16']}},
      "model.width='16' must be int, not str",
    ),
    (
      {'search': 'grid', 'fields': {'evaluate.evaluators': [['bleu']]}},
      "'bleu' is not an evaluator",
    ),
  ],
)
def test_bad_files_are_refused_before_anything_runs(
  plan, message, folder, capsys
):
  flags = sweep_study.arguments(folder, folder / 'none', **plan)
  assert sweep.main(['sweep', *flags]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
  assert not (folder / 'none').exists()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'cannot be read: No such file'),
    ('{"trials": 2,}', 'it is not JSON'),
    ('{"seed": 1, "seed": 2}', "'seed' stands twice"),
    ('[1]', 'sweep=[1] must be a section'),
  ],
)
def test_what_is_no_sweep_is_refused(text, message, tmp_path):
  if text is not None:
    (tmp_path / 'file').write_text(text)
  with pytest.raises(config_lib.ConfigError) as error:
    sweep_plan.read(tmp_path / 'file')
  assert f'--sweep={tmp_path}/file' in str(error.value)
  assert message in str(error.value)


def test_what_has_no_effect_is_refused(folder, capsys):
  flags = sweep_study.arguments(
    folder, folder / 'none', search='grid', fields={'train.num_steps': [5, 9]}
  )
  flags.append('--config.train.epochs=1')
  flags.append('--config.train.epoch_examples=64')
  assert sweep.main(['sweep', *flags]) == 2
  assert 'train.num_steps=5 has no effect' in capsys.readouterr().err


def test_a_group_of_processes_is_refused(folder, capsys, monkeypatch):
  flags = sweep_study.arguments(folder, folder / 'none', trials=1, fields=WIDTH)
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '2')
  assert sweep.main(['sweep', *flags]) == 2
  assert 'a sweep is one process' in capsys.readouterr().err


def test_draws_depend_on_the_file_and_the_number_alone():
  seed = random.SystemRandom().randrange(2**32)
  print('seed', seed)
  fields = list(RANDOM.items())
  draw = lambda fields, trials, seed: plan_of(
    fields=dict(fields), trials=trials, seed=seed
  ).draw()
  drawn = draw(fields, 60, seed)
  assert draw(fields[::-1], 60, seed) == drawn
  assert draw(fields, 23, seed) == drawn[:23]
  assert draw(fields, 60, seed + 1) != drawn
  assert len({json.dumps(values) for values in drawn}) == 60
  rates = [values['optimizer.learning_rate'] for values in drawn]
  assert all(1e-5 <= rate <= 1e-2 for rate in rates)
  # The median of a uniform draw would be 0.005.
  assert 3e-5 < np.median(rates) < 3e-3
  assert all(0 <= values['model.dropout'] <= 0.3 for values in drawn)
  assert {values['model.num_layers'] for values in drawn} == {1, 2, 3, 4}
  names = {values['optimizer.name'] for values in drawn}
  assert names == {'adamw', 'lion', 'muon'}


def test_a_grid_has_all_combinations():
  fields = {'a': [3, 1], 'b': {'integers': [-1, 1]}}
  drawn = plan_of(search='grid', fields=fields).draw()
  assert [tuple(values.values()) for values in drawn] == list(
    itertools.product([3, 1], [-1, 0, 1])
  )


def test_a_folder_goes_on_with_its_own_plan_alone(tmp_path):
  base = config_lib.Config()
  plan = plan_of(fields=RANDOM, trials=5)

  def keep(plan, base=base):
    sweep_plan.keep(tmp_path, plan, base, plan.draw())

  keep(plan)
  more = dataclasses.replace(plan, trials=9, metric='test/loss', goal='max')
  keep(more)
  for other, config, message in (
    (plan, base, 'of a sweep of 9 trials'),
    (dataclasses.replace(more, seed=1), base, 'seed was 0 and is 1'),
    (
      dataclasses.replace(more, fields=RANDOM | WIDTH),
      base,
      'fields was',
    ),
    (more, tiny.replace(base, 'train.seed', 7), 'now train.seed = 7'),
  ):
    with pytest.raises(config_lib.ConfigError, match=message):
      keep(other, config)
  (tmp_path / sweep_plan.FILE).write_text('{"search": "random"}')
  with pytest.raises(config_lib.ConfigError, match=r'sweep\.json: a value has'):
    keep(more)


def test_the_folder_of_a_run_is_left_alone(tmp_path):
  (tmp_path / config_lib.FILE).write_text('{}')
  plan = plan_of(fields=RANDOM, trials=5)
  with pytest.raises(config_lib.ConfigError, match='holds a run'):
    sweep_plan.keep(tmp_path, plan, config_lib.Config(), plan.draw())


@pytest.mark.parametrize(
  ('goal', 'found', 'error'),
  [
    ('min', (1.5, 20), ''),
    ('max', (2.5, 10), ''),
    ('nan', None, 'validation/loss is not finite at step 30'),
    ('near', None, "no metric 'validation/los'; did you mean validation/loss"),
  ],
)
def test_a_row_is_read_from_the_metrics(goal, found, error, tmp_path):
  plan = plan_of(
    fields=RANDOM,
    trials=1,
    goal=goal if found else 'min',
    metric='validation/los' if goal == 'near' else 'validation/loss',
  )
  trial = sweep_report.folder(tmp_path, 1)
  trial.mkdir(parents=True)
  lines = [
    {'step': 5, 'train/step_seconds': 0.5},
    {'step': 10, 'validation/loss': 2.5},
    {'step': 20, 'validation/loss': 1.5},
    {'step': 25, 'train/step_seconds': 0.25},
    {'step': 30, 'validation/loss': None if goal == 'nan' else 1.75},
  ]
  text = '\n'.join(map(json.dumps, lines)) + '\n'
  (trial / 'metrics.jsonl').write_text(text)
  row = sweep_report.row(tmp_path, plan, 1, {}, '')
  assert (error in row['error']) and bool(row['error']) == bool(error)
  if found:
    assert (row['best'], row['best_step']) == found
    assert row['last'] == 1.75 and row['seconds'] == 5 * 0.5 + 20 * 0.25


def planted(num_trials):
  """A sweep whose metric depends on two of four fields, and its rows."""
  plan = plan_of(fields=RANDOM, trials=num_trials, goal='max', metric='score')
  rows = []
  for number, values in enumerate(plan.draw(), 1):
    score = -np.log(values['optimizer.learning_rate'])
    score += 1.5 * (values['optimizer.name'] == 'muon')
    row = {'trial': number, 'values': values, 'error': ''}
    rows.append(
      row | {'best': score, 'best_step': 7, 'last': score, 'seconds': 1.0}
    )
  failed = dict.fromkeys(('best', 'best_step', 'last', 'seconds'))
  rows[2] |= failed | {'error': 'exit code 1: error: no | luck'}
  return plan, rows


def test_what_matters_is_found(tmp_path):
  plan, rows = planted(40)
  table = sweep_report.write(tmp_path, plan, rows, len(rows)).splitlines()
  scores = [row['best'] for row in rows if not row['error']]
  assert f'{max(scores):.6g}' in table[1] and 'no | luck' in table[-1]
  results = json.loads((tmp_path / sweep_report.RESULTS_FILE).read_text())
  listed = [row['best'] for row in results['trials']]
  assert listed == [*sorted(scores, reverse=True), None]
  matters = results['importance']
  order = sorted(RANDOM, key=lambda name: -matters['fields'][name][0])
  assert order[0] == 'optimizer.learning_rate'
  for name in ('model.dropout', 'model.num_layers'):
    assert matters['fields'][name][0] < 0.1 < matters['fields'][order[0]][0] / 5
  assert matters['explained'] > 0.5
  picture = (tmp_path / sweep_report.PICTURE_FILE).read_bytes()
  assert picture.startswith(b'\x89PNG')
  report = (tmp_path / sweep_report.FILE).read_text()
  assert 'no \\| luck' in report and 'Importance: optimizer.learn' in report


def test_few_trials_say_nothing_about_fields(tmp_path):
  plan, rows = planted(8)
  sweep_report.write(tmp_path, plan, rows, len(rows))
  report = (tmp_path / sweep_report.FILE).read_text()
  assert 'Only 7 trials have finished' in report
  assert (tmp_path / sweep_report.PICTURE_FILE).exists()


@pytest.mark.timeout(600)
def test_stopped_twice_it_ends_with_the_same_table(tmp_path):
  """By SIGKILL and SIGTERM; the last trial diverges."""
  rates = [1e-3, 1e30]
  flags = lambda name: sweep_study.arguments(
    tmp_path,
    tmp_path / name,
    search='grid',
    fields={'optimizer.learning_rate': rates},
  )
  sweep_study.finish(sweep_study.start(flags('whole')))
  killed = tmp_path / 'killed'
  for number, sent in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
    process = sweep_study.start(flags('killed'))
    trial = sweep_report.folder(killed, number)
    log = trial / 'log.txt'
    while not (log.exists() and 'starting at step' in log.read_text()):
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.05)
    process.send_signal(sent)
    output, _ = process.communicate()
    assert process.returncode == (130 if sent == signal.SIGTERM else -sent)
    # The trial ended with it, and did not go on to its own end.
    while True:
      try:
        with lock_lib.Lock() as lock:
          lock.acquire(trial)
        break
      except config_lib.ConfigError:
        time.sleep(0.05)
    assert not (trial / 'checkpoints/00000020').exists()
    assert not (trial / 'outcome.json').exists()
  output = sweep_study.finish(sweep_study.start(flags('killed')))
  assert '1 of 2 trials have ended before' in output
  found = sweep_study.results(killed)
  assert found == sweep_study.results(tmp_path / 'whole')
  errors = [row['error'][:12] for row in found['trials']]
  assert errors == ['', 'exit code 1:']
  assert found['trials'][0]['best_step'] == 20
