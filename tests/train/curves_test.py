"""Curves show every metric that changes, with and without matplotlib."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from gemini_jax.train import curves as curves_lib

LINES = [
  {'step': 1, 'train/loss': 4.0, 'train/tokens': 7.0, 'train/mfu': 0.1},
  {'step': 2, 'train/loss': 3.0, 'train/kl': None, 'train/tokens': 7.0},
  {'step': 2, 'validation/loss': 3.5, 'validation/odd_$_name': 1.0},
  {'step': 3, 'train/loss': 2.0, 'train/kl': 0.5, 'train/mfu': 0.2},
  {'step': 4, 'validation/loss': 2.5, 'validation/odd_$_name': 2.0},
]


def test_series_are_of_what_has_two_steps():
  """Neither timings, nor numbers of one step, nor what is not finite."""
  assert curves_lib.series(LINES) == {
    'train/loss': ([1, 2, 3], [4.0, 3.0, 2.0]),
    'validation/loss': ([2, 4], [3.5, 2.5]),
    'validation/odd_$_name': ([2, 4], [1.0, 2.0]),
  }


def test_a_panel_shows_a_metric_of_all_splits():
  curves = dict(reversed(curves_lib.series(LINES).items()))
  panels = curves_lib.panels(curves)
  assert list(panels) == ['loss', 'odd_$_name']
  assert set(panels['loss']) == {'train/loss', 'validation/loss'}


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ([3.0, 2.0, 1.0], '█▅▁'),
    ([1.0, 1.0], '▁▁'),
    ([float(i // 8) for i in range(64)], '▁▁▁▁▂▂▂▂▃▃▃▃▄▄▄▄▅▅▅▅▆▆▆▆▇▇▇▇████'),
  ],
)
def test_a_sparkline_goes_from_the_least_to_the_largest(values, expected):
  assert curves_lib.sparkline(values) == expected


def test_a_picture_has_a_line_where_the_values_are():
  """A falling curve is high at the left and low at the right."""
  curves = {'train/loss': (list(range(50)), [50.0 - i for i in range(50)])}
  png = curves_lib.picture(curves)
  pixels = np.asarray(PIL.Image.open(io.BytesIO(png)).convert('RGB'), int)
  blue = (pixels[..., 2] - pixels[..., 0]) > 80
  rows, columns = np.nonzero(blue)
  assert len(rows) > 100
  assert np.corrcoef(rows, columns)[0, 1] > 0.95


def test_many_metrics_are_cut_to_twelve_panels():
  curves = {f'train/{i}': ([0, 1], [0.0, 1.0]) for i in range(40)}
  png = curves_lib.picture(curves)
  width, height = PIL.Image.open(io.BytesIO(png)).size
  assert (width, height) == (1200, 1040)


def test_without_curves_or_matplotlib_there_is_no_picture(monkeypatch):
  assert curves_lib.picture({}) is None
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  assert curves_lib.picture(curves_lib.series(LINES)) is None
