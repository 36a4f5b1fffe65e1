"""The notebooks run, cell by cell, and define nothing of their own."""

import ast
import json
import os
import pathlib
import re
import sys

import nbclient
import nbformat
import pytest

import tiny
import tiny_published
from gemini_jax.data import wordnet

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))
DATA = ROOT.parent / 'shared' / 'tfds'

SHORT = (
  '--config.train.num_steps=4 --config.train.log_every=2 '
  '--config.train.eval_every=4 --config.train.save_every=4 '
  '--config.generate.max_tokens=4 --config.evaluate.samples.max_tokens=4'
)


def read(path):
  return nbformat.read(path, as_version=4)


def run(name, monkeypatch, parameters):
  """What each code cell printed, by its tag."""
  notebook = read(ROOT / 'colab' / f'{name}.ipynb')
  tags = lambda cell: cell.metadata.get('tags', [])
  notebook.cells = [c for c in notebook.cells if 'install' not in tags(c)]
  for cell in notebook.cells:
    if 'parameters' in tags(cell):
      lines = [f'{key} = {value!r}' for key, value in parameters.items()]
      cell.source = '\n'.join(lines)
  monkeypatch.setenv('MPLBACKEND', 'agg')
  for name, value in tiny.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)
  path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
  monkeypatch.setenv('PATH', path)
  nbclient.NotebookClient(
    notebook, timeout=600, resources={'metadata': {'path': str(ROOT)}}
  ).execute()
  return {
    tags(cell)[0]: ''.join(output.get('text', '') for output in cell.outputs)
    for cell in notebook.cells
    if cell.cell_type == 'code'
  }


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_thin(path):
  for cell in read(path).cells:
    if cell.cell_type == 'code':
      assert not cell.outputs, 'outputs are not committed'
      python = '\n'.join(
        line
        for line in cell.source.splitlines()
        if not line.strip().startswith(('!', '%'))
      )
      kinds = (ast.FunctionDef, ast.ClassDef)
      # A loop over a command has nothing left but its first lines.
      tree = ast.parse(python or 'pass')
      assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_the_readme_links_every_notebook():
  text = (ROOT / 'README.md').read_text()
  missing = [
    path.name for path in NOTEBOOKS if f'(colab/{path.name})' not in text
  ]
  assert NOTEBOOKS and not missing


# Warnings are of Jupyter's own machinery.
@pytest.mark.filterwarnings('ignore')
def test_quickstart_notebook(tmp_path, monkeypatch):
  options = f'{SHORT} --config.model.width=32'
  text = run(
    'quickstart', monkeypatch, {'WORKDIR': str(tmp_path), 'OVERRIDES': options}
  )
  assert 'is done: 4 steps' in text['train']
  assert 'The "with" statement' in text['generate']
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['step'] == 4


@pytest.mark.filterwarnings('ignore')
def test_any_to_any_notebook(tmp_path, monkeypatch):
  if not (DATA / 'fashion_mnist').exists():
    pytest.skip('no prepared data sets in ../shared/tfds')
  options = (
    f'{SHORT} --config.data.cache_dir={tmp_path}/tokens '
    '--config.data.train=\'("tfds:fashion_mnist#train[:2000]",)\' '
    '--config.data.validation=\'("tfds:fashion_mnist#train[2000:2200]",)\' '
    '--config.data.test=\'("tfds:fashion_mnist#test[:300]",)\''
  )
  text = run(
    'any_to_any',
    monkeypatch,
    {
      'WORKDIR': str(tmp_path / 'run'),
      'DATA': str(DATA),
      'OVERRIDES': options,
    },
  )
  assert 'is done: 4 steps' in text['train']
  for name in ('image_to_text', 'text_to_image'):
    assert f'test/{name}_accuracy 0.' in text['results']
  assert int(text['show'].split()[0]) >= 8


@pytest.mark.filterwarnings('ignore')
def test_classify_notebook(tmp_path, monkeypatch):
  if not (DATA / 'fashion_mnist').exists():
    pytest.skip('no prepared data sets in ../shared/tfds')
  options = (
    f'{SHORT} --config.data.cache_dir={tmp_path}/tokens '
    '--config.train.epochs=0 --config.data.batch_size=32 '
    '--config.model.width=16 --config.model.num_layers=1 '
    '--config.data.train=\'("tfds:fashion_mnist#train[:500]",)\' '
    '--config.data.validation=\'("tfds:fashion_mnist#train[500:600]",)\' '
    '--config.data.test=\'("tfds:fashion_mnist#test[:100]",)\''
  )
  text = run(
    'classify',
    monkeypatch,
    {
      'WORKDIR': str(tmp_path / 'run'),
      'DATA': str(DATA),
      'OVERRIDES': options,
    },
  )
  assert 'is done: 4 steps' in text['train']
  assert 'test/accuracy 0.' in text['results']
  assert text['show'].startswith('2 pictures')
  predicted = re.findall(r'(\d\d)\.png [\w-]+ [01]\.\d\d', text['predict'])
  assert predicted == [f'{number:02}' for number in range(12)]


@pytest.mark.filterwarnings('ignore')
def test_steer_text_notebook(tmp_path, monkeypatch):
  if not pathlib.Path(wordnet.FOLDER).exists():
    pytest.skip('no WordNet here')
  options = (
    f'{SHORT} --config.data.cache_dir={tmp_path}/tokens '
    '--config.data.train=\'("wordnet:#[::40]",)\' '
    '--config.data.validation=\'("wordnet:#[1::2000]",)\' '
    '--config.data.test=\'("wordnet:#[3::2000]",)\' '
    '--config.tokenizer.vocab_size=512 --config.model.width=32 '
    '--config.generate.num_labels=60'
  )
  text = run(
    'steer_text',
    monkeypatch,
    {'WORKDIR': str(tmp_path / 'run'), 'OVERRIDES': options},
  )
  assert 'is done: 4 steps' in text['train']
  assert 'test/nll' in text['results'] and 'None' not in text['results']
  assert 'class=noun.animal' in text['steer']


@pytest.mark.filterwarnings('ignore')
def test_translate_notebook(tmp_path, monkeypatch):
  pytest.importorskip('sacrebleu', reason='needs gemini_jax[tasks]')
  if not (DATA / 'multi30k').exists():
    pytest.skip('no prepared data sets in ../shared/tfds')
  options = (
    f'{SHORT} --config.data.cache_dir={tmp_path}/tokens '
    '--config.data.train=\'("tfds:multi30k#train[:500]",)\' '
    '--config.data.validation=\'("tfds:multi30k#validation[:20]",)\' '
    '--config.data.test=\'("tfds:multi30k#test[:5]",)\' '
    '--config.tokenizer.vocab_size=400 --config.model.width=32 '
    '--config.model.num_layers=1 --config.model.num_encoder_layers=1 '
    '--config.data.batch_size=8'
  )
  text = run(
    'translate',
    monkeypatch,
    {
      'WORKDIR': str(tmp_path / 'run'),
      'DATA': str(DATA),
      'OVERRIDES': options,
    },
  )
  assert 'is done: 4 steps' in text['train']
  assert 'test/bleu ' in text['results'] and 'tok:13a' in text['results']
  assert text['results'].count(' | ') == 10
  assert 'written to' in text['translate']
  assert text['predict'].count('"record": ') == 2


@pytest.mark.filterwarnings('ignore')
def test_fine_tune_notebook(tmp_path, monkeypatch):
  options = (
    f'{SHORT} --config.data.sequence_length=128 --config.data.batch_size=8'
  )
  text = run(
    'fine_tune',
    monkeypatch,
    {
      'SOURCE': str(tiny_published.write(tmp_path / 'source')),
      'FOLDER': str(tmp_path / 'run'),
      'OVERRIDES': options,
    },
  )
  assert 'parameters' in text['load']
  assert 'is done: 4 steps' in text['tune']
  assert 'written to' in text['answer']
  for name in ('huggingface', 'tuned.gguf', 'programs', 'peft'):
    assert (tmp_path / 'run' / name).exists(), text['export']


@pytest.mark.filterwarnings('ignore')
def test_plan_a_pod_notebook(tmp_path, monkeypatch):
  pytest.importorskip('libtpu', reason='needs libtpu')
  text = run(
    'plan_a_pod',
    monkeypatch,
    {
      'EXPERIMENT': 'experiments/quickstart.py',
      'TOPOLOGIES': ('v5e:2x2', 'v5e:2x4'),
      'WORKDIR': str(tmp_path),
      'OVERRIDES': '--config.tokenizer.kind=bytes --config.model.num_layers=2',
    },
  )
  assert 'v5e:2x4  8 devices  fits: True' in text['compare']
