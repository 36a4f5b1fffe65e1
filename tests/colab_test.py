"""The notebooks run, cell by cell, and define nothing of their own."""

import ast
import json
import os
import pathlib
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))


def read(path):
  return nbformat.read(path, as_version=4)


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
      tree = ast.parse(python or 'pass')
      assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.filterwarnings('ignore')  # of Jupyter's own machinery
def test_quickstart_notebook(tmp_path, monkeypatch):
  notebook = read(ROOT / 'colab' / 'quickstart.ipynb')
  tags = lambda cell: cell.metadata.get('tags', [])
  notebook.cells = [c for c in notebook.cells if 'install' not in tags(c)]
  steps = (
    '--config.train.num_steps=4 --config.train.log_every=2 '
    '--config.model.width=32 --config.generate.max_tokens=4 '
    "--config.evaluate.evaluators='()'"
  )
  for cell in notebook.cells:
    if 'parameters' in tags(cell):
      cell.source = f'WORKDIR = {str(tmp_path)!r}\nOVERRIDES = {steps!r}'
  monkeypatch.setenv('MPLBACKEND', 'agg')
  path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
  monkeypatch.setenv('PATH', path)
  nbclient.NotebookClient(
    notebook, timeout=240, resources={'metadata': {'path': str(ROOT)}}
  ).execute()
  text = {
    tags(cell)[0]: ''.join(output.get('text', '') for output in cell.outputs)
    for cell in notebook.cells
    if cell.cell_type == 'code'
  }
  assert 'is done: 4 steps' in text['train']
  assert 'The "with" statement' in text['generate']
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['step'] == 4
