"""What users have as pictures, also what is none."""

import numpy as np
import PIL.Image
import pytest

import media_files
from gemini_jax.data import (
  image,
  unusable,
)


@pytest.mark.parametrize('channels', [(), (1,)])
def test_a_picture_of_the_canvas_is_not_changed(channels):
  values = media_files.pixels(0, 28, 28, *channels)
  whole = values.reshape(28, 28, 1)
  for value in (values, media_files.encoded(values.reshape(28, 28))):
    found = image.read(value, media_files.GREY)
    np.testing.assert_array_equal(found.values, whole)
    assert found.size.tolist() == [28, 28]
    assert (found.values.dtype, found.size.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((32, 48), (32, 48)),
    ((24, 32), (24, 32)),
    ((23, 33), (24, 32)),  # To whole patches.
    ((16, 24), (16, 24)),  # Half as large: as it is.
    ((15, 20), (32, 40)),  # Less: enlarged to fit; 20 of 15 is 42.7 of 32.
    ((1, 1), (32, 32)),
    ((64, 96), (32, 48)),
    (
      (320, 40),
      (32, 8),
    ),  # 4 pixels wide, but never less than a patch.
    ((20, 4000), (8, 48)),
  ],
)
def test_pictures_are_fitted_to_whole_patches(shape, expected):
  found = image.read(media_files.pixels(1, *shape, 3), media_files.COLOUR)
  assert tuple(found.size) == expected
  assert found.values.shape == (32, 48, 3)
  inside = np.zeros((32, 48), bool)
  inside[: expected[0], : expected[1]] = True
  assert not found.values[~inside].any()
  assert found.values[inside].any(-1).mean() > 0.9


def test_what_a_picture_shows_stays_where_it_is():
  values = np.zeros((96, 144, 3), np.uint8)
  values[:48, 72:] = 200, 100, 50
  found = image.read(media_files.encoded(values), media_files.COLOUR).values
  # Away from the edges, where the resampling overshoots.
  assert (found[2:12, 28:46] == (200, 100, 50)).all()
  assert not found[20:].any() and not found[:12, :20].any()


def test_grey_becomes_colour_and_colour_grey():
  grey = media_files.pixels(2, 32, 48)
  found = image.read(media_files.encoded(grey), media_files.COLOUR)
  np.testing.assert_array_equal(found.values, np.stack([grey] * 3, -1))
  values = media_files.pixels(3, 28, 28, 3)
  luma = values @ np.array([0.299, 0.587, 0.114])
  found = image.read(media_files.encoded(values), media_files.GREY)
  np.testing.assert_allclose(found.values[..., 0], luma, atol=1)


def test_alpha_goes_over_white():
  values = media_files.pixels(4, 32, 48, 4)
  alpha = values[..., 3:] / 255
  expected = values[..., :3] * alpha + 255 * (1 - alpha)
  for value in (values, media_files.encoded(values)):
    found = image.read(value, media_files.COLOUR).values
    np.testing.assert_allclose(found, expected, atol=1)
  see_through = media_files.encoded(
    np.zeros((28, 28), np.uint8), transparency=0
  )
  assert (image.read(see_through, media_files.GREY).values == 255).all()


def test_palettes_keep_their_colours_and_transparency():
  palette = PIL.Image.new('P', (48, 32), 1)
  palette.putpalette([9, 9, 9, 10, 200, 30])
  palette.paste(0, (0, 0, 24, 32))
  found = image.read(
    media_files.encoded(palette, transparency=0), media_files.COLOUR
  ).values
  assert (found[:, 24:] == (10, 200, 30)).all()
  assert (found[:, :24] == 255).all()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM', 'array'])
def test_sixteen_bits_become_eight(kind):
  values = media_files.pixels(5, 28, 28).astype(np.uint16) * 257
  value = values if kind == 'array' else media_files.encoded(values, kind)
  found = image.read(value, media_files.GREY).values[..., 0]
  np.testing.assert_array_equal(found, values // 257)


def test_floats_are_shares_of_white():
  values = np.random.default_rng(6).random((28, 28), np.float32)
  found = image.read(values, media_files.GREY).values[..., 0]
  np.testing.assert_array_equal(found, np.round(values * 255))


def test_a_photo_is_turned_upright():
  values = np.zeros((48, 32, 3), np.uint8)
  values[:8] = 255, 0, 0
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # Its top is to the right.
  found = image.read(media_files.encoded(values, exif=exif), media_files.COLOUR)
  assert found.size.tolist() == [32, 48]
  assert (found.values[:, 40:] == (255, 0, 0)).all()
  assert not found.values[:, :40].any()


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF'])
def test_other_formats_are_read(kind):
  values = np.full((32, 48, 3), (30, 160, 220), np.uint8)
  found = image.read(media_files.encoded(values, kind), media_files.COLOUR)
  np.testing.assert_allclose(found.values, values, atol=6)


def test_pictures_in_cmyk_are_read():
  values = PIL.Image.new('CMYK', (48, 32), (255, 0, 0, 0))
  found = image.read(media_files.encoded(values, 'TIFF'), media_files.COLOUR)
  assert (found.values == (0, 255, 255)).all()


def test_a_path_is_looked_for_beside_the_list(tmp_path, monkeypatch):
  (tmp_path / 'a').mkdir()
  values = media_files.pixels(7, 28, 28)
  file = tmp_path / 'a/x.png'
  file.write_bytes(media_files.encoded(values))
  monkeypatch.chdir(tmp_path)
  for name, folder in [('x.png', 'a'), (str(file), 'b'), (file, '')]:
    found = image.read(name, media_files.GREY, folder).values[..., 0]
    np.testing.assert_array_equal(found, values)
  with pytest.raises(unusable.UnusableError, match=r'^a missing file$'):
    image.read('x.png', media_files.GREY)
  # Of several lists no folder is the right one.
  np.testing.assert_array_equal(
    image.read(str(file), media_files.GREY, None).values[..., 0], values
  )
  with pytest.raises(unusable.UnusableError, match='lists in several folders'):
    image.read('x.png', media_files.GREY, None)


JPEG = media_files.encoded(media_files.pixels(8, 40, 40, 3), 'JPEG')
BAD_PICTURES = {
  'no bytes': (b'', 'an empty file'),
  'text': (b'GIF, not: a text', 'not a picture'),
  'a cut PNG': (
    media_files.PNG[: len(media_files.PNG) // 2],
    'a damaged picture',
  ),
  'only the header of a PNG': (media_files.PNG[:20], 'not a picture'),
  'a changed PNG': (
    media_files.PNG[:1000] + bytes(50) + media_files.PNG[1050:],
    'a damaged picture',
  ),
  'a cut JPEG': (JPEG[: len(JPEG) // 2], 'a damaged picture'),
  'a moving GIF': (media_files.gif(media_files.film(3)), 'an animated picture'),
  '20,000 pixels': (
    media_files.large_png(20_000, 20_000),
    'more pixels than data.max_med',
  ),
  '12,000 pixels': (
    media_files.large_png(12_000, 12_000),
    'more pixels than data.max_med',
  ),
  'a little more': (
    media_files.large_png(11_586, 11_585),
    'more pixels than data.max_med',
  ),
  'a long side': (
    media_files.large_png(1, 65_537),
    'a side too long for data.max_media',
  ),
  'no pixels': (media_files.large_png(0, 10), 'not a picture'),
  'PostScript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a'),
  'a sound': (
    media_files.wav(media_files.tone(440, 8000), 8000),
    'not a picture',
  ),
  'a missing file': ('no/such/file.png', 'a missing file'),
  'a name with a null': ('a\0b', 'a missing file'),
  'a folder': ('.', 'a missing file'),
  'a number': (3, 'neither an array, bytes nor a path'),
  'nothing': (None, 'neither an array, bytes nor a path'),
  'an empty array': (np.zeros((0, 5), np.uint8), 'an empty picture'),
  'a vector': (np.zeros(5, np.uint8), 'not an array [h, w]'),
  'five channels': (np.zeros((5, 5, 5), np.uint8), 'not an array [h, w]'),
  'a video': (np.zeros((2, 5, 5, 3), np.uint8), 'not an array [h, w]'),
  'int64': (np.zeros((5, 5), np.int64), 'a picture of dtype int64'),
  'NaN': (np.full((5, 5), np.nan), 'a picture of numbers that are not finite'),
  'floats up to 255': (np.full((5, 5), 255.0), 'a picture beyond [0, 1]'),
}


@pytest.mark.parametrize('case', BAD_PICTURES)
def test_what_is_no_picture_is_refused_with_a_short_reason(case):
  value, reason = BAD_PICTURES[case]
  with pytest.raises(unusable.UnusableError) as error:
    image.read(value, media_files.COLOUR)
  assert str(error.value).startswith(reason)
  assert len(str(error.value)) < 45


def test_a_picture_that_is_damaged_anywhere_never_stops_a_run():
  """Every outcome is a picture or an UnusableError."""
  generator = np.random.default_rng(9)
  refused = 0
  for content in (
    media_files.PNG,
    JPEG,
    media_files.encoded(media_files.pixels(8, 9, 9), 'TIFF'),
    media_files.gif(media_files.film(2)),
  ):
    for _ in range(100):
      changed = np.frombuffer(content, np.uint8).copy()
      where = generator.integers(0, len(changed), 4)
      changed[where] = generator.integers(0, 256, 4)
      try:
        image.read(changed.tobytes(), media_files.COLOUR)
      except unusable.UnusableError:
        refused += 1
      except UserWarning:  # Pillow warns of some; here that is an error.
        pass
  assert refused > 100
