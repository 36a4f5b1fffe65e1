"""Runs that name classes: trained, reported, started from, asked."""

import json
import math

import numpy as np
import PIL.Image
import pytest

import tiny
from gemini_jax import run as run_lib
from gemini_jax.commands import convert, prediction_file
from gemini_jax.evaluate import class_predictions, generation_options
from gemini_jax.infer import generation
from gemini_jax.models import gemini
from gemini_jax.parallel import sharding

_COMMON = (
  "data.objective = 'prefix'",
  'data.sequence_length = 24',
  'evaluate.evaluators = ("classification",)',
  'evaluate.batch_size = 8',
)
# Which letter a text has most of.
TEXTS = (
  *_COMMON,
  'data.tasks = ("{text} -> {class:label}",)',
  'train.num_steps = 60',
  'train.eval_every = 60',
  'train.save_every = 30',
)


def lines_of(path):
  """The objects of a file of JSON lines."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def write(folder, name, count, seed, line=None):
  """JSON lines of texts of a and b, labelled by the more frequent one."""
  rng = np.random.default_rng(seed)
  folder.mkdir(exist_ok=True)
  records = []
  for _ in range(count):
    num_a = int(rng.choice([2, 3, 8, 9]))
    letters = rng.permutation(list('a' * num_a + 'b' * (11 - num_a)))
    label = 'many' if num_a > 5 else 'few'
    records.append({'text': ''.join(letters), 'label': label})
  path = folder / name
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path, records


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder, the experiment's file and the workdir of a run."""
  folder = tmp_path_factory.mktemp('classification')
  train, _ = write(folder, 'train.jsonl', 200, 0)
  test, _ = write(folder, 'test.jsonl', 50, 1)
  file = tiny.experiment(
    folder,
    *TEXTS,
    f"data.train = ('jsonl:{train}',)",
    f"data.validation = ('jsonl:{test}',)",
  )
  assert tiny.run(file, folder / 'run') == 0
  return folder, file, folder / 'run'


def test_a_run_learns_classes_and_reports_them(trained):
  _, file, workdir = trained
  last = tiny.metrics(workdir)[-1]
  assert last['validation/accuracy'] > 0.9
  assert last['validation/accuracy_low'] <= last['validation/accuracy']
  config = json.loads((workdir / 'config.json').read_text())
  assert config['data']['label_names'] == ['few', 'many']
  assert config['model']['num_classes'] == 2
  report = (workdir / 'report.md').read_text()
  assert 'confusion' in report and 'many' in report
  # The same command, though it names no classes, is that of the same run.
  assert tiny.run(file, workdir, 'train.num_steps=62') == 0


def test_what_is_predicted_is_what_was_evaluated(trained, tmp_path):
  """In order, with errors in their lines, and bytes equal after an end."""
  folder, _, workdir = trained
  records = lines_of(folder / 'test.jsonl')
  lines = [json.dumps({'text': record['text']}) for record in records]
  wrong = {4: 'no json', 9: '{"other": 1}', 20: json.dumps({'text': 'a' * 40})}
  for place, line in wrong.items():
    lines.insert(place, line)
  source = tmp_path / 'asked.jsonl'
  source.write_text('\n'.join(lines))
  output = tmp_path / 'out.jsonl'
  options = (f'predict.source={source}', f'predict.output={output}')
  assert tiny.run('', workdir, *options, mode='predict') == 0
  found = lines_of(output)
  assert [i for i, line in enumerate(found) if 'error' in line] == [*wrong]
  assert 'too long' in found[20]['error']
  assert len(found) == len(lines)
  found = [line for line in found if 'error' not in line]
  run = run_lib.open_run(run_lib.saved_config(workdir), workdir)
  with sharding.use(run.mesh):
    params = run.restore_params().params
    expected = class_predictions.predict(run, params, run.loader('validation'))
  np.testing.assert_allclose(
    [line['probabilities']['many'] for line in found],
    expected.outputs_NC[:, 1],
    atol=1e-6,
  )
  # The file is there; and one that was ended is gone on with.
  assert tiny.run('', workdir, *options, mode='predict') == 2
  whole = output.read_bytes()
  again = tmp_path / 'again.jsonl'
  options = (options[0], f'predict.output={again}')
  part = again.with_name('again.jsonl.part')
  part.write_bytes(whole[:2500])
  assert tiny.run('', workdir, *options, mode='predict') == 2
  # With its key, which a run that is ended leaves there.
  part.unlink()
  with pytest.MonkeyPatch.context() as patch:
    write_lines = prediction_file.PredictionFile.write

    def write_some(file, lines):
      write_lines(file, lines)
      with part.open('a') as torn:
        torn.write('{"record": "of a batch that is not whole"}\n{"record": "as')
      raise KeyboardInterrupt

    patch.setattr(prediction_file.PredictionFile, 'write', write_some)
    assert tiny.run('', workdir, *options, mode='predict') == 130
  assert part.exists()
  assert tiny.run('', workdir, *options, mode='predict') == 0
  assert again.read_bytes() == whole
  assert not part.exists()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('empty.jsonl', '', 'holds no line'),
    ('empty.csv', 'text\n', 'holds no record'),
    ('columns.csv', 'a,b\n1,2\n', "no column 'text'"),
    ('table.txt', 'text\n', 'must be a folder, or end in'),
    ('absent.csv', None, 'does not exist'),
    ('folder', {}, 'a folder, of media alone'),
  ],
)
def test_sources_that_cannot_be_read(
  trained, tmp_path, name, content, message, capsys
):
  _, _, workdir = trained
  source = tmp_path / name
  if isinstance(content, str):
    source.write_text(content)
  elif content is not None:
    source.mkdir()
  options = (
    f'predict.source={source}',
    f'predict.output={tmp_path / "out.jsonl"}',
  )
  assert tiny.run('', workdir, *options, mode='predict') == 2
  errors = capsys.readouterr().err
  assert message in errors.splitlines()[-1]
  assert not (tmp_path / 'out.jsonl').exists()


@pytest.mark.parametrize('method', ['full', 'head', 'lora'])
def test_a_run_of_texts_learns_classes(trained, tmp_path, method):
  """It begins with even odds, trains, and is read with its base."""
  folder, _, _ = trained
  base = tmp_path / 'base'
  text = tiny.experiment(folder, 'data.sequence_length = 24', name='text.py')
  assert tiny.run(text, base, 'train.num_steps=4') == 0
  file = tiny.experiment(
    folder,
    *TEXTS,
    f"data.train = ('jsonl:{folder}/train.jsonl',)",
    f"data.validation = ('jsonl:{folder}/test.jsonl',)",
    f"train.init_from = '{base}'",
    f"tune.method = '{method}'",
    'train.log_every = 1',
    name=f'{method}.py',
  )
  workdir = tmp_path / 'run'
  assert tiny.run(file, workdir) == 0
  losses = [
    line['train/loss'] for line in tiny.metrics(workdir) if 'train/loss' in line
  ]
  assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
  assert min(losses[-5:]) < losses[0] - 0.03
  saved = tiny.arrays(workdir)
  kernel = next(v for k, v in saved.items() if k == 'params/classes/kernel')
  assert np.abs(kernel).max() > 0
  is_small = not any(k.startswith('params/token/') for k in saved)
  assert is_small == (method != 'full')
  assert tiny.run('', workdir, mode='eval') == 0


def test_pictures_of_a_folder_are_named(tmp_path):
  rng = np.random.default_rng(0)
  folder = tmp_path / 'pictures'
  folder.mkdir()
  records = []
  for i in range(24):
    label = int(rng.integers(0, 2))
    values = rng.integers(0, 100, (8, 8, 1)) + 150 * label
    picture = PIL.Image.fromarray(values[..., 0].astype(np.uint8))
    picture.save(folder / f'{i:02d}.png')
    records.append({'image': f'pictures/{i:02d}.png', 'label': label})
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  file = tiny.experiment(
    tmp_path,
    *_COMMON,
    'data.tasks = ("{image:image} -> {class:label}",)',
    f"data.train = ('jsonl:{path}',)",
    f"data.validation = ('jsonl:{path}',)",
    'data.pack = False',
    'model.image.height = 8',
    'model.image.width = 8',
    'model.image.channels = 1',
    'model.image.patch = 4',
    'train.num_steps = 30',
    'train.eval_every = 30',
  )
  assert tiny.run(file, tmp_path / 'run') == 0
  (folder / '05b.txt').write_text('no picture')
  output = tmp_path / 'out.jsonl'
  options = (f'predict.source={folder}', f'predict.output={output}')
  assert tiny.run('', tmp_path / 'run', *options, mode='predict') == 0
  found = lines_of(output)
  assert found.pop(6)['record'] == '05b.txt'
  named = [line['prediction'] for line in found]
  labels = [str(record['label']) for record in records]
  assert np.mean(np.array(named) == labels) > 0.9


def test_texts_are_predicted_as_they_are_generated(tmp_path):
  file = tiny.experiment(tmp_path, *tiny.SEQ2SEQ, 'evaluate.batch_size = 8')
  workdir = tmp_path / 'run'
  assert tiny.run(file, workdir, 'train.num_steps=4') == 0
  words = ['stone', 'x', 'fgh' * 20, 'riverbed', 'oat', 'wind', 'sun', 'leaf']
  words += ['moss']
  source = tmp_path / 'words.csv'
  source.write_text('id,inputs\n' + ''.join(f'7,{word}\n' for word in words))
  output = tmp_path / 'out.jsonl'
  options = (f'predict.source={source}', f'predict.output={output}')
  assert tiny.run('', workdir, *options, mode='predict') == 0
  found = lines_of(output)
  assert found[2] == {'record': 'words.csv:4', 'error': 'too long'}
  assert len(found) == len(words)
  run = run_lib.open_run(run_lib.saved_config(workdir), workdir)
  greedy = generation_options.with_options(
    run.config, temperature=0.0, max_tokens=run.config.data.sequence_length
  )
  with sharding.use(run.mesh):
    samples = generation.generate(
      *(greedy, run.model, run.restore_params().params, run.tokenizer),
      [word for word in words if len(word) < 20],
    )
  del found[2]
  assert [line['prediction'] for line in found] == [s.text for s in samples]
  assert all(0 < line['probability'] <= 1 for line in found)


def test_what_names_classes_writes_no_text(trained, tmp_path, capsys):
  _, file, workdir = trained
  assert tiny.run('', workdir, 'generate.prompt=ab', mode='generate') == 2
  assert 'use --mode=predict' in capsys.readouterr().err
  for name in ('stablehlo', 'huggingface'):
    argv = ['convert', f'--source={workdir}', f'--target={tmp_path / name}']
    assert convert.main([*argv, f'--format={name}']) == 2
    assert 'classes' in capsys.readouterr().err
    assert not (tmp_path / name).exists()
  # A plan is of the output of classes.
  assert tiny.run(file, tmp_path / 'plan', mode='plan') == 0
  plan = json.loads((tmp_path / 'plan' / 'plan.json').read_text())
  run = run_lib.open_run(run_lib.saved_config(workdir), workdir)
  with sharding.use(run.mesh):
    params = run.restore_params().params
  assert plan['num_params'] == gemini.param_count(params)
