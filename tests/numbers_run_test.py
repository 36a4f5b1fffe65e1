"""Runs that read numbers and series and predict numbers or labels."""

import csv
import json

import numpy as np
import pytest

import tiny
from gemini_jax import run as run_lib
from gemini_jax.data import numbers
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import class_predictions
from gemini_jax.parallel import sharding

TASK = '{number:shift}{series:wave} -> {number:height}'
COMMON = (
  "data.objective = 'prefix'",
  'data.sequence_length = 12',
  'data.pack = False',
  'data.batch_size = 32',
  'evaluate.batch_size = 32',
  'model.series.length = 16',
  'model.series.patch = 4',
  'train.num_steps = 400',
  'train.log_every = 100',
  'train.eval_every = 400',
  'train.save_every = 400',
)


def records_of(count, seed):
  """Heights that are the sum of a number and of a wave's slope.

  A tenth of the numbers is missing: half of these records are told by the
  field that is missing itself, since they are then 900 at least.
  """
  rng = np.random.default_rng(seed)
  records = []
  for _ in range(count):
    shift, slope = rng.normal(40, 5), rng.normal(0, 3)
    wave = slope * np.linspace(-1, 1, rng.integers(8, 17)) + 200
    record = {'wave': wave.tolist(), 'height': 1000 + shift + 3 * slope}
    if rng.random() < 0.9:
      record['shift'] = shift
    else:
      record['height'] = 900 + 3 * slope
    record['topics'] = ['steep'] * (slope > 0) + ['far'] * (shift > 40)
    records.append(record)
  return records


def write(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('numbers')
  write(folder / 'train.jsonl', records_of(1200, 0))
  write(folder / 'test.jsonl', records_of(200, 1))
  return folder


def experiment(folder, task, evaluator, *lines):
  return tiny.experiment(
    folder,
    *COMMON,
    f'data.tasks = ({task!r},)',
    f"data.train = ('jsonl:{folder}/train.jsonl',)",
    f"data.validation = ('jsonl:{folder}/test.jsonl',)",
    f"evaluate.evaluators = ('{evaluator}',)",
    *lines,
  )


@pytest.fixture(scope='module')
def trained(folder):
  file = experiment(folder, TASK, 'regression')
  workdir = folder / 'run'
  assert tiny.run(file, workdir) == 0
  return workdir


def test_a_number_is_learned_from_numbers_and_series(trained):
  last = tiny.metrics(trained)[-1]
  assert last['validation/r2'] > 0.98
  assert last['validation/rmse'] < 6
  assert 'validation/perplexity' not in last
  assert 'validation/token_accuracy' not in last
  report = (trained / 'report.md').read_text()
  assert 'rmse' in report
  # In normalised units, so that its root is the share of the deviation.
  assert last['validation/loss'] == pytest.approx(
    1 - last['validation/r2'], rel=0.2
  )


def test_predictions_have_the_units_of_the_data(trained, folder, tmp_path):
  """Without the training data, from a table, with errors in their lines."""
  records = records_of(200, 1)
  source, output = tmp_path / 'asked.csv', tmp_path / 'out.jsonl'
  with source.open('w', newline='') as file:
    table = csv.writer(file)
    table.writerow(['wave', 'shift'])
    for record in records:
      wave, shift = json.dumps(record['wave']), record.get('shift', '')
      table.writerow([wave, shift])
    table.writerow(['[1, 2]', 3])
    table.writerow([json.dumps([1.0] * 9), 'much'])
  hidden = folder / 'hidden.jsonl'
  (folder / 'train.jsonl').rename(hidden)
  try:
    options = (f'predict.source={source}', f'predict.output={output}')
    assert tiny.run('', trained, *options, mode='predict') == 0
  finally:
    hidden.rename(folder / 'train.jsonl')
  found = [json.loads(line) for line in output.read_text().splitlines()]
  *found, short, text = found
  assert 'has 2 steps' in short['error'] and 'not a number' in text['error']
  predicted = np.array([line['prediction'] for line in found])
  heights = np.array([record['height'] for record in records])
  assert np.sqrt(np.mean((predicted - heights) ** 2)) < 6
  run = run_lib.open_run(run_lib.saved_config(trained), trained)
  with sharding.use(run.mesh):
    params = run.restore_params().params
    expected = class_predictions.predict(run, params, run.loader('validation'))
  piece = task_lib.Piece('number', 'height')
  restored = numbers.restored(expected.outputs_NC[:, 0], piece, run.config.data)
  np.testing.assert_allclose(predicted, restored, atol=1e-3)
  truth = numbers.restored(expected.truth_N[:, 0], piece, run.config.data)
  np.testing.assert_allclose(truth, heights, atol=1e-3)


def test_nothing_is_learned_from_fields_of_other_records(folder, tmp_path):
  """The negative control: a gap between the two comes from the fields."""
  file = experiment(
    folder,
    '{series:wave} -> {number:height}',
    'regression',
    "data.shuffled_fields = ('wave',)",
    'train.num_steps = 150',
    'train.eval_every = 150',
    'train.save_every = 150',
  )
  assert tiny.run(file, tmp_path / 'run') == 0
  assert tiny.metrics(tmp_path / 'run')[-1]['validation/r2'] < 0.1


def test_labels_are_learned_and_predicted(folder, tmp_path):
  file = experiment(
    folder,
    '{number:shift}{series:wave} -> {labels:topics}',
    'classification',
    'train.num_steps = 200',
    'train.eval_every = 200',
    'train.save_every = 200',
  )
  workdir = tmp_path / 'run'
  assert tiny.run(file, workdir) == 0
  last = tiny.metrics(workdir)[-1]
  # Where the number is missing, one label is a guess.
  assert last['validation/micro_f1'] > 0.9
  assert last['validation/token_accuracy'] > 0.9
  output = tmp_path / 'out.jsonl'
  options = (
    f'predict.source={folder / "test.jsonl"}',
    f'predict.output={output}',
  )
  assert tiny.run('', workdir, *options, mode='predict') == 0
  found = [json.loads(line) for line in output.read_text().splitlines()]
  right = [
    set(line['prediction']) == set(record['topics'])
    for line, record in zip(found, records_of(200, 1), strict=True)
  ]
  assert np.mean(right) > 0.85
  for line in found:
    chances = line['probabilities']
    assert {k for k, p in chances.items() if p >= 0.5} == {*line['prediction']}


def table(**columns):
  """Lines of a table of 40 rows, `a`, `b` and `label`, with other columns."""
  rng = np.random.default_rng(0)
  columns = {
    name: rng.normal(size=40) for name in ('a', 'b', 'label')
  } | columns
  rows = [
    ','.join(map(str, row)) for row in zip(*columns.values(), strict=True)
  ]
  return [','.join(columns), *rows]


def series(*wave):
  """Lines of 40 series, of which one is `wave`."""
  records = records_of(40, 0)
  records[11]['wave'] = wave
  return [
    json.dumps({'series': r['wave'], 'label': r['height']}) for r in records
  ]


@pytest.mark.parametrize(
  ('lines', 'arg', 'message'),
  [
    (table(), 'number:price', "data.tasks: 'price' is not a field of its re"),
    (table(b=[3] * 40), 'number:label', "data.train: 'b' is 3 in all records"),
    (table(a=['much'] * 40), 'number:label', "'a' is not a number"),
    (table(label=['-'] * 40), 'number:label', "'label' is not a number"),
    ([*table(), '1,2'], 'number:label', '1 2 cells for 3 columns'),
    (series(1, 2), 'number:label', "'series' has 2 steps, less than the mod"),
    (series(*'abcdefgh'), 'number:label', "'series' is not a series"),
    ([], 'number:label', 'is empty'),
  ],
)  # fmt: skip
def test_bad_data_end_a_run_in_one_line(lines, arg, message, tmp_path, capsys):
  is_series = any(line.startswith('{') for line in lines)
  name, ending = ('series', 'jsonl') if is_series else ('tables', 'csv')
  file = tmp_path / f'file.{ending}'
  file.write_text('\n'.join(lines))
  argument = f'{tiny.ROOT}/experiments/{name}.py:table={file},target={arg}'
  options = ['model.series.patch=4'] if is_series else []
  options.append(f'data.cache_dir={tmp_path}')
  assert tiny.run(argument, tmp_path / 'run', *options) == 2
  *_, last = capsys.readouterr().err.splitlines()
  assert last.startswith('error: ') and message in last
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_tasks_with_other_numbers_are_predicted(tmp_path):
  """Also where the first record is unusable, and so the first batch empty."""
  write(
    tmp_path / 'data.jsonl',
    [{'a': i, 'b': -i, 'c': i * i, 'y': i / 2} for i in range(32)],
  )
  file = tiny.experiment(
    tmp_path,
    *COMMON,
    "data.tasks = ('one = {number:a} -> {number:y}',"
    " 'all = {number:a}{number:b}{number:c} -> {number:y}')",
    f"data.train = ('jsonl:{tmp_path}/data.jsonl',)",
    'data.validation = ()',
    'train.num_steps = 2',
  )
  assert tiny.run(file, tmp_path / 'run') == 0
  asked = write(tmp_path / 'asked.jsonl', [{'a': 'x'}, {'a': 3}, {'b': 1}])
  for task in ('one', 'all'):
    output = tmp_path / f'{task}.jsonl'
    options = (
      f'predict.source={asked}',
      f'predict.output={output}',
      f'predict.task={task}',
      'evaluate.batch_size=1',
    )
    assert tiny.run('', tmp_path / 'run', *options, mode='predict') == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert ['prediction' in line for line in lines] == [False, True, True]
