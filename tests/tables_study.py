r"""Tables and series beside gradient boosting, on the same folds.

  python tests/tables_study.py --out=runs/tables --sets cancer diabetes
  pip download --no-deps aeon && unzip aeon-*.whl 'aeon/datasets/data/*'
  python tests/tables_study.py --out=runs/tables --series=aeon/datasets/data \
      --sets ItalyPowerDemand GunPoint

cancer and diabetes are those of scikit-learn; the series are files of UCR, of
which both parts are read. The records are shuffled once. Five folds each, of
`experiments/tables.py` and `experiments/series.py` as they are. Gradient
boosting is both of scikit-learn's with their defaults, of series on the values
of all steps; the difference is to the better one, in the mean over the folds.
A linear model of the same numbers stands beside them.
What was trained before in the same folder is not trained again.
"""

import argparse
import contextlib
import io
import json
import pathlib
import re
import time
from typing import Any

import numpy as np
from sklearn import datasets, ensemble, linear_model, pipeline, preprocessing

import gate_study
from experiments import tables
from gemini_jax import main as main_lib

ROOT = pathlib.Path(__file__).parents[1]
# The target of each set; that of a series is a class.
TARGETS = {'cancer': 'class:kind', 'diabetes': 'number:progression'}
# Two kinds of boosting, then a linear model of scaled numbers.
PEERS = {
  'class': (
    ensemble.GradientBoostingClassifier(random_state=0),
    ensemble.HistGradientBoostingClassifier(random_state=0),
    pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(max_iter=1000),
    ),
  ),
  'number': (
    ensemble.GradientBoostingRegressor(random_state=0),
    ensemble.HistGradientBoostingRegressor(random_state=0),
    pipeline.make_pipeline(
      preprocessing.StandardScaler(), linear_model.Ridge()
    ),
  ),
}


def main():
  """Prints a row of the table for each set."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--series', type=pathlib.Path)
  parser.add_argument('--sets', nargs='+', default=list(TARGETS))
  parser.add_argument('--config', nargs='*', default=[])
  options = parser.parse_args()
  options.out.mkdir(parents=True, exist_ok=True)
  print(
    '| set | records | metric | ours | GradientBoosting | '
    'HistGradientBoosting | linear | difference | s a fold |\n'
    '|---|---|---|---|---|---|---|---|---|'
  )
  for name in options.sets:
    records = records_of(name, options.series)
    order = np.random.default_rng(0).permutation(len(records))
    records = [records[i] for i in order]
    target = TARGETS.get(name, 'class:label')
    kind, field = target.split(':')
    path = options.out / f'{name}.jsonl'
    path.write_text(''.join(f'{json.dumps(r)}\n' for r in records))
    begin = time.monotonic()
    ours = [
      trained(path, target, fold, options.config)
      for fold in range(tables.NUM_FOLDS)
    ]
    seconds = (time.monotonic() - begin) / tables.NUM_FOLDS
    peers = [
      [fitted(peer, records, field, fold) for fold in range(tables.NUM_FOLDS)]
      for peer in PEERS[kind]
    ]
    metric, best = 'accuracy', max
    if kind == 'number':
      metric, best = 'RMSE', min
    cells = [
      *(spelled(scores) for scores in (ours, *peers)),
      spelled(np.subtract(ours, best(peers[:2], key=np.mean))),
    ]
    print(
      f'| {name} | {len(records)} | {metric} | {" | ".join(cells)} | '
      f'{seconds:.0f} |',
      flush=True,
    )


def spelled(scores) -> str:
  """The mean over folds and its standard error."""
  error = np.std(scores, ddof=1) / len(scores) ** 0.5
  return f'{np.mean(scores):.4g} ± {error:.2g}'


def records_of(name: str, folder: pathlib.Path | None) -> list[dict]:
  """The records of a set, in its own order."""
  if name == 'cancer':
    data = datasets.load_breast_cancer()
    names = [re.sub(r'\W', '_', field) for field in data.feature_names]
    labels = [str(data.target_names[i]) for i in data.target]
    field = 'kind'
  elif name == 'diabetes':
    data = datasets.load_diabetes(scaled=False)
    names, labels = data.feature_names, data.target.tolist()
    field = 'progression'
  else:
    return series_of(name, folder)
  return [
    dict(zip(names, row.tolist(), strict=True)) | {field: label}
    for row, label in zip(data.data, labels, strict=True)
  ]


def series_of(name: str, folder: pathlib.Path | None) -> list[dict]:
  """Of files of UCR: channels with `:` between them, and then the class."""
  assert folder is not None, '--series is needed'
  records = []
  for part in ('TRAIN', 'TEST'):
    text = (folder / name / f'{name}_{part}.ts').read_text()
    for line in text.split('@data', 1)[1].splitlines():
      if line.strip():
        *channels, label = line.strip().split(':')
        values = [[float(v) for v in c.split(',')] for c in channels]
        steps = [list(step) for step in zip(*values, strict=True)]
        records.append({'series': steps, 'label': label})
  return records


def trained(
  path: pathlib.Path, target: str, fold: int, overrides: list[str]
) -> float:
  """The accuracy or RMSE of a run, which is trained now."""
  name = 'tables' if path.stem in TARGETS else 'series'
  workdir = path.parent / f'{path.stem}_{fold}'
  config = ROOT / 'experiments' / f'{name}.py'
  with contextlib.redirect_stdout(io.StringIO()):
    code = main_lib.main(
      [
        'main',
        f'--config={config}:table={path},target={target},fold={fold}',
        f'--workdir={workdir}',
        *(f'--config.{override}' for override in overrides),
      ]
    )
  assert code == 0, workdir
  kind = 'rmse' if target.startswith('number') else 'accuracy'
  return gate_study.newest(workdir)[f'test/{kind}']


def fitted(peer: Any, records: list[dict], field: str, fold: int) -> float:
  """The same of one of the PEERS."""
  x = np.array(
    [
      np.ravel(
        r['series'] if 'series' in r else [r[n] for n in r if n != field]
      )
      for r in records
    ]
  )
  y = np.array([record[field] for record in records])
  is_test = np.arange(len(records)) % tables.NUM_FOLDS == fold
  predicted = peer.fit(x[~is_test], y[~is_test]).predict(x[is_test])
  if np.issubdtype(y.dtype, np.floating):
    return float(np.sqrt(np.mean((predicted - y[is_test]) ** 2)))
  return float(np.mean(predicted == y[is_test]))


if __name__ == '__main__':
  main()
