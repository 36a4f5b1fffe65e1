"""A run that reads and writes pictures and sounds, and files that are none."""

import json
import logging

import numpy as np
import pytest

import photo
import tiny

PIL = pytest.importorskip('PIL.Image', reason='needs gemini_jax[media]')
soundfile = pytest.importorskip('soundfile', reason='needs gemini_jax[media]')

TASKS = (
  'name = {image:picture} -> {word}',
  'hear = {image:picture}{audio:sound} -> {word}',
  'paint = {word} -> {image:picture}',
  'speak = {word} -> {audio:sound}',
)


def write_odd(folder):
  """Files beside those of `photo.write`, by name."""
  rng = np.random.default_rng(1)
  whole = (folder / '0.png').read_bytes()
  (folder / 'cut.png').write_bytes(whole[: len(whole) // 2])
  frames = [
    PIL.fromarray(rng.integers(0, 256, (8, 8), np.uint8)) for _ in range(3)
  ]
  frames[0].save(folder / 'moving.gif', save_all=True, append_images=frames[1:])
  PIL.new('1', (20_000, 20_000)).save(folder / 'huge.png')
  PIL.new('L', (1, 1), 77).save(folder / 'pixel.png')
  soundfile.write(folder / 'empty.wav', np.zeros(0), 1000)
  noise = rng.normal(0, 0.1, (150, 8)).clip(-1, 1)
  soundfile.write(folder / 'eight.wav', noise, 44_100)
  soundfile.write(folder / 'deep.wav', noise[:, 0], 8000, subtype='PCM_24')


# What records hold, and why those are left out: of each task that needs it.
BAD = {
  'cut.png': "'picture': a damaged picture",
  'moving.gif': "'picture': an animated picture",
  'huge.png': "'picture': more pixels than data.max_media_pixels",
  'nowhere.png': "'picture': a missing file",
  'empty.wav': "'sound': an empty sound",
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(experiment, workdir, folder of the files, log)."""
  folder = tmp_path_factory.mktemp('media')
  path = photo.write(folder)
  write_odd(folder)
  with path.open('a') as file:
    for name in BAD:
      record = {'picture': '1.png', 'sound': '1.wav', 'word': 'odd'}
      record['sound' if name.endswith('wav') else 'picture'] = name
      file.write(f'{json.dumps(record)}\n')
    file.write(f'{json.dumps({"word": "nothing but a word"})}\n')
    for picture, sound in (('pixel.png', 'deep.wav'), ('2.png', 'eight.wav')):
      record = {'picture': picture, 'sound': sound, 'word': 'odd'}
      file.write(f'{json.dumps(record)}\n')
  model = photo.model()
  parts = {
    'image': ('height', 'width', 'channels', 'patch'),
    'audio': ('sample_rate', 'seconds', 'num_mels', 'window', 'hop', 'patch'),
  }
  fields = [
    f'model.{kind}.{name} = {getattr(getattr(model, kind), name)!r}'
    for kind, names in parts.items()
    for name in names
  ]
  file = tiny.experiment(
    folder,
    f"data.train = ('jsonl:{path}',)",
    f"data.validation = ('jsonl:{path}#[:8]',)",
    f'data.tasks = {TASKS!r}',
    'data.max_unusable = 0.3',
    "data.objective = 'prefix'",
    'data.pack = False',
    'data.sequence_length = 24',
    *fields,
    'model.image.autoencoder.dim = 3',
    'model.image.autoencoder.width = 16',
    'model.audio.autoencoder.dim = 2',
    'model.audio.autoencoder.width = 16',
    'model.num_layers = 1',
    'train.num_steps = 2',
    'train.log_every = 1',
    'train.eval_every = 2',
    'train.save_every = 2',
    "evaluate.evaluators = ('captions',)",
    'evaluate.captions.num_examples = 4',
  )
  records = []
  handler = logging.Handler()
  handler.emit = lambda record: records.append(record.getMessage())
  root = logging.getLogger()
  level = root.level
  root.addHandler(handler)
  root.setLevel(logging.INFO)
  try:
    assert tiny.run(file, folder / 'run') == 0
  finally:
    root.removeHandler(handler)
    root.setLevel(level)
  return file, folder / 'run', folder, records


def generate(trained, capsys, *options):
  """(exit code, last of standard output, lines of standard error)."""
  capsys.readouterr()
  overrides = [f'generate.{option}' for option in options]
  code = tiny.run(trained[0], trained[1], *overrides, mode='generate')
  found = capsys.readouterr()
  return code, found.out, found.err.splitlines()


def test_what_is_unusable_is_counted_by_reason(trained):
  line = [line for line in trained[3] if line.startswith('data.train[0]')][-1]
  for reason in BAD.values():
    # Bad pictures spoil three examples, bad sounds two.
    count = 3 if 'picture' in reason else 2
    assert f'{count} {reason}' in line
  assert "no field 'picture'" in line


def test_each_task_has_its_metrics_and_a_page_shows_what_is_read(trained):
  workdir = trained[1]
  last = tiny.metrics(workdir)[-1]
  for name in ('name', 'hear'):
    assert 0 <= last[f'validation/{name}_accuracy'] <= 1
    assert 0 <= last[f'validation/{name}_bleu'] <= 100
    assert 0 <= last[f'validation/{name}_cider'] <= 10
  for name in ('paint', 'speak'):
    assert np.isfinite(last[f'validation/{name}_media_nll'])
  with PIL.open(workdir / 'samples/00000000-train.png') as page:
    assert min(page.size) > 100


@pytest.mark.parametrize(
  ('picture', 'sound'),
  [
    ('3.png', None),
    ('pixel.png', None),
    ('4.png', 'deep.wav'),
    ('4.png', 'eight.wav'),
  ],
)
def test_media_are_read(picture, sound, trained, capsys):
  folder = trained[2]
  options = [f'image={folder / picture}']
  options += [f'audio={folder / sound}'] if sound else []
  code, _, errors = generate(trained, capsys, *options)
  assert code == 0, errors
  (sample,) = tiny.generated(trained[1])
  assert picture in sample['prompt']
  assert not sound or sound in sample['prompt']


def test_pictures_and_sounds_are_written(trained, capsys):
  workdir = trained[1]
  code, output, errors = generate(
    trained, capsys, 'prompt=dark', 'output=image', 'count=3'
  )
  assert code == 0, errors
  assert '3 written' in output
  pictures = []
  for sample in tiny.generated(workdir):
    with PIL.open(workdir / 'samples' / sample['file']) as picture:
      assert picture.size == (8, 8)
      pictures.append(np.asarray(picture).tobytes())
    assert np.shape(sample['z']) == (4, 3)
  assert len(set(pictures)) == 3
  code, _, errors = generate(trained, capsys, 'prompt=dark', 'output=audio')
  assert code == 0, errors
  (sample,) = tiny.generated(workdir)
  samples, rate = soundfile.read(workdir / 'samples' / sample['file'])
  assert rate == 1000
  # Forty samples a z.
  assert len(samples) == 40 * len(sample['z'])
  assert np.isfinite(samples).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    *(
      (
        ('image={folder}/' + name,)
        if reason.startswith("'picture'")
        else ('image={folder}/3.png', 'audio={folder}/' + name),
        reason.split(': ')[1],
      )
      for name, reason in BAD.items()
    ),
    (('audio={folder}/3.wav',), 'is none of the tasks of this model'),
    (('image={folder}/3.png', 'prompt=dark'), "generate.prompt='dark'"),
    (('image={folder}/3.png', 'output=audio'), 'is none of the tasks'),
    (('output=image',), 'set generate.prompt'),
    (('output=film',), "generate.output='film'"),
  ],
)
def test_what_cannot_be_read_is_one_line(options, message, trained, capsys):
  before = sorted(path.name for path in (trained[1] / 'samples').iterdir())
  code, output, errors = generate(
    trained, capsys, *(option.format(folder=trained[2]) for option in options)
  )
  assert code == 2, output
  assert len(errors) == 1 and errors[0].startswith('error: '), errors
  assert message in errors[0]
  after = sorted(path.name for path in (trained[1] / 'samples').iterdir())
  assert before == after
