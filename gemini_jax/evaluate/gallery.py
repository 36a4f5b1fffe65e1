"""A page of pictures, sounds and videos as a PNG, for a person to look at."""

import functools
import pathlib
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from gemini_jax import config as config_lib
from gemini_jax.infer import samples

# Cells in a row of pictures and in a row of sounds.
_COLUMNS, _SOUND_COLUMNS = 8, 4
_MAX_FRAMES = 12
_CAPTION_LINES = 3
# Fonts with Chinese characters, which matplotlib's own lacks; those that are
# installed are used.
_FONTS = (
  'Noto Sans CJK SC',
  'Noto Sans CJK JP',
  'WenQuanYi Zen Hei',
  'Droid Sans Fallback',
  'Microsoft YaHei',
  'PingFang SC',
)


def write(
  path: pathlib.Path,
  items: Sequence[np.ndarray],
  captions: Sequence[str],
  sample_rate: int = 0,
  keep: bool = False,
) -> bool:
  """Writes a page.

  Args:
    path: of the PNG; its folder is made.
    items: pictures uint8[H, W, 1 or 3]; videos uint8[F, H, W, 1 or 3], shown
      as filmstrips; sounds [N], shown as spectrograms. None has padding.
    captions: one for each item; line breaks are kept.
    sample_rate: samples a second of the sounds.
    keep: keep an existing file, and number the new one: page-2.png.

  Returns:
    False, after one line in the log, where matplotlib is missing or the file
    cannot be written.
  """
  assert len(items) == len(captions) > 0, (len(items), len(captions))
  try:
    import matplotlib.figure
    import matplotlib.font_manager
  except ImportError:
    logging.info(
      "%s is not drawn: pip install 'gemini_jax[plot]' for matplotlib",
      path.name,
    )
    return False
  known = {font.name for font in matplotlib.font_manager.fontManager.ttflist}
  fonts = ['DejaVu Sans', *(name for name in _FONTS if name in known)]
  sounds = any(item.ndim == 1 for item in items)
  cells, num_rows, num_columns = _places(items, sounds)
  titles = [
    _title(item, text) for item, text in zip(items, captions, strict=True)
  ]
  # Inches.
  title_height = 0.2 + 0.1 * max(
    _CAPTION_LINES, *(title.count('\n') + 1 for title in titles)
  )
  figure = matplotlib.figure.Figure(
    figsize=(
      (3.0 if sounds else 1.5) * num_columns + 0.5,
      (title_height + _row_height(items)) * num_rows + 0.3,
    ),
    layout='constrained',
  )
  grid = figure.add_gridspec(num_rows, num_columns)
  for item, title, (row, columns) in zip(items, titles, cells, strict=True):
    axes = figure.add_subplot(grid[row, columns])
    if item.ndim == 1:
      _draw_sound(axes, item, sample_rate)
    else:
      _draw_pixels(axes, filmstrip(item) if item.ndim == 4 else item)
    # Dollar signs in a text are no mathematics.
    axes.set_title(title, fontsize=7, fontfamily=fonts, parse_math=False)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path = samples.claim(path) if keep else path
    with warnings.catch_warnings():
      # A character that no font has is drawn as a box.
      warnings.filterwarnings('ignore', 'Glyph .* missing')
      figure.savefig(path, dpi=100)
  except OSError as error:
    # Such as a read-only disk; an evaluation goes on without the page.
    logging.warning('%s cannot be written: %s', path, error.strerror or error)
    return False
  return True


def write_picture(path: pathlib.Path, values: np.ndarray):
  """Writes uint8[H, W, 1 or 3] as a PNG of as many pixels.

  Raises:
    ConfigError: Pillow is missing.
  """
  pillow = config_lib.optional('PIL.Image', 'pictures need Pillow', 'media')
  path.parent.mkdir(parents=True, exist_ok=True)
  values = values[..., 0] if values.shape[-1] == 1 else values
  pillow.fromarray(values).save(path)


def as_picture(values: np.ndarray) -> np.ndarray:
  """A picture as it is; of a log-mel spectrogram [F, M] uint8[M, F, 1].

  Low frequencies are at the bottom.
  """
  if values.dtype == np.uint8:
    return values
  shade = np.clip((values.T[::-1] + 2) / 4, 0, 1)
  return np.round(255 * shade).astype(np.uint8)[..., None]


def _title(item: np.ndarray, caption: str) -> str:
  """A caption wrapped to the width of its item, three lines for each line."""
  width = 60 if item.ndim == 4 else 36 if item.ndim == 1 else 20
  wrap = functools.partial(
    textwrap.wrap, width=width, max_lines=_CAPTION_LINES, placeholder='…'
  )
  return '\n'.join(part for line in caption.splitlines() for part in wrap(line))


def _row_height(items: Sequence[np.ndarray]) -> float:
  """Height in inches; of pictures alone, that of the tallest."""
  if any(item.ndim != 3 for item in items):
    return 1.5
  return 1.5 * min(max(len(item) / item.shape[1] for item in items), 2)


def _places(
  items: Sequence[np.ndarray], sounds: bool
) -> tuple[list[tuple[int, Any]], int, int]:
  """The cell of each item, and the numbers of rows and columns.

  A video fills a row.
  """
  single = sum(item.ndim != 4 for item in items)
  num_columns = min(max(single, 1), _SOUND_COLUMNS if sounds else _COLUMNS)
  if single < len(items):  # Room for the frames.
    num_columns = max(num_columns, _SOUND_COLUMNS)
  cells, row, column = [], 0, 0
  for item in items:
    if column and (item.ndim == 4 or column == num_columns):
      row, column = row + 1, 0
    if item.ndim == 4:
      cells.append((row, slice(None)))
      row += 1
    else:
      cells.append((row, column))
      column += 1
  return cells, row + bool(column), num_columns


def filmstrip(frames: np.ndarray) -> np.ndarray:
  """uint8[H, F (W + gap), C] of uint8[F, H, W, C]; at most 12 of the frames."""
  if len(frames) > _MAX_FRAMES:
    chosen = np.linspace(0, len(frames) - 1, _MAX_FRAMES).round().astype(int)
    frames = frames[chosen]
  gap = max(frames.shape[2] // 16, 1)
  padded = np.pad(
    frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255
  )
  return np.concatenate(list(padded), axis=1)[:, :-gap]


def spectrogram(
  samples: np.ndarray, sample_rate: int
) -> tuple[np.ndarray, float]:
  """float32[bins, frames] in dB below its peak, and Hz from bin to bin."""
  window = int(min(max(2 ** round(np.log2(sample_rate * 0.03)), 16), 4096))
  hop = window // 4
  padded = np.pad(np.asarray(samples, np.float64), window // 2)
  framed = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
  power = np.abs(np.fft.rfft(framed * np.hanning(window))) ** 2
  peak = power.max() or 1.0
  return 10 * np.log10(power / peak + 1e-8).T.astype(
    np.float32
  ), sample_rate / window


def _draw_sound(axes: Any, samples: np.ndarray, sample_rate: int):
  assert sample_rate > 0, 'a spectrogram has seconds and Hz'
  values, _ = spectrogram(samples, sample_rate)
  extent = (0, len(samples) / sample_rate, 0, sample_rate / 2)
  axes.imshow(
    values, origin='lower', aspect='auto', extent=extent, vmin=-80, vmax=0
  )
  axes.tick_params(labelsize=6)
  axes.set_xlabel('s', fontsize=6, labelpad=0)
  axes.set_ylabel('Hz', fontsize=6, labelpad=0)


def _draw_pixels(axes: Any, values: np.ndarray):
  if values.shape[-1] == 1:
    values = np.repeat(values, 3, -1)
  axes.imshow(values, interpolation='nearest')
  axes.axis('off')
