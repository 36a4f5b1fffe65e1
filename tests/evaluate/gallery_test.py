"""A page shows what it is given, and is left out without matplotlib."""

import sys

import numpy as np
import PIL.Image
import pytest

from gemini_jax.evaluate import gallery


def plain(colour, *shape):
  return np.full((*shape, 3), colour, np.uint8)


def shows(path, colour):
  """(pixels, mean column) of a colour on a page."""
  page = np.asarray(PIL.Image.open(path).convert('RGB'))
  found = (page == colour).all(-1)
  return found.sum(), np.nonzero(found)[1].mean() if found.any() else None


def test_pictures_are_a_grid(tmp_path):
  path = tmp_path / 'samples/page.png'
  colours = [(250, 20 * i, 0) for i in range(11)]
  pictures = [plain(colour, 8, 8) for colour in colours]
  pictures.append(np.full((8, 8, 1), 77, np.uint8))
  assert gallery.write(path, pictures, ['a'] * 12)
  for colour in [*colours, (77, 77, 77)]:
    assert shows(path, colour)[0] > 2000, colour
  columns = [shows(path, colour)[1] for colour in colours]
  assert columns[:8] == sorted(columns[:8])
  np.testing.assert_allclose(columns[8:], columns[:3], atol=2)


def test_a_page_of_flat_pictures_is_no_higher_than_they_need(tmp_path):
  path, heights = tmp_path / 'page.png', []
  for height in (4, 16, 32):
    assert gallery.write(
      path, [plain((250, 0, 0), height, 16)] * 16, ['a'] * 16
    )
    with PIL.Image.open(path) as page:
      heights.append(page.height)
    assert shows(path, (250, 0, 0))[0] > 16 * 1000
  assert heights[0] < 0.6 * heights[1] < 0.6 * heights[2]


def test_the_lines_of_a_caption_are_kept_apart(tmp_path):
  """Each is cut to three; a page is as high as the longest needs."""
  heights = []
  for caption in ('a', 'a\nb', 'word ' * 90, '\n'.join(['word ' * 90] * 2)):
    path = tmp_path / 'page.png'
    assert gallery.write(path, [plain((250, 0, 0), 8, 8)] * 2, ['a', caption])
    with PIL.Image.open(path) as page:
      heights.append(page.height)
    assert shows(path, (250, 0, 0))[0] > 4000
  assert heights[0] == heights[1] == heights[2] < heights[3]


def test_a_video_is_a_filmstrip(tmp_path):
  path = tmp_path / 'page.png'
  colours = [(10, 200, 60 * i) for i in range(4)]
  video = np.stack([plain(colour, 8, 8) for colour in colours])
  picture, sound = plain((250, 0, 0), 8, 8), np.ones(900)
  items = [picture, video, picture, sound]
  assert gallery.write(path, items, ['x'] * 4, sample_rate=8000)
  assert shows(path, (250, 0, 0))[0] > 2000
  columns = [shows(path, colour)[1] for colour in colours]
  assert columns == sorted(columns)
  assert gallery.filmstrip(video).shape == (8, 4 * 8 + 3, 3)
  assert gallery.filmstrip(np.repeat(video, 9, 0)).shape[1] == 12 * 9 - 1


@pytest.mark.parametrize('sample_rate', [4000, 8000, 44100])
def test_a_spectrogram_shows_a_tone_where_it_is(sample_rate):
  times = np.arange(sample_rate) / sample_rate
  tone = np.where(times < 0.5, 300, 1500)
  samples = 9000 * np.sin(2 * np.pi * tone * times)
  values, step = gallery.spectrogram(samples, sample_rate)
  loudest = values.argmax(0) * step
  half = len(loudest) // 2
  assert (np.abs(loudest[2 : half - 3] - 300) <= step).all()
  assert (np.abs(loudest[half + 3 : -2] - 1500) <= step).all()


@pytest.mark.parametrize(
  'samples', [np.zeros(500), np.ones(1), np.zeros(1, np.int16)]
)
def test_silence_and_a_single_sample_are_drawn(samples, tmp_path):
  assert np.isfinite(gallery.spectrogram(samples, 8000)[0]).all()
  assert gallery.write(
    tmp_path / 'page.png', [samples], ['short'], sample_rate=8000
  )


@pytest.mark.parametrize(
  'caption',
  [
    '',
    'costs $5 or $\\frac{',
    '一只红色的鸟',
    'word ' * 90,
    'a\nb\x07',
    'é' * 99,
  ],
)
def test_any_text_is_a_caption(caption, tmp_path):
  assert gallery.write(tmp_path / 'p.png', [plain((1, 2, 3), 4, 4)], [caption])


def test_without_matplotlib_nothing_is_written_but_a_line(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  lines = []
  monkeypatch.setattr(
    gallery.logging, 'info', lambda form, *values: lines.append(form % values)
  )
  path = tmp_path / 'page.png'
  assert not gallery.write(path, [plain((1, 2, 3), 4, 4)], ['a'])
  assert not path.exists()
  assert lines == [
    "page.png is not drawn: pip install 'gemini_jax[plot]' for matplotlib"
  ]


def test_a_page_that_cannot_be_written_costs_a_line(tmp_path, caplog):
  """Such as on a disk that can only be read."""
  (tmp_path / 'samples').touch()
  picture = plain((250, 0, 0), 4, 4)
  assert not gallery.write(tmp_path / 'samples/page.png', [picture], ['a'])
  assert 'page.png cannot be written: ' in caplog.text


def test_a_page_that_is_there_can_stay(tmp_path):
  path = tmp_path / 'pages' / 'page.png'
  for color in ((1, 2, 3), (4, 5, 6)):
    assert gallery.write(path, [plain(color, 4, 4)], ['a'], keep=True)
  assert shows(path, (1, 2, 3))[0] and not shows(path, (4, 5, 6))[0]
  assert shows(path.with_name('page-2.png'), (4, 5, 6))[0]
