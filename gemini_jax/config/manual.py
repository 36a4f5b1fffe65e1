"""The --help pages of config fields, from the comments in their source."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

from gemini_jax.config import schema


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a section.

  Attributes:
    hint: its annotated type.
    meaning: the comment above it, as one line. A field without a comment of its
      own has that of the field above.
  """

  hint: Any
  meaning: str


@functools.cache
def fields(section: type) -> Mapping[str, Field]:
  """The fields of a dataclass by name, in their order."""
  source = inspect.getsource(section)
  lines = source.splitlines()
  hints = schema.hints(section)
  (node,) = ast.parse(source).body
  assert isinstance(node, ast.ClassDef)
  result, meaning = {}, ''
  for statement in node.body:
    if not isinstance(statement, ast.AnnAssign):
      continue
    assert isinstance(statement.target, ast.Name)
    above = itertools.takewhile(
      lambda line: line.startswith('#'),
      map(str.strip, reversed(lines[: statement.lineno - 1])),
    )
    comment = [line.removeprefix('#').strip() for line in above]
    meaning = ' '.join(reversed(comment)) or meaning
    name = statement.target.id
    result[name] = Field(hints[name], meaning)
  return types.MappingProxyType(result)


def pages(config: Any, prefix: str = '', width: int = 80) -> Iterator[str]:
  """Paragraphs on every field of a config whose path begins with `prefix`.

  Args:
    config: a config or a section.
    prefix: such as `optimizer` or `model.image.`; '': all fields.
    width: of a line, in characters.
  """
  for path, section in _sections(config):
    lines = []
    for name, field in fields(type(section)).items():
      value = getattr(section, name)
      full = f'{path}.{name}' if path else name
      if dataclasses.is_dataclass(value) or not full.startswith(prefix):
        continue
      line = (
        f'{full} = {value!r}  ({schema.describe(field.hint)})  {field.meaning}'
      )
      lines += textwrap.wrap(
        line,
        width,
        subsequent_indent='    ',
        break_long_words=False,
        break_on_hyphens=False,
      )
    if lines:
      title = (type(section).__doc__ or '').splitlines()[0]
      yield '\n'.join([f'# {path}: {title}', *lines])


def _sections(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """The path and the value of every section in `config`, in order."""
  yield path, config
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from _sections(value, f'{path}.{field.name}'.lstrip('.'))
