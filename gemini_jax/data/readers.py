"""Records of a source behind one interface; kinds that need no files."""

import ast
import hashlib
import importlib.machinery
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import config as config_lib

_MAX_REVERSE = 10_000_000


class Rows(NamedTuple):
  """All records of a source.

  Attributes:
    records: a sequence of dicts; reading one may raise UnusableError.
    identity: changes with the content, and is known without reading it.
    fields: names of the fields of every record; None where records may differ.
    names: names of the values of fields that are numbers.
    folder: that paths in records are relative to; None: files in several.
    place: where a record stands, such as FILE:LINE; None where it has only its
      number.
  """

  records: Sequence[dict[str, Any]]
  identity: str
  fields: tuple[str, ...] | None
  names: Mapping[str, Sequence[str]] = types.MappingProxyType({})
  folder: str | None = ''
  place: Callable[[int], str] | None = None


def python(where: str) -> Rows:
  """The literal `topics: dict[str, str]` of a module, which is not executed."""
  path = _module_path(where)
  if path is None:
    raise config_lib.ConfigError(f'no Python source of a module {where!r}')
  try:
    content = pathlib.Path(path).read_bytes()
    body = ast.parse(content).body
  except (OSError, SyntaxError, ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{path} is not Python: {error}') from error
  topics = None
  for node in body:
    if isinstance(node, ast.Assign) and [
      ast.unparse(target) for target in node.targets
    ] == ['topics']:
      try:
        topics = ast.literal_eval(node.value)
      except ValueError:
        break
  if not (
    isinstance(topics, dict)
    and topics
    and all(type(value) is str for value in topics.values())
  ):
    raise config_lib.ConfigError(
      f'{where} has no literal topics: dict[str, str], as pydoc_data.topics has'
    )
  records = [{'topic': name, 'text': value} for name, value in topics.items()]
  identity = hashlib.sha256(content).hexdigest()
  return Rows(records, identity, ('topic', 'text'))


def _module_path(module: str) -> str | None:
  """The source file of a module, found without importing its parents."""
  search, origin = None, None
  for index, name in enumerate(module.split('.')):
    if index and search is None:
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, search)
    if spec is None:
      return None
    search, origin = spec.submodule_search_locations, spec.origin
  return origin if origin and origin.endswith('.py') else None


def reverse(where: str) -> Rows:
  """Distinct random words of 5 to 30 letters, and each word reversed."""
  config_lib.check(
    where.isdecimal()
    and len(where) <= len(str(_MAX_REVERSE))
    and 0 < int(where) <= _MAX_REVERSE,
    f'write a number of pairs from 1 to {_MAX_REVERSE:,}',
  )
  words: dict[str, None] = {}
  for word in _random_words():
    words[word] = None
    if len(words) == int(where):
      break
  records = [{'inputs': word, 'targets': word[::-1]} for word in words]
  return Rows(records, where, ('inputs', 'targets'))


def _random_words() -> Iterator[str]:
  generator = np.random.default_rng(0)
  while True:
    letters = generator.integers(ord('a'), ord('z') + 1, (4096, 30), np.uint8)
    lengths = generator.integers(5, 31, 4096)
    for row, length in zip(letters, lengths, strict=True):
      yield row[:length].tobytes().decode('ascii')
