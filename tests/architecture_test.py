"""What holds the package together: imports, sizes, names, words."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted((ROOT / 'gemini_jax').rglob('*.py'))
BY_NAME = pytest.mark.parametrize(
  'path', MODULES, ids=lambda path: str(path.relative_to(ROOT))
)


def test_imports_run_one_way():
  pytest.importorskip('importlinter', reason='needs gemini_jax[test]')
  program = 'from importlinter.cli import lint_imports_command as c; c()'
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert '0 broken' in done.stdout


@BY_NAME
def test_a_file_is_one_idea_with_a_docstring(path):
  text = path.read_text()
  lines = [line.strip() for line in text.splitlines()]
  code = [line for line in lines if line and not line.startswith('#')]
  assert len(code) <= 500
  assert ast.get_docstring(ast.parse(text))


def test_every_file_name_is_unique_and_no_library():
  sections = ROOT / 'gemini_jax' / 'config'
  names = [
    path.stem
    for path in MODULES
    # A section of the config is called as what it configures.
    if path.stem != '__init__' and path.parent != sections
  ]
  assert len(names) == len(set(names))
  libraries = {'jax', 'flax', 'optax', 'orbax', 'grain', 'numpy', 'torch'}
  assert not libraries & set(names)


@BY_NAME
def test_only_the_config_knows_config_dicts(path):
  """Everything else reads frozen dataclasses, by attribute."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [getattr(node, 'module', None)]
      names += [alias.name for alias in node.names]
      if any('ml_collections' in (name or '') for name in names):
        assert path.name in ('config.py', 'schema.py', 'command.py')
    if isinstance(node, ast.Attribute) and node.attr in ('get', 'items'):
      assert (
        ast.unparse(node.value).split('.')[-1] != 'config'
        # It reads the JSON of any version.
        or path.name == 'legacy.py'
      )


def test_tests_mirror_the_package():
  """tests/layers/linear_test.py is about gemini_jax/layers/linear.py.

  What is about all of the package lies beside this file.
  """
  modules = {path.relative_to(ROOT / 'gemini_jax') for path in MODULES}
  for path in (ROOT / 'tests').glob('*/**/*_test.py'):
    name = path.stem.removesuffix('_test')
    mirrored = path.relative_to(ROOT / 'tests').with_name(f'{name}.py')
    assert mirrored in modules or name == 'parity', path.relative_to(ROOT)


def test_tests_need_no_more_than_their_extra():
  """What `[test]` does not install is asked for by importorskip."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  name = lambda requirement: re.split(r'[^\w-]', requirement)[0]
  needed = *project['dependencies'], *extras['test']
  installed = {name(requirement) for requirement in needed}
  others = {name(r) for extra in extras.values() for r in extra} - installed
  assert {'torch', 'transformers'} <= others
  for path in (ROOT / 'tests').glob('**/*_test.py'):
    for node in ast.parse(path.read_text()).body:
      modules = []
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        modules = [node.module or '']
      used = {part for module in modules for part in module.split('.')}
      assert not used & others, path.relative_to(ROOT)
