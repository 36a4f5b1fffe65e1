"""What users have as pictures, sounds and videos, also what is none."""

import io
import pathlib
import struct
import sys
import zlib

import av
import numpy as np
import PIL.Image
import pytest
import soundfile
import soxr

from gemini_jax import config as config_lib
from gemini_jax.data import media, readers

PREPARED = pathlib.Path(__file__).parents[2] / '../shared/tfds'
needs_prepared = pytest.mark.skipif(
  not PREPARED.is_dir(), reason='no prepared data sets in ../shared/tfds'
)
GREY = config_lib.Image(height=28, width=28, channels=1, patch=7)
COLOUR = config_lib.Image(height=32, width=48, channels=3, patch=8)
SOUND = config_lib.Audio(sample_rate=8000, seconds=0.5)
FILM = config_lib.Model(image=COLOUR, video=config_lib.Video(num_frames=4))


def pixels(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(values, kind='PNG', **options):
  file = io.BytesIO()
  picture = (
    values
    if not isinstance(values, np.ndarray)
    else PIL.Image.fromarray(values)
  )
  picture.save(file, kind, **options)
  return file.getvalue()


def wav(samples, sample_rate, kind='WAV', subtype=None):
  file = io.BytesIO()
  soundfile.write(file, samples, sample_rate, format=kind, subtype=subtype)
  return file.getvalue()


def tone(frequency, sample_rate, seconds=0.5, level=0.5):
  times = np.arange(round(sample_rate * seconds)) / sample_rate
  return level * np.sin(2 * np.pi * frequency * times)


def loudest(samples, sample_rate):
  """The strongest frequency, Hz."""
  spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
  return spectrum.argmax() * sample_rate / len(samples)


def film(count, height=16, width=24):
  """uint8[F, H, W, 3]: frame i is of the grey 10 i, its upper half red."""
  frames = np.empty((count, height, width, 3), np.uint8)
  frames[:] = 10 * np.arange(count)[:, None, None, None]
  frames[:, : height // 2, :, 0] = 255
  return frames


def gif(frames, **options):
  first, *others = map(PIL.Image.fromarray, frames)
  return encoded(first, 'GIF', save_all=True, append_images=others, **options)


def mp4(frames, rotation=0, **options):
  file = io.BytesIO()
  with av.open(file, 'w', format='mp4', options=options) as container:
    stream = container.add_stream('libx264', rate=10)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.options = 'yuv444p', {'qp': '0'}
    if rotation:
      stream.set_display_rotation(rotation)
    for values in frames:
      frame = av.VideoFrame.from_ndarray(values, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return file.getvalue()


# Pictures.


@pytest.mark.parametrize('channels', [(), (1,)])
def test_a_picture_of_the_canvas_is_not_changed(channels):
  values = pixels(0, 28, 28, *channels)
  whole = values.reshape(28, 28, 1)
  for value in (values, encoded(values.reshape(28, 28))):
    found = media.image(value, GREY)
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
    ((320, 40), (32, 8)),  # 4 pixels wide, but never less than a patch.
    ((20, 4000), (8, 48)),
  ],
)
def test_pictures_are_fitted_to_whole_patches(shape, expected):
  found = media.image(pixels(1, *shape, 3), COLOUR)
  assert tuple(found.size) == expected
  assert found.values.shape == (32, 48, 3)
  inside = np.zeros((32, 48), bool)
  inside[: expected[0], : expected[1]] = True
  assert not found.values[~inside].any()
  assert found.values[inside].any(-1).mean() > 0.9


def test_what_a_picture_shows_stays_where_it_is():
  values = np.zeros((96, 144, 3), np.uint8)
  values[:48, 72:] = 200, 100, 50
  found = media.image(encoded(values), COLOUR).values
  # Away from the edges, where the resampling overshoots.
  assert (found[2:12, 28:46] == (200, 100, 50)).all()
  assert not found[20:].any() and not found[:12, :20].any()


def test_grey_becomes_colour_and_colour_grey():
  grey = pixels(2, 32, 48)
  found = media.image(encoded(grey), COLOUR)
  np.testing.assert_array_equal(found.values, np.stack([grey] * 3, -1))
  values = pixels(3, 28, 28, 3)
  luma = values @ np.array([0.299, 0.587, 0.114])
  found = media.image(encoded(values), GREY)
  np.testing.assert_allclose(found.values[..., 0], luma, atol=1)


def test_alpha_goes_over_white():
  values = pixels(4, 32, 48, 4)
  alpha = values[..., 3:] / 255
  expected = values[..., :3] * alpha + 255 * (1 - alpha)
  for value in (values, encoded(values)):
    found = media.image(value, COLOUR).values
    np.testing.assert_allclose(found, expected, atol=1)
  see_through = encoded(np.zeros((28, 28), np.uint8), transparency=0)
  assert (media.image(see_through, GREY).values == 255).all()


def test_palettes_keep_their_colours_and_transparency():
  palette = PIL.Image.new('P', (48, 32), 1)
  palette.putpalette([9, 9, 9, 10, 200, 30])
  palette.paste(0, (0, 0, 24, 32))
  found = media.image(encoded(palette, transparency=0), COLOUR).values
  assert (found[:, 24:] == (10, 200, 30)).all()
  assert (found[:, :24] == 255).all()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM', 'array'])
def test_sixteen_bits_become_eight(kind):
  values = pixels(5, 28, 28).astype(np.uint16) * 257
  value = values if kind == 'array' else encoded(values, kind)
  found = media.image(value, GREY).values[..., 0]
  np.testing.assert_array_equal(found, values // 257)


def test_floats_are_shares_of_white():
  values = np.random.default_rng(6).random((28, 28), np.float32)
  found = media.image(values, GREY).values[..., 0]
  np.testing.assert_array_equal(found, np.round(values * 255))


def test_a_photo_is_turned_upright():
  values = np.zeros((48, 32, 3), np.uint8)
  values[:8] = 255, 0, 0
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # Its top is to the right.
  found = media.image(encoded(values, exif=exif), COLOUR)
  assert found.size.tolist() == [32, 48]
  assert (found.values[:, 40:] == (255, 0, 0)).all()
  assert not found.values[:, :40].any()


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF'])
def test_other_formats_are_read(kind):
  values = np.full((32, 48, 3), (30, 160, 220), np.uint8)
  found = media.image(encoded(values, kind), COLOUR)
  np.testing.assert_allclose(found.values, values, atol=6)


def test_pictures_in_cmyk_are_read():
  values = PIL.Image.new('CMYK', (48, 32), (255, 0, 0, 0))
  found = media.image(encoded(values, 'TIFF'), COLOUR)
  assert (found.values == (0, 255, 255)).all()


def test_a_path_is_looked_for_beside_the_list(tmp_path, monkeypatch):
  (tmp_path / 'a').mkdir()
  values = pixels(7, 28, 28)
  file = tmp_path / 'a/x.png'
  file.write_bytes(encoded(values))
  monkeypatch.chdir(tmp_path)
  for name, folder in [('x.png', 'a'), (str(file), 'b'), (file, '')]:
    found = media.image(name, GREY, folder).values[..., 0]
    np.testing.assert_array_equal(found, values)
  with pytest.raises(readers.UnusableError, match=r'^a missing file$'):
    media.image('x.png', GREY)
  # Of several lists no folder is the right one.
  np.testing.assert_array_equal(
    media.image(str(file), GREY, None).values[..., 0], values
  )
  with pytest.raises(readers.UnusableError, match='lists in several folders'):
    media.image('x.png', GREY, None)


def large_png(width, height):
  """The beginning of a PNG: what it says of its size."""

  def chunk(name, content):
    whole = name + content
    size, sum_ = struct.pack('>I', len(content)), zlib.crc32(whole)
    return size + whole + struct.pack('>I', sum_)

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  body = chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + body


PNG = encoded(pixels(8, 40, 40, 3))
JPEG = encoded(pixels(8, 40, 40, 3), 'JPEG')
BAD_PICTURES = {
  'no bytes': (b'', 'an empty file'),
  'text': (b'GIF, not: a text', 'not a picture'),
  'a cut PNG': (PNG[: len(PNG) // 2], 'a damaged picture'),
  'only the header of a PNG': (PNG[:20], 'not a picture'),
  'a changed PNG': (
    PNG[:1000] + bytes(50) + PNG[1050:],
    'a damaged picture',
  ),
  'a cut JPEG': (JPEG[: len(JPEG) // 2], 'a damaged picture'),
  'a moving GIF': (gif(film(3)), 'an animated picture'),
  '20,000 pixels': (large_png(20_000, 20_000), 'more pixels than data.max_med'),
  '12,000 pixels': (large_png(12_000, 12_000), 'more pixels than data.max_med'),
  'a little more': (large_png(11_586, 11_585), 'more pixels than data.max_med'),
  'a long side': (large_png(1, 65_537), 'a side too long for data.max_media'),
  'no pixels': (large_png(0, 10), 'not a picture'),
  'PostScript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a'),
  'a sound': (wav(tone(440, 8000), 8000), 'not a picture'),
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
  with pytest.raises(readers.UnusableError) as error:
    media.image(value, COLOUR)
  assert str(error.value).startswith(reason)
  assert len(str(error.value)) < 45


def test_a_picture_that_is_damaged_anywhere_never_stops_a_run():
  """Every outcome is a picture or an UnusableError."""
  generator = np.random.default_rng(9)
  refused = 0
  for content in (PNG, JPEG, encoded(pixels(8, 9, 9), 'TIFF'), gif(film(2))):
    for _ in range(100):
      changed = np.frombuffer(content, np.uint8).copy()
      where = generator.integers(0, len(changed), 4)
      changed[where] = generator.integers(0, 256, 4)
      try:
        media.image(changed.tobytes(), COLOUR)
      except readers.UnusableError:
        refused += 1
      except UserWarning:  # Pillow warns of some; here that is an error.
        pass
  assert refused > 100


# Sounds.


def test_samples_at_the_model_s_rate_are_not_changed():
  samples = np.random.default_rng(0).integers(-32768, 32768, 3000, np.int16)
  values = [samples, samples.astype(np.int64), samples / 32768]
  values += [wav(samples, 8000), wav(samples, 8000, 'FLAC')]
  values += [np.stack([samples] * 3, 1)]
  values += [wav(samples / 32768, 8000, subtype='DOUBLE')]
  for value in values:
    found = media.audio(value, SOUND)
    assert found.size.tolist() == [3000]
    assert found.values.shape == (SOUND.num_samples,)
    np.testing.assert_array_equal(found.values[:3000], samples)
    assert not found.values[3000:].any()
  assert (found.values.dtype, found.size.dtype) == (np.int16, np.int32)


@pytest.mark.parametrize('sample_rate', [4000, 8000, 11025, 44100, 192_000])
@pytest.mark.parametrize('kind', ['array', 'WAV', 'FLAC', 'OGG'])
def test_a_tone_keeps_its_frequency_and_loudness(sample_rate, kind):
  if kind == 'OGG' and sample_rate == 4000:
    pytest.skip('Vorbis has no such rate')
  value = samples = tone(700, sample_rate, 0.4)
  if kind != 'array':
    value = wav(samples, sample_rate, kind)
  found = media.audio(value, SOUND, sample_rate=sample_rate)
  assert abs(found.size[0] - 3200) <= 1
  inside = found.values[200:3000] / 32768
  assert abs(loudest(inside, 8000) - 700) < 3
  np.testing.assert_allclose(np.abs(inside).max(), 0.5, atol=0.05)


def test_what_is_above_the_new_rate_s_half_is_filtered():
  found = media.audio(tone(5000, 44100), SOUND, sample_rate=44100).values
  assert np.abs(found[200:3800]).max() < 40  # An alias: at 3,000 Hz.


def test_of_a_long_sound_the_beginning_is_decoded():
  """And it is as if all of it had been resampled."""
  samples = np.random.default_rng(1).uniform(-0.5, 0.5, 44100 * 20)
  samples = np.round(samples * 32768).astype(np.int16)
  whole = soxr.resample(samples.astype(np.float32), 44100, 8000)
  for value in (samples, wav(samples, 44100)):
    found = media.audio(value, SOUND, sample_rate=44100)
    assert found.size.tolist() == [SOUND.num_samples]
    np.testing.assert_allclose(found.values, whole[: SOUND.num_samples], atol=1)


def test_channels_are_averaged():
  samples = np.random.default_rng(2).uniform(-0.9, 0.9, (2000, 8))
  expected = np.round(samples.mean(1) * 32768)
  for value in (samples, wav(samples, 8000), wav(samples, 8000, 'FLAC')):
    found = media.audio(value, SOUND).values[:2000]
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize('subtype', ['PCM_U8', 'PCM_24', 'PCM_32', 'FLOAT'])
def test_samples_of_other_widths(subtype):
  samples = tone(300, 8000, 0.3)
  found = media.audio(wav(samples, 8000, subtype=subtype), SOUND).values[:2400]
  step = 256 if subtype == 'PCM_U8' else 1
  np.testing.assert_allclose(found, samples * 32768, atol=step)


def id3(size, flags=0):
  """A tag of `size` zeros, which may have a footer."""
  numbers = [size >> shift & 127 for shift in (21, 14, 7, 0)]
  head = bytes([4, 0, flags, *numbers])
  footer = b'3DI' + head if flags else b''
  return b'ID3' + head + bytes(size) + footer


@pytest.mark.parametrize(
  'before',
  [b'', id3(300), bytes(100), id3(20) + bytes(700), id3(9, 16), id3(5) * 2],
)
def test_an_mp3_may_have_tags_and_zeros_before_it(before, tmp_path):
  plain = wav(tone(700, 16000), 16000, 'MP3')
  expected = media.audio(plain, SOUND)
  (tmp_path / 'a').write_bytes(before + plain)
  for value in (before + plain, tmp_path / 'a'):
    found = media.audio(value, SOUND)
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_little_too_loud_is_clipped():
  found = media.audio(np.array([1.2, -1.7, 0.5]), SOUND).values
  assert found[:3].tolist() == [32767, -32768, 16384]


FLAC = wav(tone(440, 8000), 8000, 'FLAC')
NOT_FINITE = np.array([0.1, np.nan, 0.2])
BAD_SOUNDS = {
  'no bytes': (b'', 'an empty file'),
  'text': (b'RIFF, not: a text', 'not a sound'),
  'a WAV without samples': (wav(np.zeros(0), 8000), 'an empty sound'),
  'a cut FLAC': (FLAC[: len(FLAC) // 2], 'a damaged sound'),
  'only the header of a WAV': (wav(tone(9, 8000), 8000)[:20], 'not a sound'),
  'a picture': (PNG, 'not a sound'),
  'a missing file': ('no/such/file.wav', 'a missing file'),
  'NaN in a file': (
    wav(NOT_FINITE, 8000, subtype='FLOAT'),
    'a sound of numbers that are not finite',
  ),
  'NaN': (NOT_FINITE, 'a sound of numbers that are not finite'),
  'infinity': (np.array([np.inf]), 'a sound of numbers that are not finite'),
  'floats of 16 bits': (tone(9, 8000) * 32768, 'a sound far beyond [-1, 1]'),
  'integers of 32 bits': (
    np.array([70_000, 3], np.int32),
    'a sound beyond 16 bits',
  ),
  'an empty array': (np.zeros(0, np.int16), 'an empty sound'),
  'channels first': (np.zeros((2, 800), np.int16), 'a sound of too many'),
  'a cube': (np.zeros((2, 2, 2), np.int16), 'not an array [n]'),
  'uint8': (np.zeros(9, np.uint8), 'a sound of dtype uint8'),
  'an odd rate': (wav(np.zeros(9), 7), 'a sound of an unlikely rate'),
}


@pytest.mark.parametrize('case', BAD_SOUNDS)
def test_what_is_no_sound_is_refused_with_a_short_reason(case):
  value, reason = BAD_SOUNDS[case]
  with pytest.raises(readers.UnusableError) as error:
    media.audio(value, SOUND)
  assert str(error.value).startswith(reason)
  assert len(str(error.value)) < 45


def test_a_sound_too_short_to_resample_is_empty():
  with pytest.raises(readers.UnusableError, match=r'^an empty sound$'):
    media.audio(np.ones(1, np.int16), SOUND, sample_rate=48000)


# Videos.


def greys(found):
  """Which frames of `film` were taken."""
  height, width = found.size[1:]
  lower = found.values[: found.size[0], height // 2 + 1 : height, :width]
  return np.round(lower.mean((1, 2, 3)) / 10).astype(int).tolist()


def frames_folder(frames, folder):
  folder.mkdir()
  for i, values in enumerate(frames):
    (folder / f'frame{i}.png').write_bytes(encoded(values))
  (folder / 'readme.txt').write_text('no frame')
  (folder / '.hidden.png').write_text('no frame')
  return str(folder)


def files_of(frames):
  return [encoded(values) for values in frames]


WRITERS = {
  'array': np.asarray,
  'gif': gif,
  'mp4': mp4,
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
  frames = film(count)
  if kind == 'webp':
    first, *others = map(PIL.Image.fromarray, frames)
    options = {'save_all': True, 'append_images': others, 'lossless': True}
    value = encoded(first, 'WEBP', **options)
  elif kind == 'folder':
    value = frames_folder(frames, tmp_path / 'frames')
  else:
    value = WRITERS[kind](frames)
  found = media.video(value, FILM)
  assert greys(found) == expected
  assert found.size.tolist() == [len(expected), 16, 24]
  assert found.values.shape == (4, 32, 48, 3)
  assert not found.values[len(expected) :].any()
  assert not found.values[:, 16:].any() and not found.values[:, :, 24:].any()
  upper = found.values[: len(expected), :7, :24]
  assert upper[..., 0].min() > 240 and upper[..., 1].max() < 220
  assert (found.values.dtype, found.size.dtype) == (np.uint8, np.int32)


def test_a_video_on_a_disk_is_looked_for_beside_the_list(tmp_path):
  frames_folder(film(5), tmp_path / 'frames')
  (tmp_path / 'film.mp4').write_bytes(mp4(film(5)))
  names = [f'frames/frame{i}.png' for i in range(5)]
  for value in ('frames', 'film.mp4', names):
    assert greys(media.video(value, FILM, str(tmp_path))) == [0, 1, 3, 4]


def test_a_phone_s_video_is_turned_upright():
  """The red half, above, is to the left after a quarter turn to the left."""
  value = mp4(film(2), rotation=90)
  found = media.video(value, FILM)
  assert found.size.tolist() == [2, 24, 16]
  assert found.values[0, :24, :7, 0].min() > 240
  assert found.values[0, :24, 9:16, 0].max() < 20


def test_a_video_in_grey():
  config = config_lib.Model(image=GREY, video=config_lib.Video(num_frames=2))
  found = media.video(pixels(0, 2, 28, 28), config)
  np.testing.assert_array_equal(found.values[..., 0], pixels(0, 2, 28, 28))


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


MP4 = mp4(film(9))
FRAGMENTS = mp4(film(9), movflags='frag_keyframe+empty_moov')
BAD_VIDEOS = {
  'text': (b'#EXTM3U\n/etc/passwd\n', 'not a video'),
  'a cut MP4': (MP4[: len(MP4) // 2], 'a damaged video'),
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
    [encoded(pixels(0, 30, 30, 3))[:200]],
    'a damaged picture',
  ),
  'frames of no channels': (np.zeros((2, 5), np.uint8), 'not an array [f, h'),
  'a cut GIF': (gif(pixels(0, 5, 30, 30, 3))[:-2000], 'a damaged picture'),
}


@pytest.mark.parametrize('case', BAD_VIDEOS)
def test_what_is_no_video_is_refused_with_a_short_reason(case):
  value, reason = BAD_VIDEOS[case]
  with pytest.raises(readers.UnusableError) as error:
    media.video(value, FILM)
  assert str(error.value).startswith(reason)
  assert len(str(error.value)) < 45


def test_a_folder_must_hold_frames_of_one_size(tmp_path):
  with pytest.raises(readers.UnusableError, match=r'^a video without frames$'):
    media.video(str(tmp_path), FILM)
  for i in (1, 2):
    (tmp_path / f'{i}.png').write_bytes(encoded(pixels(i, 16, 8 * i, 3)))
  with pytest.raises(readers.UnusableError, match=r'frames of several sizes$'):
    media.video(str(tmp_path), FILM)


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
  with pytest.raises(readers.UnusableError, match='a video too large for data'):
    media.video(bomb, FILM)
  assert media.video(moving_bomb(80, 9), FILM).size.tolist() == [4, 32, 32]


def test_the_largest_medium_is_a_field_of_the_config():
  value = large_png(11_586, 11_585)
  with pytest.raises(readers.UnusableError, match='more pixels than data'):
    media.read('image', value, FILM)
  with pytest.raises(readers.UnusableError, match='a damaged picture'):
    media.read('image', value, FILM, max_pixels=1 << 28)
  value = mp4(np.zeros((9, 16, 24, 3), np.uint8))
  # As long as FFmpeg's own sizes, which are of whole blocks.
  limit = 24 * 2048
  assert media.video(value, FILM, max_pixels=limit).size[0] == 4
  with pytest.raises(readers.UnusableError, match='a side too long'):
    media.video(value, FILM, max_pixels=limit - 1)
  with pytest.raises(readers.UnusableError, match='more pixels than'):
    media.video(value, FILM, max_pixels=16 * 24 - 1)


def test_a_forged_size_of_a_video_is_damage():
  """FFmpeg's error is also a MemoryError, which once ended a training."""
  # The size of the only sample entry.
  where = MP4.index(b'avc1', MP4.index(b'stsd')) - 2
  forged = MP4[:where] + b'\xff' * 4 + MP4[where + 4 :]
  with pytest.raises(readers.UnusableError, match='a damaged video'):
    media.video(forged, FILM)


@pytest.mark.parametrize(
  ('kind', 'name', 'value'),
  [
    ('image', '_of_array', encoded(pixels(5, 9, 9).astype(np.uint16), 'PNG')),
    ('audio', '_mono', FLAC),
    ('video', '_flat', MP4),
    ('video', '_flat', gif(film(3))),
    ('video', '_check_frame', MP4),
  ],
)
def test_a_mistake_of_ours_is_no_damage(kind, name, value, monkeypatch):
  def wrong(*arguments):
    raise TypeError('a mistake')

  monkeypatch.setattr(media, name, wrong)
  config = config_lib.Model(image=COLOUR, audio=SOUND, video=FILM.video)
  with pytest.raises(TypeError, match='a mistake'):
    media.read(kind, value, config)


# What is missing, and data sets.


@pytest.mark.parametrize(
  ('name', 'kind', 'value', 'remedy'),
  [
    ('PIL', 'image', PNG, "pictures need Pillow; .*'gemini_jax.media.'"),
    ('soundfile', 'audio', FLAC, 'sounds need soundfile; .*media'),
    ('soxr', 'audio', wav(tone(9, 16000), 16000), 'sounds need soxr; .*media'),
    ('av', 'video', MP4, "videos need av; .*pip install 'gemini_jax.video.'"),
  ],
)
def test_a_missing_library_is_told_with_the_remedy(
  name, kind, value, remedy, monkeypatch
):
  for module in [m for m in sys.modules if m.split('.')[0] == name]:
    monkeypatch.setitem(sys.modules, module, None)
  monkeypatch.setitem(sys.modules, name, None)
  config = config_lib.Model(image=COLOUR, audio=SOUND, video=FILM.video)
  with pytest.raises(config_lib.ConfigError, match=remedy):
    media.read(kind, value, config)


@needs_prepared
@pytest.mark.parametrize('name', ['fashion_mnist', 'stamps'])
def test_prepared_data_sets_are_read(name):
  config = config_lib.Data(data_dir=str(PREPARED))
  rows = readers.tfds(name, 'test', config)
  side = 28 if name == 'fashion_mnist' else 64
  for index in range(6):
    record = rows.records[index]
    canvas = config_lib.Image(height=side, width=side, patch=4)
    found = media.image(record['image'], canvas)
    assert found.size.tolist() == [side, side]
    assert found.values.std() > 5
    if name == 'stamps' and len(record['speech_fr']):
      spoken = config_lib.Audio(sample_rate=16000, seconds=1.0)
      found = media.audio(record['speech_fr'], spoken, sample_rate=8000)
      assert found.size[0] == min(16000, 2 * len(record['speech_fr']))
      assert found.values.std() > 50
