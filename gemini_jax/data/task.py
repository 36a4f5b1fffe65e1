"""What is read of a record and what is written: `{image:photo} -> {caption}`.

Each side of a task is text with fields of a record in braces; `image:`,
`audio:` and `video:` say that a field is none of text. A name may stand before:
`caption = {image:photo} in {language} -> {text}`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from gemini_jax import config as config_lib

TEXT, LITERAL = 'text', 'literal'

_FIELD = re.compile(r'\{(?:(\w+):)?(\w+)\}')
_NAMED = re.compile(r'(\w+)\s*=\s*(.*)', re.DOTALL)
_ARROW = '->'


@dataclasses.dataclass(frozen=True)
class Piece:
  """A field of a record, or text between fields.

  Attributes:
    kind: of KINDS, TEXT or LITERAL.
    value: name of the field, or the text.
  """

  kind: str
  value: str


@dataclasses.dataclass(frozen=True)
class Task:
  """What is read and what is written.

  Attributes:
    name: of its numbers in the metrics; may be empty.
    sides: pieces of the inputs and of the targets; of plain text the latter
      alone.
  """

  name: str
  sides: tuple[tuple[Piece, ...], ...]

  @property
  def pieces(self) -> tuple[Piece, ...]:
    """Those of all sides, in order."""
    return tuple(piece for side in self.sides for piece in side)

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of the fields, in order."""
    return tuple(p.value for p in self.pieces if p.kind != LITERAL)

  @property
  def targets(self) -> tuple[Piece, ...]:
    """What is written."""
    return self.sides[-1]

  def drop_kinds(self, kinds: Iterable[str]) -> 'Task':
    """The same task, whose inputs leave out media of some kinds."""
    left = tuple(p for p in self.sides[0] if p.kind not in kinds)
    return dataclasses.replace(self, sides=(left, *self.sides[1:]))

  def kinds(self, side: int) -> tuple[str, ...]:
    """Kinds of the media of a side, in order."""
    own = self.sides[side]
    return tuple(p.kind for p in own if p.kind in config_lib.KINDS)


def parse(text: str) -> Task:
  """The task that a text describes.

  Raises:
    ConfigError: it is not written as one.
  """
  named = _NAMED.fullmatch(text.strip())
  name, template = named.groups() if named else ('', text)
  sides = [side.strip() for side in template.split(_ARROW)]
  config_lib.check(
    len(sides) == 2 and all(map(_FIELD.search, sides)),
    f'data.tasks: {text!r} must be INPUTS {_ARROW} TARGETS, with a field on '
    'both sides, such as {image:photo} -> {caption}',
  )
  task = Task(name, tuple(tuple(_pieces(side)) for side in sides))
  for piece in task.pieces:
    config_lib.check(
      piece.kind != LITERAL or not set('{}') & set(piece.value),
      f'data.tasks: {text!r}: {piece.value!r} is no field; write {{field}} or '
      '{kind:field}, of letters, digits and _',
    )
    known = (TEXT, *config_lib.KINDS)
    config_lib.check(
      piece.kind in (*known, LITERAL),
      f'data.tasks: {text!r}: {piece.kind!r} is not a kind of field'
      f'{config_lib.nearest(piece.kind, known)}',
    )
  return task


def of(config: config_lib.Data) -> tuple[Task, ...]:
  """The tasks of a config: those it names, one of pairs, or plain text.

  Raises:
    ConfigError: one is not written as a task, or two have one name.
  """
  if config.tasks:
    tasks = tuple(parse(text) for text in config.tasks)
    names = [task.name for task in tasks if task.name]
    config_lib.check(
      len(set(names)) == len(names),
      f'data.tasks: {", ".join(names)} must be different names',
    )
    return tasks
  text = lambda field: (Piece(TEXT, field),)
  if config.inputs_field:
    return (Task('', (text(config.inputs_field), text(config.targets_field))),)
  return (Task('', (text(config.text_field),)),)


def most(tasks: Iterable[Task], sides: Iterable[int]) -> dict[str, int]:
  """The most media of each kind that a task has in some of its sides."""
  sides = tuple(sides)
  found: dict[str, int] = {}
  for task in tasks:
    kinds = [kind for side in sides for kind in task.kinds(side)]
    for kind in kinds:
      found[kind] = max(found.get(kind, 0), kinds.count(kind))
  return found


def _pieces(side: str) -> Iterator[Piece]:
  end = 0
  for match in _FIELD.finditer(side):
    if match.start() > end:
      yield Piece(LITERAL, side[end : match.start()])
    yield Piece(match[1] or TEXT, match[2])
    end = match.end()
  if end < len(side):
    yield Piece(LITERAL, side[end:])
