"""What users have as videos, also what is none."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

import media_files
from gemini_jax import config as config_lib
from gemini_jax.data import (
  unusable,
  video,
)


def greys(found):
  """Which frames of `film` were taken."""
  height, width = found.size[1:]
  lower = found.values[: found.size[0], height // 2 + 1 : height, :width]
  return np.round(lower.mean((1, 2, 3)) / 10).astype(int).tolist()


def frames_folder(frames, folder):
  folder.mkdir()
  for i, values in enumerate(frames):
    (folder / f'frame{i}.png').write_bytes(media_files.encoded(values))
  (folder / 'readme.txt').write_text('no frame')
  (folder / '.hidden.png').write_text('no frame')
  return str(folder)


def files_of(frames):
  return [media_files.encoded(values) for values in frames]


WRITERS = {
  'array': np.asarray,
  'gif': media_files.gif,
  'mp4': media_files.mp4,
  'list of files': files_of,
  'list of arrays': list,
}


@pytest.mark.parametrize('kind', [*WRITERS, 'folder', 'webp'])
@pytest.mark.parametrize(
  ('count', 'expected'),
  [
    (12, [1, 4, 7, 10]),
    (4, [0, 1, 2, 3]),
    (3, [0, 1, 2]),
    (21, [2, 7, 13, 18]),
  ],
)
def test_frames_are_taken_at_even_distances(kind, count, expected, tmp_path):
  frames = media_files.film(count)
  if kind == 'webp':
    first, *others = map(PIL.Image.fromarray, frames)
    options = {'save_all': True, 'append_images': others, 'lossless': True}
    value = media_files.encoded(first, 'WEBP', **options)
  elif kind == 'folder':
    value = frames_folder(frames, tmp_path / 'frames')
  else:
    value = WRITERS[kind](frames)
  found = video.read(value, media_files.FILM)
  assert greys(found) == expected
  assert found.size.tolist() == [len(expected), 16, 24]
  assert found.values.shape == (4, 32, 48, 3)
  assert not found.values[len(expected) :].any()
  assert not found.values[:, 16:].any() and not found.values[:, :, 24:].any()
  upper = found.values[: len(expected), :7, :24]
  assert upper[..., 0].min() > 240 and upper[..., 1].max() < 220
  assert (found.values.dtype, found.size.dtype) == (np.uint8, np.int32)


def test_a_video_on_a_disk_is_looked_for_beside_the_list(tmp_path):
  frames_folder(media_files.film(5), tmp_path / 'frames')
  (tmp_path / 'film.mp4').write_bytes(media_files.mp4(media_files.film(5)))
  names = [f'frames/frame{i}.png' for i in range(5)]
  for value in ('frames', 'film.mp4', names):
    assert greys(video.read(value, media_files.FILM, str(tmp_path))) == [
      0,
      1,
      3,
      4,
    ]


def test_a_phone_s_video_is_turned_upright():
  """The red half, above, is to the left after a quarter turn to the left."""
  value = media_files.mp4(media_files.film(2), rotation=90)
  found = video.read(value, media_files.FILM)
  assert found.size.tolist() == [2, 24, 16]
  assert found.values[0, :24, :7, 0].min() > 240
  assert found.values[0, :24, 9:16, 0].max() < 20


def test_a_video_in_grey():
  config = config_lib.Model(
    image=media_files.GREY, video=config_lib.Video(num_frames=2)
  )
  found = video.read(media_files.pixels(0, 2, 28, 28), config)
  np.testing.assert_array_equal(
    found.values[..., 0], media_files.pixels(0, 2, 28, 28)
  )


def two_pages():
  """A TIFF, small for what it says it holds."""
  file = io.BytesIO()
  pages = [PIL.Image.new('1', size) for size in ((8, 8), (12_000, 12_000))]
  pages[0].save(
    file,
    'TIFF',
    save_all=True,
    append_images=pages[1:],
    compression='group4',
  )
  return file.getvalue()


FRAGMENTS = media_files.mp4(
  media_files.film(9), movflags='frag_keyframe+empty_moov'
)
BAD_VIDEOS = {
  'text': (b'#EXTM3U\n/etc/passwd\n', 'not a video'),
  'a cut MP4': (
    media_files.MP4[: len(media_files.MP4) // 2],
    'a damaged video',
  ),
  'a cut MP4 in fragments': (
    FRAGMENTS[: len(FRAGMENTS) // 2],
    'a damaged video',
  ),
  'no frames': (np.zeros((0, 5, 5, 3), np.uint8), 'a video without frames'),
  'a missing file': ('no/such/file.mp4', 'a missing file'),
  'no name': ('', 'a missing file'),
  'a TIFF whose second page is huge': (
    two_pages(),
    'more pixels than data.max_media_pixels',
  ),
  'a list of numbers': ([[0, 1], [2, 3]], 'neither an array, bytes nor a path'),
  'a list without frames': ([], 'a video without frames'),
  'a list with a cut frame': (
    [media_files.encoded(media_files.pixels(0, 30, 30, 3))[:200]],
    'a damaged picture',
  ),
  'frames of no channels': (np.zeros((2, 5), np.uint8), 'not an array [f, h'),
  'a cut GIF': (
    media_files.gif(media_files.pixels(0, 5, 30, 30, 3))[:-2000],
    'a damaged picture',
  ),
}


@pytest.mark.parametrize('case', BAD_VIDEOS)
def test_what_is_no_video_is_refused_with_a_short_reason(case):
  value, reason = BAD_VIDEOS[case]
  with pytest.raises(unusable.UnusableError) as error:
    video.read(value, media_files.FILM)
  assert str(error.value).startswith(reason)
  assert len(str(error.value)) < 45


def test_a_folder_must_hold_frames_of_one_size(tmp_path):
  with pytest.raises(unusable.UnusableError, match=r'^a video without frames$'):
    video.read(str(tmp_path), media_files.FILM)
  for i in (1, 2):
    (tmp_path / f'{i}.png').write_bytes(
      media_files.encoded(media_files.pixels(i, 16, 8 * i, 3))
    )
  with pytest.raises(unusable.UnusableError, match=r'frames of several sizes$'):
    video.read(str(tmp_path), media_files.FILM)


def moving_bomb(side, count):
  """A GIF of `count` frames that each change a pixel of a large picture."""
  size = struct.pack('<HH', side, side)
  pixel = struct.pack('<HHHH', 0, 0, 1, 1)
  frame = b'\x21\xf9\x04\x04\x01\0\0\0\x2c' + pixel
  frame += b'\0\x02\x02\x44\x01\0'
  head = b'GIF89a' + size + b'\x80\0\0' + b'\0\0\0\xff\xff\xff'
  return head + frame * count + b';'


def test_a_small_file_of_many_large_frames_is_not_decoded():
  bomb = moving_bomb(8000, 1000)
  assert len(bomb) < 24_000
  with pytest.raises(
    unusable.UnusableError, match='a video too large for data'
  ):
    video.read(bomb, media_files.FILM)
  assert video.read(moving_bomb(80, 9), media_files.FILM).size.tolist() == [
    4,
    32,
    32,
  ]


def test_a_forged_size_of_a_video_is_damage():
  """FFmpeg's error is also a MemoryError, which once ended a training."""
  # The size of the only sample entry.
  where = media_files.MP4.index(b'avc1', media_files.MP4.index(b'stsd')) - 2
  forged = media_files.MP4[:where] + b'\xff' * 4 + media_files.MP4[where + 4 :]
  with pytest.raises(unusable.UnusableError, match='a damaged video'):
    video.read(forged, media_files.FILM)
