r"""What damaged files do to a run; kill_study.py kills runs.

  python tests/fault_study.py --out=runs/faults [--mutations=200]

Each kind of file that the program reads is damaged again and again: bits flip,
spans are cut, doubled, moved or overwritten, numbers become huge. What comes
of it is counted:

  same       read as before, or told and repaired
  refused    told in one line: a user error, or an unusable record
  other      read as something else (media and texts carry no checksum)
  traceback  any other exception
  crash      the process died
  slow       more than ten seconds
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import traceback

import numpy as np

from gemini_jax.data import tokenizer_training, unusable

OUTCOMES = ('same', 'refused', 'other', 'traceback', 'crash', 'slow')
_SECONDS = 10


def mutate(content, draw):
  """The bytes with one to three random damages."""
  data = bytearray(content)
  for _ in range(draw.randint(1, 3)):
    at = draw.randrange(len(data) + 1)
    span = draw.choice((1, 2, 4, 16, 256))
    where = slice(at, at + span)
    damage = draw.randrange(7)
    if damage == 0 and data:
      data[at % len(data)] ^= 1 << draw.randrange(8)
    elif damage == 1:
      data[where] = draw.randbytes(len(data[where]))
    elif damage == 2:
      del data[where]
    elif damage == 3:
      data[at:at] = data[where]
    elif damage == 4:
      data[where] = draw.choice((b'\xff', b'\0', b'9', b'[')) * span
    elif damage == 5:
      del data[at:]
    else:
      other = draw.randrange(len(data) + 1)
      data[where] = data[other : other + span]
  return bytes(data)


def _pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)


def _picture(suffix):
  def make(folder):
    import PIL.Image

    path = folder / f'picture.{suffix}'
    PIL.Image.fromarray(_pixels()).save(path)
    return path

  return make


def _sound(suffix):
  def make(folder):
    import soundfile

    path = folder / f'sound.{suffix}'
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.normal(0, 0.2, 8000).clip(-1, 1), 8000)
    return path

  return make


def _video(suffix, codec):
  def make(folder):
    import av

    path = folder / f'video.{suffix}'
    with av.open(str(path), 'w') as container:
      stream = container.add_stream(codec, rate=8)
      stream.width, stream.height, stream.pix_fmt = 32, 24, 'yuv420p'
      for shift in range(8):
        pixels = np.roll(_pixels(), shift, axis=1)
        frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
    return path

  return make


MEDIA = {
  **{
    f'picture.{suffix}': (_picture(suffix), 'image')
    for suffix in ('png', 'jpg', 'gif', 'webp', 'bmp', 'tiff', 'ppm')
  },
  **{
    f'sound.{suffix}': (_sound(suffix), 'audio')
    for suffix in ('wav', 'flac', 'ogg', 'mp3')
  },
  **{
    f'video.{suffix}': (_video(suffix, 'mpeg4'), 'video')
    for suffix in ('mp4', 'mov', 'mkv', 'avi')
  },
}
# Of a work folder: the file, and the mode that reads it.
RUN = {
  'config.json': ('config.json', 'eval'),
  'tokenizer': ('tokenizer', 'eval'),
  'manifest.json': ('checkpoints/*/manifest.json', 'eval'),
  'checkpoint arrays': ('checkpoints/*/state/**/*', 'eval'),
  'metrics.jsonl': ('metrics.jsonl', 'train'),
  'token cache': ('tokens/*/*.bin', 'train'),
  'token cache meta.json': ('tokens/*/meta.json', 'train'),
  'records.jsonl': ('records.jsonl', 'train'),
}
KINDS = (*MEDIA, 'sentencepiece model', *RUN)


class _SlowError(Exception):
  """A call took too long."""


def _interrupt(number, frame):
  del number, frame
  raise _SlowError


def judged(call, expected):
  """The outcome of a call beside the results that whole files give."""
  from gemini_jax import config as config_lib

  signal.alarm(_SECONDS)
  try:
    result = call()
  except (config_lib.ConfigError, unusable.UnusableError):
    return 'refused'
  except _SlowError:
    return 'slow'
  # What else may come is what is looked for.
  except Exception:
    traceback.print_exc()
    return 'traceback'
  finally:
    signal.alarm(0)
  if result == 'refused':
    return 'refused'
  return 'same' if result in expected else 'other'


def study_media(kind, folder, count, draw):
  """Outcomes for one kind of media file."""
  import photo
  from gemini_jax import config as config_lib
  from gemini_jax.data import media

  make, medium = MEDIA[kind]
  whole = make(folder).read_bytes()
  path = folder / f'damaged.{kind}'
  model = photo.model(video=config_lib.Video(num_frames=4))

  def read():
    found = media.read(medium, str(path), model)
    return found.values.tobytes()

  path.write_bytes(whole)
  expected = [read()]
  for _ in range(count):
    path.write_bytes(mutate(whole, draw))
    yield judged(read, expected)


def study_sentencepiece(folder, count, draw):
  """Outcomes for a tokenizer that comes from outside."""
  from gemini_jax.data import tokenizer

  texts = ['one two three four five'] * 50 + ['the quick brown fox'] * 50
  whole = tokenizer_training.train(texts, 290).serialized()
  path = folder / 'damaged.model'

  def read():
    words = tokenizer.load(path)
    ids = words.encode('one fox, two \u00e9').tolist()
    return ids, words.decode(ids), words.pieces

  path.write_bytes(whole)
  expected = [read()]
  for _ in range(count):
    path.write_bytes(mutate(whole, draw))
    yield judged(read, expected)


def study_run(kind, folder, count, draw):
  """Outcomes for a file of a work folder, or one that training reads."""
  import tiny

  pattern, mode = RUN[kind]
  home = folder / 'home'
  home.mkdir()
  tiny.write_texts(home)
  lines = [
    json.dumps({'text': line})
    for file in sorted(home.glob('*.txt'))
    for line in file.read_text().splitlines()
  ]
  (home / 'records.jsonl').write_text('\n'.join(lines) + '\n')
  overrides = (
    f"data.train = ('jsonl:{home}/records.jsonl#[:60]',)",
    f"data.validation = ('jsonl:{home}/records.jsonl#[60:]',)",
    f"data.cache_dir = '{home}/tokens'",
    "tokenizer.kind = 'characters'",
    'train.num_steps = 6',
    'train.save_every = 2',
    'train.eval_every = 2',
  )
  file = tiny.experiment(home, *overrides)
  run = home / 'run'

  def main(mode):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
      code = tiny.run(file, run, mode=mode)
    if code:
      return 'refused' if code == 2 else f'exit {code}'
    if mode == 'eval':
      return json.loads(output.getvalue().splitlines()[-1])
    return {path: leaf.tobytes() for path, leaf in tiny.arrays(run, 6).items()}

  expected = [main('train')]
  kept = folder / 'kept'
  shutil.copytree(home, kept)
  if mode == 'eval':
    expected = [main('eval')]
    # Where the newest is damaged, the checkpoint before it is evaluated.
    shutil.rmtree(max((run / 'checkpoints').iterdir()))
    expected.append(main('eval'))
  fresh = kind.startswith('token cache') or kind == 'records.jsonl'
  for _ in range(count):
    shutil.rmtree(home)
    shutil.copytree(kept, home)
    if fresh:
      shutil.rmtree(run)
    elif mode == 'train':
      # As a run that was killed after its second checkpoint.
      for path in (run / 'checkpoints').glob('*6'):
        shutil.rmtree(path)
    base = home if fresh else run
    files = sorted(p for p in base.glob(pattern) if p.is_file())
    path = draw.choice(files)
    path.write_bytes(mutate(path.read_bytes(), draw))
    yield judged(lambda: main(mode), expected)


def work(kind, folder, count, seed):
  """One kind, in a process of its own; an outcome a line."""
  signal.signal(signal.SIGALRM, _interrupt)
  draw = random.Random(seed)
  if kind in MEDIA:
    outcomes = study_media(kind, folder, count, draw)
  elif kind in RUN:
    outcomes = study_run(kind, folder, count, draw)
  else:
    outcomes = study_sentencepiece(folder, count, draw)
  for outcome in outcomes:
    print(f'outcome {outcome}', flush=True)


def damage(out, kind, count):
  """Counts of outcomes; a process that died is followed by another."""
  counts, tries = collections.Counter(), 0
  while counts.total() < count and tries < 10:
    folder = out / f'{kind} {tries}'.replace('/', ' ')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / 'log').open('w') as log:
      result = subprocess.run(
        [
          *(sys.executable, __file__, f'--out={folder}', f'--kind={kind}'),
          *(f'--mutations={count - counts.total()}', f'--seed={tries}'),
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        check=False,
      )
    lines = result.stdout.splitlines()
    counts.update(
      line.removeprefix('outcome ')
      for line in lines
      if line.startswith('outcome ')
    )
    if result.returncode:
      counts['crash'] += 1
    tries += 1
  return counts


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--mutations', type=int, default=200)
  parser.add_argument('--kinds', default=','.join(KINDS))
  parser.add_argument('--kind', default='')
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  if options.kind:
    work(options.kind, options.out, options.mutations, options.seed)
    return
  print(f'| file | damaged | {" | ".join(OUTCOMES)} |')
  print(f'| --- | --- |{" --- |" * len(OUTCOMES)}')
  for kind in filter(None, options.kinds.split(',')):
    count = options.mutations * (1 if kind in RUN else 10)
    counts = damage(options.out, kind, count)
    row = ' | '.join(str(counts[outcome]) for outcome in OUTCOMES)
    print(f'| {kind} | {counts.total()} | {row} |', flush=True)


if __name__ == '__main__':
  # Before anything imports jax: the tests' settings of it.
  import conftest  # noqa: F401

  main()
