"""Reports hold what was measured, and report.md shows the newest of them."""

import io
import json
import sys

import numpy as np
import PIL.Image
import pytest

import tiny
from gemini_jax.evaluate import (
  classification_metrics,
  classification_pictures,
  classification_report,
  report_files,
)
from gemini_jax.train import run_report

pytest.importorskip('sklearn', reason='needs gemini_jax[tasks]')
pytest.importorskip('seqeval', reason='needs gemini_jax[tasks]')
pytest.importorskip('matplotlib', reason='needs gemini_jax[plot]')


def arrays(num_classes, num_examples=200, seed=0):
  """Classes and probabilities, the right one mostly the largest."""
  rng = np.random.default_rng(seed)
  truth_N = rng.integers(num_classes, size=num_examples)
  x_NC = rng.normal(size=(num_examples, num_classes))
  x_NC[np.arange(num_examples), truth_N] += 3
  p_NC = np.exp(x_NC)
  return truth_N, p_NC / p_NC.sum(axis=1, keepdims=True)


def read(workdir, name):
  return json.loads((workdir / f'reports/{name}.json').read_text())


def markdown(workdir):
  return run_report.compose(workdir, tiny.config(), 4, [])


def test_classes_are_reported(tmp_path):
  names = ('cat', 'dog | wolf', 'a\nbird')
  truth_N, p_NC = arrays(3)
  metrics = classification_report.write(
    tmp_path, 'test', 4, names, truth_N, p_NC
  )
  assert metrics == classification_metrics.metrics(names, truth_N, p_NC)
  found = read(tmp_path, '00000004-test-classes')
  assert found['metrics'] == metrics
  confusion_CC = np.array(found['details']['confusion'])
  assert confusion_CC.trace() == round(metrics['accuracy'] * 200)
  assert sum(found['details']['bins']['counts']) == 200
  text = markdown(tmp_path)
  assert '## Test: classes' in text
  f1, support = (found['columns'][name][1] for name in ('f1', 'support'))
  assert f'| {f1:.4g} | {support} |' in text
  assert '| dog \\| wolf | ' in text and '| a bird | ' in text
  for title in ('confusion', 'reliability'):
    file = f'reports/00000004-test-classes-{title}.png'
    assert f'![{title}]({file})' in text
    with PIL.Image.open(tmp_path / file) as picture:
      assert picture.height > 300


def test_the_newest_of_each_split_task_and_kind_is_shown(tmp_path):
  for step, split, task in (
    (9, 'test', ''),
    (12, 'test', ''),
    (3, 'validation', 'tone'),
  ):
    truth, predicted = [['B-X', 'O']], [['B-X', 'I-X']]
    classification_report.write_spans(
      tmp_path, split, step, truth, predicted, task
    )
  labels, p_NC = np.eye(3, 4), np.full((3, 4), 0.3)
  classification_report.write_labels(tmp_path, 'test', 12, 'abcd', labels, p_NC)
  metrics = classification_report.write_numbers(
    tmp_path, 'test', 12, [1.0], [2.0]
  )
  # No R2 of one number.
  assert np.isnan(metrics['r2'])
  assert read(tmp_path, '00000012-test-numbers')['metrics']['r2'] is None
  (tmp_path / 'reports/00000099-test-spans.json').write_text('{"step": 99}')
  (tmp_path / 'reports/00000098-test-spans.json').write_text('[' * 100_000)
  text = markdown(tmp_path)
  headings = [line[3:] for line in text.splitlines() if line.startswith('## ')]
  assert headings[1:5] == [
    'Test: labels',
    'Test: numbers',
    'Test: spans',
    'Validation, tone: spans',
  ]
  assert '00000012-test-spans' in text and '00000009' not in text


def test_of_many_classes_the_worst_are_shown(tmp_path):
  truth_N, p_NC = arrays(60, 1200)
  names = [f'class {i}' for i in range(60)]
  # Class 7 is never predicted.
  p_NC[:, 7] = 0
  p_NC /= p_NC.sum(axis=1, keepdims=True)
  classification_report.write(tmp_path, 'test', 4, names, truth_N, p_NC)
  rows = [
    line for line in markdown(tmp_path).splitlines() if line[:8] == '| class '
  ]
  assert len(rows) == 40 and rows[0].startswith('| class 7 | 0 | 0 | 0 | ')


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
  (tmp_path / 'reports').write_text('')
  metrics = classification_report.write(tmp_path, 'test', 4, 'abc', *arrays(3))
  assert metrics['accuracy'] > 0.5
  assert 'reports cannot be written' in caplog.text


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  classification_report.write(tmp_path, 'test', 4, 'abc', *arrays(3))
  assert read(tmp_path, '00000004-test-classes')['pictures'] == {}
  assert [path.suffix for path in (tmp_path / 'reports').iterdir()] == ['.json']


def pixels(png):
  return np.asarray(PIL.Image.open(io.BytesIO(png)).convert('RGB'), int)


@pytest.mark.parametrize('num_classes', [2, 30, 100])
def test_confusions_are_dark_where_they_are(num_classes):
  """All of class 0 is taken for the last one: the corner at the top right."""
  confusion_CC = 5 * np.eye(num_classes, dtype=int)
  confusion_CC[0] = np.roll(confusion_CC[0], -1)
  names = [f'$x_{i}$ is a class' for i in range(num_classes)]
  image = pixels(classification_pictures.confusion(names, confusion_CC))
  # The darkest blue of the map.
  dark = np.abs(image - (8, 48, 107)).sum(axis=2) < 10
  rows, columns = np.nonzero(dark)
  # In the column of the last class, which is right in the last row.
  top, bottom = columns[rows == rows.min()], columns[rows == rows.max()]
  assert np.ptp([top.min(), bottom.min()]) <= 2
  assert np.ptp([top.max(), columns.max()]) <= 2
  assert np.ptp(top) < image.shape[1] / 2


def test_pairs_that_are_confused_most():
  confusion_CC = np.array([[9, 0, 4], [0, 9, 0], [7, 0, 9]])
  pairs = classification_pictures.most_confused(confusion_CC, 5)
  assert pairs == [(2, 0), (0, 2)]
  assert classification_pictures.most_confused(confusion_CC, 1) == [(2, 0)]
  assert classification_pictures.shortened('a\nlong   name of one') == (
    'a long name of …'
  )


def test_newest_of_no_folder_is_nothing(tmp_path):
  assert report_files.newest(tmp_path) == []
