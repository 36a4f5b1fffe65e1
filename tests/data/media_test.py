"""Media by their kind: limits, mistakes of ours, missing libraries."""

import pathlib
import sys

import numpy as np
import pytest

import media_files
from gemini_jax import config as config_lib
from gemini_jax.data import (
  audio,
  image,
  media,
  prepared,
  unusable,
  video,
)

PREPARED = pathlib.Path(__file__).parents[2] / '../shared/tfds'
needs_prepared = pytest.mark.skipif(
  not PREPARED.is_dir(), reason='no prepared data sets in ../shared/tfds'
)


def test_the_largest_medium_is_a_field_of_the_config():
  value = media_files.large_png(11_586, 11_585)
  with pytest.raises(unusable.UnusableError, match='more pixels than data'):
    media.read('image', value, media_files.FILM)
  with pytest.raises(unusable.UnusableError, match='a damaged picture'):
    media.read('image', value, media_files.FILM, max_pixels=1 << 28)
  value = media_files.mp4(np.zeros((9, 16, 24, 3), np.uint8))
  # As long as FFmpeg's own sizes, which are of whole blocks.
  limit = 24 * 2048
  assert video.read(value, media_files.FILM, max_pixels=limit).size[0] == 4
  with pytest.raises(unusable.UnusableError, match='a side too long'):
    video.read(value, media_files.FILM, max_pixels=limit - 1)
  with pytest.raises(unusable.UnusableError, match='more pixels than'):
    video.read(value, media_files.FILM, max_pixels=16 * 24 - 1)


@pytest.mark.parametrize(
  ('kind', 'module', 'name', 'value'),
  [
    (
      'image',
      image,
      'from_array',
      media_files.encoded(media_files.pixels(5, 9, 9).astype(np.uint16), 'PNG'),
    ),
    ('audio', audio, '_mono', media_files.FLAC),
    ('video', image, 'flatten', media_files.MP4),
    ('video', image, 'flatten', media_files.gif(media_files.film(3))),
    ('video', image, 'check_size', media_files.MP4),
  ],
)
def test_a_mistake_of_ours_is_no_damage(kind, module, name, value, monkeypatch):
  def wrong(*arguments):
    raise TypeError('a mistake')

  monkeypatch.setattr(module, name, wrong)
  config = config_lib.Model(
    image=media_files.COLOUR,
    audio=media_files.SOUND,
    video=media_files.FILM.video,
  )
  with pytest.raises(TypeError, match='a mistake'):
    media.read(kind, value, config)


@pytest.mark.parametrize(
  ('name', 'kind', 'value', 'remedy'),
  [
    (
      'PIL',
      'image',
      media_files.PNG,
      "pictures need Pillow; .*'gemini_jax.media.'",
    ),
    ('soundfile', 'audio', media_files.FLAC, 'sounds need soundfile; .*media'),
    (
      'soxr',
      'audio',
      media_files.wav(media_files.tone(9, 16000), 16000),
      'sounds need soxr; .*media',
    ),
    (
      'av',
      'video',
      media_files.MP4,
      "videos need av; .*pip install 'gemini_jax.video.'",
    ),
  ],
)
def test_a_missing_library_is_told_with_the_remedy(
  name, kind, value, remedy, monkeypatch
):
  for module in [m for m in sys.modules if m.split('.')[0] == name]:
    monkeypatch.setitem(sys.modules, module, None)
  monkeypatch.setitem(sys.modules, name, None)
  config = config_lib.Model(
    image=media_files.COLOUR,
    audio=media_files.SOUND,
    video=media_files.FILM.video,
  )
  with pytest.raises(config_lib.ConfigError, match=remedy):
    media.read(kind, value, config)


@needs_prepared
@pytest.mark.parametrize('name', ['fashion_mnist', 'stamps'])
def test_prepared_data_sets_are_read(name):
  config = config_lib.Data(data_dir=str(PREPARED))
  rows = prepared.read(name, 'test', config)
  side = 28 if name == 'fashion_mnist' else 64
  for index in range(6):
    record = rows.records[index]
    canvas = config_lib.Image(height=side, width=side, patch=4)
    found = image.read(record['image'], canvas)
    assert found.size.tolist() == [side, side]
    assert found.values.std() > 5
    if name == 'stamps' and len(record['speech_fr']):
      spoken = config_lib.Audio(sample_rate=16000, seconds=1.0)
      found = audio.read(record['speech_fr'], spoken, sample_rate=8000)
      assert found.size[0] == min(16000, 2 * len(record['speech_fr']))
      assert found.values.std() > 50
