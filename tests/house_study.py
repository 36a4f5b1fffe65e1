r"""Sizes, repetition and seams of the package at revisions of this repository.

  python tests/house_study.py b0b4979 HEAD

Prints a Markdown table with one column a revision, which `git archive` reads
into a temporary folder. Only `gemini_jax/` counts, and all figures are of its
syntax:

- A line is repeated if it is in a window of five lines of code that occurs
  twice in the package, with the same words or with the same shape (names,
  numbers and strings may differ). Docstrings, comments, imports, blank lines
  and lines of punctuation are no lines of code here.
- Functions are measured from `def` to their last line, docstring included.
- Config fields are the annotated fields of the sections of the config.
- Tokenizer protocols are classes derived from Protocol with Token in the name.
- A batching loop is `for i in range(0, len(rows), size)` in a module with the
  number 64 in it: code that cuts rows into parts and pads them to so many.
- An apply site is a dict that begins with the key 'params'.
"""

import ast
import collections
import io
import keyword
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterator

WINDOW = 5
LONG_FUNCTION, LONG_MODULE = 80, 400
_SECTION_FILES = ('config.py', 'architecture.py', 'schema.py')
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main(revisions: list[str]) -> int:
  """Prints the table; returns the exit code."""
  if not revisions or revisions[0].startswith('-'):
    print(__doc__)
    return 2
  columns = []
  for revision in revisions:
    with tempfile.TemporaryDirectory(prefix='house_study_') as folder:
      try:
        extract(revision, folder)
      except subprocess.CalledProcessError as error:
        print(error.stderr.decode().strip(), file=sys.stderr)
        return 2
      columns.append(study(pathlib.Path(folder) / 'gemini_jax'))
  print(table(revisions, columns))
  return 0


def extract(revision: str, folder: str):
  """Writes the package and the experiments of a revision to a folder."""
  root = pathlib.Path(__file__).parents[1]
  parts = ('gemini_jax', 'experiments')
  command = ['git', '-C', str(root), 'archive', revision, *parts]
  done = subprocess.run(command, capture_output=True, check=True)
  with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
    archive.extractall(folder, filter='data')


def table(revisions: list[str], columns: list[dict[str, str]]) -> str:
  """The figures as a Markdown table."""
  lines = [
    f'| | {" | ".join(revisions)} |',
    f'| --- |{" --- |" * len(revisions)}',
  ]
  lines += [
    f'| {name} | {" | ".join(column[name] for column in columns)} |'
    for name in columns[0]
  ]
  return '\n'.join(lines)


def study(package: pathlib.Path) -> dict[str, str]:
  """All figures of a package, as text by name."""
  texts = {
    str(path.relative_to(package)): path.read_text()
    for path in sorted(package.rglob('*.py'))
  }
  trees = {path: ast.parse(text) for path, text in texts.items()}
  lengths = {path: len(text.splitlines()) for path, text in texts.items()}
  code = {path: list(code_lines(text)) for path, text in texts.items()}
  total = sum(map(len, code.values()))
  functions = sorted(
    (length, name)
    for path, tree in trees.items()
    for name, length in function_lengths(path, tree)
  )[::-1]
  longest = ', '.join(f'{length} {name}' for length, name in functions[:5])
  long_modules = sorted(
    (length, path) for path, length in lengths.items() if length > LONG_MODULE
  )[::-1]
  nodes = [n for tree in trees.values() for n in ast.walk(tree)]
  row = {'modules': f'{len(texts)}', 'lines': f'{sum(lengths.values()):,}'}
  for name, kind in (('the same words', 0), ('the same shape', 1)):
    count = num_repeated([[line[kind] for line in c] for c in code.values()])
    row[f'code repeated with {name}'] = f'{count / total:.1%}'
  return row | {
    'longest functions, lines': longest,
    f'functions over {LONG_FUNCTION} lines': (
      f'{sum(length > LONG_FUNCTION for length, _ in functions)}'
    ),
    f'modules over {LONG_MODULE} lines': f'{len(long_modules)}'
    + ''.join(f', {path} {length}' for length, path in long_modules),
    'config fields': f'{sum(map(num_fields, config_trees(trees)))}',
    'Tokenizer protocols': f'{sum(map(is_protocol, nodes))}',
    'batching loops': f'{sum(map(num_batching_loops, trees.values()))}',
    "{'params': ...} apply sites": f'{sum(map(is_apply_site, nodes))}',
  }


def code_lines(text: str) -> Iterator[tuple[str, str]]:
  """The words and the shape of every line of code."""
  tree = ast.parse(text)
  skipped: set[int] = set()
  for node in ast.walk(tree):
    is_string = isinstance(node, ast.Expr) and isinstance(
      node.value, ast.Constant
    )
    if is_string or isinstance(node, ast.Import | ast.ImportFrom):
      assert node.end_lineno
      skipped |= set(range(node.lineno, node.end_lineno + 1))
  by_line: dict[int, list[tokenize.TokenInfo]] = collections.defaultdict(list)
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type != tokenize.COMMENT and token.string.strip():
      by_line[token.start[0]].append(token)
  for number in sorted(by_line):
    words = [token.string for token in by_line[number]]
    if number not in skipped and re.search(r'\w', ''.join(words)):
      yield ' '.join(words), ' '.join(map(_shape, by_line[number]))


def _shape(token: tokenize.TokenInfo) -> str:
  if token.type == tokenize.NAME:
    return token.string if token.string in _KEYWORDS else 'name'
  return 'value' if token.type in _VALUES else token.string


_KEYWORDS = set(keyword.kwlist)
_VALUES = {
  getattr(tokenize, name)
  for name in ('NUMBER', 'STRING', 'FSTRING_START', 'FSTRING_MIDDLE')
  if hasattr(tokenize, name)
}


def num_repeated(modules: list[list[str]]) -> int:
  """Lines in windows that occur more than once."""
  places = collections.defaultdict(list)
  for number, lines in enumerate(modules):
    for start in range(len(lines) - WINDOW + 1):
      window = tuple(lines[start : start + WINDOW])
      places[window].append((number, start))
  repeated = {
    (number, start + i)
    for found in places.values()
    if len(found) > 1
    for number, start in found
    for i in range(WINDOW)
  }
  return len(repeated)


def function_lengths(path: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
  """Functions and methods of a module with their lengths in lines."""
  module = pathlib.Path(path).stem

  def walk(node, prefix):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
        name = f'{prefix}.{child.name}'
        if isinstance(child, _FUNCTIONS):
          assert child.end_lineno
          yield name, child.end_lineno - child.lineno + 1
        yield from walk(child, name)
      else:
        yield from walk(child, prefix)

  return walk(tree, module)


def config_trees(trees: dict[str, ast.Module]) -> list[ast.Module]:
  """The modules that define the sections of the config."""
  return [
    tree
    for path, tree in trees.items()
    if path.startswith('config/') or path in _SECTION_FILES
  ]


def num_fields(tree: ast.Module) -> int:
  """Fields of the config's sections in a module, sections aside."""
  count = 0
  for node in ast.walk(tree):
    if not isinstance(node, ast.ClassDef):
      continue
    decorators = ' '.join(map(ast.unparse, node.decorator_list))
    if 'section' in decorators:
      count += sum(
        isinstance(item, ast.AnnAssign)
        and 'default_factory' not in ast.unparse(item)
        for item in node.body
      )
  return count


def is_protocol(node: ast.AST) -> bool:
  """Whether a class is a protocol of tokenizers."""
  return (
    isinstance(node, ast.ClassDef)
    and 'Token' in node.name
    and any('Protocol' in ast.unparse(base) for base in node.bases)
  )


def num_batching_loops(tree: ast.Module) -> int:
  """Loops over parts of a list in a module that holds the number 64."""
  nodes = list(ast.walk(tree))
  if not any(isinstance(n, ast.Constant) and n.value == 64 for n in nodes):
    return 0
  loops = (ast.unparse(n.iter) for n in nodes if hasattr(n, 'iter'))
  return sum(bool(re.match(r'range\(0, len\(\w+\), ', loop)) for loop in loops)


def is_apply_site(node: ast.AST) -> bool:
  """Whether a dict begins with the key 'params'."""
  return (
    isinstance(node, ast.Dict)
    and bool(node.keys)
    and isinstance(node.keys[0], ast.Constant)
    and node.keys[0].value == 'params'
  )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
