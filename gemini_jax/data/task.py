"""Tasks: which fields of a record are inputs, which are targets.

A task is written `{image:photo} in {language} -> {caption}`: templates of the
inputs and of the targets, with fields of the record in braces. `image:`,
`audio:` and `video:` mark fields that hold media, `words:` a list of words.
Targets may be the class of an example, `{class:label}`, or of each of its
words, `{tags:tags}`. A name may stand in front: `caption = {image:photo} ->
{text}`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from gemini_jax import config as config_lib

TEXT, LITERAL, CHAT, WORDS = 'text', 'literal', 'chat', 'words'
# Targets that are classes and no text: one of the example, or one a word.
CLASS, TAGS = 'class', 'tags'
CLASSES = (CLASS, TAGS)
Part = Literal['inputs', 'targets']

_FIELD = re.compile(r'\{(?:(\w+):)?(\w+)\}')
_NAMED = re.compile(r'(\w+)\s*=\s*(.*)', re.DOTALL)
_ARROW = '->'


@dataclasses.dataclass(frozen=True)
class Piece:
  """A field of a record, or literal text between fields.

  Attributes:
    kind: one of KINDS or CLASSES, TEXT, LITERAL, CHAT or WORDS.
    value: name of the field, or the literal text.
  """

  kind: str
  value: str


@dataclasses.dataclass(frozen=True)
class Task:
  """Templates of the inputs and the targets of an example.

  Attributes:
    name: prefix of the task's metrics; may be empty.
    targets: pieces of the targets.
    inputs: pieces of the inputs; None for plain text, which has targets alone.
  """

  name: str
  targets: tuple[Piece, ...]
  inputs: tuple[Piece, ...] | None = None

  @property
  def parts(self) -> tuple[tuple[Piece, ...], ...]:
    """Inputs, if any, and targets."""
    return (
      (self.targets,) if self.inputs is None else (self.inputs, self.targets)
    )

  @property
  def pieces(self) -> tuple[Piece, ...]:
    """All pieces, in order."""
    return tuple(piece for part in self.parts for piece in part)

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of the fields, in order."""
    return tuple(p.value for p in self.pieces if p.kind != LITERAL)

  @property
  def classes(self) -> Piece | None:
    """The piece of the targets that names classes, if they are no text."""
    return next((p for p in self.targets if p.kind in CLASSES), None)

  def drop_kinds(self, kinds: Iterable[str]) -> 'Task':
    """The same task without media of some kinds among its inputs."""
    if self.inputs is None:
      return self
    inputs = tuple(p for p in self.inputs if p.kind not in kinds)
    return dataclasses.replace(self, inputs=inputs)

  def kinds(self, part: Part) -> tuple[str, ...]:
    """Kinds of the media among the inputs or the targets, in order."""
    pieces = self.targets if part == 'targets' else self.inputs or ()
    return tuple(p.kind for p in pieces if p.kind in config_lib.KINDS)


@dataclasses.dataclass(frozen=True)
class Preference(Task):
  """A task whose targets are preferred to others for the same inputs.

  Attributes:
    rejected: pieces of the others.
  """

  rejected: tuple[Piece, ...] = ()

  @property
  def parts(self) -> tuple[tuple[Piece, ...], ...]:
    """Inputs, targets and rejected ones."""
    return (*super().parts, self.rejected)


def parse(text: str) -> Task:
  """The task that a text describes.

  Raises:
    ConfigError: it is not written as one.
  """
  named = _NAMED.fullmatch(text.strip())
  name, template = named.groups() if named else ('', text)
  parts = [part.strip() for part in template.split(_ARROW)]
  config_lib.check(
    len(parts) == 2 and all(map(_FIELD.search, parts)),
    f'data.tasks: {text!r} must be INPUTS {_ARROW} TARGETS, with a field in '
    'each, such as {image:photo} -> {caption}',
  )
  inputs, targets = (tuple(_pieces(part)) for part in parts)
  task = Task(name, targets, inputs)
  for piece in task.pieces:
    config_lib.check(
      piece.kind != LITERAL or not set('{}') & set(piece.value),
      f'data.tasks: {text!r}: {piece.value!r} is not a field; write {{field}} '
      'or {kind:field}, of letters, digits and _',
    )
    known = (TEXT, WORDS, *config_lib.KINDS, *CLASSES)
    config_lib.check(
      piece.kind in (*known, LITERAL),
      f'data.tasks: {text!r}: {piece.kind!r} is not a kind of field'
      f'{config_lib.nearest(piece.kind, known)}',
    )
  _check_classes(text, task)
  return task


def _check_classes(text: str, task: Task):
  """Refuses classes that are not the only target, or tags without words."""
  inputs = task.inputs or ()
  for piece in inputs:
    config_lib.check(
      piece.kind not in CLASSES,
      f'data.tasks: {text!r}: {{{piece.kind}:{piece.value}}} can be a target '
      'alone',
    )
  if task.classes is None:
    return
  config_lib.check(
    len(task.targets) == 1,
    f'data.tasks: {text!r}: {{{task.classes.kind}:{task.classes.value}}} must '
    'be the only target',
  )
  config_lib.check(
    task.classes.kind != TAGS or [p.kind for p in inputs] == [WORDS],
    f'data.tasks: {text!r}: tags are of the words of one field; write '
    f'{{words:FIELD}} -> {{tags:{task.classes.value}}}',
  )


def from_config(config: config_lib.Data) -> tuple[Task, ...]:
  """The tasks of a config: data.tasks, or one of what its other fields name.

  Raises:
    ConfigError: a task is malformed, or two have the same name.
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
    inputs, targets = text(config.inputs_field), text(config.targets_field)
    if config.rejected_field:
      return (Preference('', targets, inputs, text(config.rejected_field)),)
    return (Task('', targets, inputs),)
  if config.chat_field:
    chosen = (Piece(CHAT, config.chat_field),)
    if config.rejected_field:
      rejected = (Piece(CHAT, config.rejected_field),)
      return (Preference('', chosen, rejected=rejected),)
    return (Task('', chosen),)
  return (Task('', text(config.text_field)),)


def classes(config: config_lib.Data) -> Piece | None:
  """The piece that names the classes of all tasks; None: they write tokens.

  Raises:
    ConfigError: tasks name different classes, or some of them none.
  """
  pieces = {task.classes for task in from_config(config)}
  config_lib.check(
    len(pieces) == 1,
    f'data.tasks={config.tasks}: the model has one output; where one task '
    'names classes, all must name those of the same field',
  )
  return next(iter(pieces))


def max_media(tasks: Iterable[Task], parts: Iterable[Part]) -> dict[str, int]:
  """The largest number of media of each kind in the given parts of a task."""
  parts = tuple(parts)
  largest: dict[str, int] = {}
  for task in tasks:
    kinds = [kind for part in parts for kind in task.kinds(part)]
    for kind in kinds:
      largest[kind] = max(largest.get(kind, 0), kinds.count(kind))
  return largest


def _pieces(template: str) -> Iterator[Piece]:
  end = 0
  for match in _FIELD.finditer(template):
    if match.start() > end:
      yield Piece(LITERAL, template[end : match.start()])
    yield Piece(match[1] or TEXT, match[2])
    end = match.end()
  if end < len(template):
    yield Piece(LITERAL, template[end:])
