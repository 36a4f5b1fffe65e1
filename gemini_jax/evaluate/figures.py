"""Figures of matplotlib as PNG, for reports; no figure where it is missing."""

import io
import warnings
from typing import Any


def new(width: float, height: float, **options: Any) -> Any | None:
  """An empty figure of so many inches; None without matplotlib."""
  try:
    import matplotlib.backends.backend_agg
    import matplotlib.figure
  except ImportError:
    return None
  figure = matplotlib.figure.Figure(figsize=(width, height), **options)
  matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
  return figure


def png(figure: Any) -> bytes:
  """The figure as a PNG of 100 pixels an inch."""
  file = io.BytesIO()
  with warnings.catch_warnings():
    # A box stands for a character that the font lacks.
    warnings.filterwarnings('ignore', 'Glyph .* missing')
    figure.savefig(file, format='png', dpi=100)
  return file.getvalue()
