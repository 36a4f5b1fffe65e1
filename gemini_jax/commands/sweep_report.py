"""What a sweep found: its trials as a table, and which field matters."""

import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.commands import comparison, sweep_plan
from gemini_jax.train import metrics_file, run_report

FILE, RESULTS_FILE = 'report.md', 'sweep_results.json'
PICTURE_FILE = 'importance.png'
# Finished trials that a statement about fields needs.
MIN_TRIALS = 8
# Each split of the trials into two thirds and one third gives a forest.
_NUM_SPLITS, _NUM_TREES, _NUM_SHUFFLES = 10, 50, 5


def check(num_trials: int):
  """ConfigError, with the remedy, unless the results can be drawn."""
  needed = (
    ('matplotlib', 'sklearn') if num_trials >= MIN_TRIALS else ('matplotlib',)
  )
  for module in needed:
    config_lib.optional(
      module, f'the picture of a sweep needs {module}', 'sweep'
    )


def folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """The workdir of a trial; trials are numbered from 1."""
  return workdir / 'trials' / f'{number:03d}'


def row(
  workdir: pathlib.Path,
  sweep: sweep_plan.Sweep,
  number: int,
  values: sweep_plan.Values,
  error: str,
) -> dict[str, Any]:
  """What a finished trial has shown.

  Args:
    workdir: of the sweep.
    sweep: names the metric.
    number: of the trial.
    values: of its fields.
    error: how it failed; '': it did not.

  Returns:
    `best`, the best value of the metric, at `best_step`; `last`, its last
    value; `seconds` of training steps, without compilation and evaluation. All
    are None with an `error`, also where the metric is missing or not finite.

  Raises:
    ConfigError: the trial's metrics.jsonl cannot be read.
  """
  found: dict[str, Any] = {'trial': number, 'values': values, 'error': error}
  found |= dict.fromkeys(('best', 'best_step', 'last', 'seconds'))
  if error:
    return found
  lines = list(metrics_file.all_lines(folder(workdir, number)))
  curve = [
    (line['step'], line[sweep.metric]) for line in lines if sweep.metric in line
  ]
  if not curve:
    known = dict.fromkeys(name for line in lines for name in line)
    near = config_lib.nearest(sweep.metric, known)
    return found | {'error': f'no metric {sweep.metric!r}{near}'}
  for step, value in curve:
    if value is None:
      return found | {'error': f'{sweep.metric} is not finite at step {step:,}'}
  sign = 1 if sweep.goal == 'min' else -1
  step, best = min(curve, key=lambda point: sign * point[1])
  seconds, last_step = 0.0, 0
  for line in lines:
    if 'train/step_seconds' in line:
      seconds += line['train/step_seconds'] * (line['step'] - last_step)
      last_step = line['step']
  return found | {
    'best': best,
    'best_step': step,
    'last': curve[-1][1],
    'seconds': seconds,
  }


def spell(values: sweep_plan.Values) -> str:
  """The values of a trial in one line."""
  return ' '.join(f'{path}={_cell(value)}' for path, value in values.items())


def _cell(value: Any) -> str:
  if value is None or isinstance(value, float):
    return '-' if value is None else f'{value:.6g}'
  return value if isinstance(value, str) else json.dumps(value)


def ranked(
  sweep: sweep_plan.Sweep, rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """The best trial first; those that failed last."""
  sign = 1 if sweep.goal == 'min' else -1
  value = lambda row: math.inf if row['error'] else sign * row['best']
  return sorted(rows, key=lambda row: (value(row), row['trial']))


def table(
  sweep: sweep_plan.Sweep, rows: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
  """The head and the cells of each trial, the best first."""
  head = ['trial', *sweep.fields]
  head += [f'best {sweep.metric}', 'at step', 'last', 'training s', 'error']
  lines = [head]
  for row in ranked(sweep, rows):
    seconds = None if row['seconds'] is None else round(row['seconds'], 1)
    lines.append(
      [
        f'{row["trial"]:03d}',
        *(_cell(row['values'][name]) for name in sweep.fields),
        *map(_cell, (row['best'], row['best_step'], row['last'], seconds)),
        row['error'],
      ]
    )
  if not any(row['error'] for row in rows):
    lines = [line[:-1] for line in lines]
  return lines


def write(
  workdir: pathlib.Path,
  sweep: sweep_plan.Sweep,
  rows: Sequence[Mapping[str, Any]],
  num_trials: int,
) -> str:
  """Writes the results so far; the picture once all trials are there.

  Args:
    workdir: of the sweep.
    sweep: the sweep.
    rows: of the trials that have ended.
    num_trials: how many there will be.

  Returns:
    The table.

  Raises:
    OSError: a file cannot be written.
  """
  done = [row for row in rows if not row['error']]
  matters = None
  if len(rows) == num_trials and done:
    if len(done) >= MIN_TRIALS:
      matters = importance(sweep, done)
    _plot(sweep, done, matters, workdir / PICTURE_FILE)
  results = {
    'metric': sweep.metric,
    'goal': sweep.goal,
    'trials': ranked(sweep, rows),
    'importance': matters,
  }
  text = json.dumps(results, indent=1) + '\n'
  host.replace_file(workdir / RESULTS_FILE, text.encode())
  lines = table(sweep, rows)
  sections = [
    f'# {workdir.resolve().name}',
    f'{len(rows)} of {num_trials} trials of a {sweep.search} search have '
    f'ended, {len(rows) - len(done)} of them with an error. The best has the '
    f'{"least" if sweep.goal == "min" else "largest"} {sweep.metric}.',
    '## Trials',
    run_report.table(lines[0], lines[1:]),
    'Trial NNN is the workdir trials/NNN; the seconds are those of its '
    'training steps, without compilation and evaluation.',
  ]
  if len(rows) == num_trials and done:
    sections += ['## Which field matters', _explain(matters, len(done))]
    sections += [f'![importance]({PICTURE_FILE})']
  host.replace_file(workdir / FILE, ('\n\n'.join(sections) + '\n').encode())
  return comparison.align(lines)


def importance(
  sweep: sweep_plan.Sweep, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """How much of the order of trials each field explains.

  Random forests (scikit-learn) predict the rank of a trial's best metric from
  the values of its fields. On trials that a forest was not fitted to, the
  values of one field are shuffled: what the squared error grows by, divided by
  the variance of the ranks, is the field's importance. Of no influence: about
  0. Ranks, since a metric that diverges would outweigh all others.

  Args:
    sweep: the sweep.
    rows: of finished trials, at least MIN_TRIALS.

  Returns:
    `fields`: mean and standard deviation over the splits by field; `explained`:
    the share of the variance that the forests explain with nothing shuffled.
  """
  import sklearn.ensemble
  import sklearn.inspection
  import sklearn.model_selection
  from scipy import stats

  x = np.array([_numbers(name, rows) for name in sweep.fields], float).T
  y = stats.rankdata([row['best'] for row in rows])
  splits = sklearn.model_selection.ShuffleSplit(
    _NUM_SPLITS, test_size=1 / 3, random_state=0
  )
  errors, grown = [], []
  for i, (fitted, held_out) in enumerate(splits.split(x)):
    forest = sklearn.ensemble.RandomForestRegressor(_NUM_TREES, random_state=i)
    forest.fit(x[fitted], y[fitted])
    errors.append(np.mean((forest.predict(x[held_out]) - y[held_out]) ** 2))
    shuffled: Any = sklearn.inspection.permutation_importance(
      forest,
      x[held_out],
      y[held_out],
      scoring='neg_mean_squared_error',
      n_repeats=_NUM_SHUFFLES,
      random_state=i,
    )
    grown.append(shuffled.importances_mean)
  # All trials may be equal.
  variance = np.var(y) or 1.0
  mean, std = np.mean(grown, 0) / variance, np.std(grown, 0) / variance
  return {
    'explained': float(1 - np.mean(errors) / variance),
    'fields': {
      name: [float(mean[i]), float(std[i])]
      for i, name in enumerate(sweep.fields)
    },
  }


def _numbers(name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
  """Values of a field as numbers; what are none by the order of their text."""
  values = [row['values'][name] for row in rows]
  if _are_numbers(values):
    return values
  texts = [_cell(value) for value in values]
  order = sorted(set(texts))
  return [order.index(text) for text in texts]


def _are_numbers(values: Sequence[Any]) -> bool:
  return all(type(value) in (int, float) for value in values)


def _explain(matters: Mapping[str, Any] | None, num_done: int) -> str:
  """How the picture is read."""
  if matters is None:
    return (
      f'Only {num_done} trials have finished, and importance needs '
      f'{MIN_TRIALS}: the picture shows the trials alone.'
    )
  order = sorted(matters['fields'].items(), key=lambda item: -item[1][0])
  shares = ', '.join(
    f'{name} {mean:.2f} ± {std:.2f}' for name, (mean, std) in order
  )
  return (
    f'Importance: {shares}. Random forests predict the ranks of held-out '
    'trials; the importance of a field is what their squared error grows by '
    'once its values are shuffled, divided by the variance of the ranks, with '
    f'the standard deviation over {_NUM_SPLITS} splits. Without influence it '
    'is about 0. With nothing shuffled they explain '
    f'{matters["explained"]:.0%} of the variance; where that is near 0 or '
    'below, there are too few trials to tell.'
  )


def _plot(
  sweep: sweep_plan.Sweep,
  done: Sequence[Mapping[str, Any]],
  matters: Mapping[str, Any] | None,
  path: pathlib.Path,
):
  """Draws the importance, and the metric over each field."""
  import matplotlib.backends.backend_agg
  import matplotlib.figure

  num_panels = len(sweep.fields) + (matters is not None)
  num_columns = min(3, num_panels)
  num_rows = math.ceil(num_panels / num_columns)
  figure = matplotlib.figure.Figure(
    figsize=(4 * num_columns, 3 * num_rows), layout='constrained'
  )
  matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
  title = f'{len(done)} trials; the best has a star'
  if matters is None:
    title += f'; importance needs {MIN_TRIALS} trials'
  figure.suptitle(title, fontsize=9)
  panels = [
    figure.add_subplot(num_rows, num_columns, i + 1) for i in range(num_panels)
  ]
  for axes in panels:
    axes.tick_params(labelsize=7)
  if matters is not None:
    axes = panels.pop(0)
    order = sorted(matters['fields'].items(), key=lambda item: item[1][0])
    means, stds = zip(*(value for _, value in order), strict=True)
    axes.barh(range(len(order)), means, xerr=stds)
    axes.set_yticks(range(len(order)), [name for name, _ in order])
    axes.set_title('importance', fontsize=9)
  best = ranked(sweep, done)[0]
  y = [row['best'] for row in done]
  for name, axes in zip(sweep.fields, panels, strict=True):
    x = _numbers(name, done)
    axes.scatter(x, y, 14, alpha=0.8)
    axes.plot(x[done.index(best)], best['best'], '*', markersize=12)
    _scale(axes, 'y', y)
    values = [row['values'][name] for row in done]
    if not _are_numbers(values):
      labels = dict(zip(x, map(_cell, values), strict=True))
      axes.set_xticks(list(labels), list(labels.values()), parse_math=False)
    elif 'uniform' not in sweep.fields[name]:
      _scale(axes, 'x', x)
    axes.set_title(name, fontsize=9, parse_math=False)
    axes.set_ylabel(f'best {sweep.metric}', fontsize=7, parse_math=False)
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=100)
  host.replace_file(path, file.getvalue())


def _scale(axes: Any, axis: str, numbers: Sequence[float]):
  """A logarithmic axis for positive numbers of different magnitudes."""
  if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
    axes.set(**{f'{axis}scale': 'log'})
