"""A report says what a run was, how it went and how to repeat it."""

import json
import re
import shutil
import types

import PIL.Image
import pytest

import tiny
from gemini_jax import main
from gemini_jax.train import metrics_file, run_report


def sections(text):
  """The paragraphs of a report by their heading."""
  parts = re.split(r'^## (.*)\n', text, flags=re.M)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def opened(folder, lines=(), **fields):
  """A folder with lines of metrics, and what a report reads of its run."""
  text = ''.join(f'{json.dumps(line)}\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)
  (folder / 'samples').mkdir()
  config = tiny.config(train={'num_steps': 4} | fields)
  return types.SimpleNamespace(workdir=folder, config=config)


LINES = [
  {'step': 1, 'train/loss': 4.0, 'train/learning_rate': 0.5},
  {'step': 2, 'train/loss': 3.0, 'train/learning_rate': 0.25},
  {'step': 2, 'validation/loss': 3.5},
  {'step': 4, 'train/loss': 2.0, 'train/learning_rate': 0.125},
  {'step': 4, 'validation/loss': 2.25, 'test/bleu': None},
]


def test_every_section_shows_what_it_is_of(tmp_path):
  run = opened(tmp_path, LINES, seed=7)
  sample = {'prompt': 'Say ', 'text': 'a ```fence``` and | pipes'}
  (tmp_path / 'samples/00000002.jsonl').write_text('{"prompt": "older"}\n')
  (tmp_path / 'samples/00000004.jsonl').write_text(f'{json.dumps(sample)}\n')
  (tmp_path / 'samples/00000004-generate.jsonl').write_text('no evaluation')
  for name in ('00000000-train', '00000004-test-paint', '00000004-generate'):
    (tmp_path / f'samples/{name}.png').write_bytes(b'')
  run_report.write(run, 4)
  text = (tmp_path / 'report.md').read_text()
  found = sections(text)
  assert text.startswith(f'# {tmp_path.name}\n\nStep 4 of 4, on 8 x cpu (cpu)')
  assert '| validation/loss | 2.25 | 4 |' in found['Results']
  assert '| test/bleu | not finite | 4 |' in found['Results']
  assert 'train/' not in found['Results']
  assert '![curves](report.png)' in found['Curves']
  assert '| train/loss | 4 | 2 | 2 | 4 | █▅▁ |' in found['Curves']
  for name in ('validation/loss', 'train/learning_rate'):
    assert f'| {name} |' in found['Curves']
  with PIL.Image.open(tmp_path / 'report.png') as picture:
    assert picture.size == (800, 260)
  assert (
    f'````text\n{sample["prompt"]}{sample["text"]}\n````' in (found['Samples'])
  )
  assert 'older' not in found['Samples']
  for name in ('00000000-train', '00000004-test-paint'):
    assert f'](samples/{name}.png)' in found['Media']
  assert 'generate' not in found['Media']
  assert f'cp {tmp_path}/config.json {tmp_path}-again' in found['Repeat']
  assert f'--workdir={tmp_path}-again' in found['Repeat']
  assert 'train.seed = 7\n' in found['Config']
  assert 'model.norm' not in found['Config'], 'is the default'


def test_before_the_end_nothing_is_drawn(tmp_path):
  run_report.write(opened(tmp_path, LINES[:3]), 2)
  text = (tmp_path / 'report.md').read_text()
  assert 'Step 2 of 4' in text
  assert 'report.png' not in text
  assert not (tmp_path / 'report.png').exists()


def test_what_validation_decided_is_drawn_before_the_end(tmp_path):
  lines = [
    *({'step': i, 'train/accepted_sparsity': i / 8} for i in (1, 2)),
    *({'step': i, 'validation/loss': 2.0} for i in (1, 2)),
  ]
  run = opened(tmp_path, lines)
  run.config = tiny.config(
    sparsity={'method': 'gated'},
    train={'epoch_examples': 8, 'epochs': 9, 'eval_every': 4},
    data={'validation': ('text:x',)},
  )
  run_report.write(run, 2)
  assert (
    '![history of the pruning](gate.png)'
    in (tmp_path / 'report.md').read_text()
  )
  with PIL.Image.open(tmp_path / 'gate.png') as picture:
    assert picture.size == (800, 260)
  assert not (tmp_path / 'report.png').exists()


def test_a_run_without_anything_has_a_report(tmp_path):
  run_report.write(opened(tmp_path), 1)
  found = sections((tmp_path / 'report.md').read_text())
  assert 'Nothing was evaluated yet.' in found['Results']
  assert 'There is no metric of two steps yet.' in found['Curves']
  assert 'No prompt was continued' in found['Samples']
  assert 'No page of media was written.' in found['Media']


def test_a_run_of_the_first_version_is_read_under_the_names_of_today(tmp_path):
  lines = [
    {'step': 1, 'train/rate': 1.0, 'validation/rate': 3.0},
    {'step': 2, 'train/rate': 2.0, 'validation/accuracy': 0.5},
  ]
  run = opened(tmp_path, lines)
  read = list(metrics_file.all_lines(tmp_path))
  text = run_report.compose(tmp_path, run.config, 2, read)
  found = sections(text)
  assert '| train/kl | 1 | 2 |' in found['Curves']
  assert '| validation/kl | 3 | 1 |' in found['Results']
  assert '| validation/token_accuracy | 0.5 | 2 |' in found['Results']
  assert 'rate |' not in text.replace('learning_rate', '')


@pytest.mark.parametrize('damage', ['samples', 'metrics', 'folder'])
def test_a_report_never_ends_a_training(damage, tmp_path, caplog):
  run = opened(tmp_path, LINES)
  if damage == 'samples':
    (tmp_path / 'samples/00000004.jsonl').write_text('{"prompt": "a"\n\0')
  elif damage == 'metrics':
    (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 1}\n\xff[[[')
  else:
    run.workdir = tmp_path / 'removed'
  run_report.write(run, 4)
  assert (tmp_path / 'report.md').exists() == (damage != 'folder')
  assert ('cannot be written' in caplog.text) == (damage == 'folder')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of four steps, and the commands that its report gives."""
  folder = tmp_path_factory.mktemp('report')
  file = tiny.experiment(
    folder, 'train.num_steps = 4', 'train.log_every = 2', 'train.seed = 3'
  )
  assert tiny.run(file, folder / 'run') == 0
  return folder, sections((folder / 'run/report.md').read_text())


def test_the_command_repeats_the_run(trained):
  folder, report = trained
  mkdir, copy, command = report['Repeat'].split('```text\n')[1].splitlines()[:3]
  new = folder / 'run-again'
  assert mkdir == f'mkdir {new}'
  new.mkdir()
  _, source, target = copy.split()
  shutil.copy(source, target)
  program, *arguments = command.split()[2:]
  assert program == 'gemini_jax.main'
  assert main.main(['main', *arguments]) == 0
  first, second = (
    tiny.metrics(folder / name, *metrics_file.TIMINGS)
    for name in ('run', 'run-again')
  )
  assert first == second and len(first) == 3
