"""Tasks: which fields of a record are inputs, which are targets.

A task is written `{image:photo} in {language} -> {caption}`: templates of the
inputs and of the targets, with fields of the record in braces. `image:`,
`audio:` and `video:` mark fields that hold media, `words:` a list of words,
`number:` a number and `series:` a series of numbers. Targets may be the class
of an example, `{class:label}`, or of each of its words, `{tags:tags}`, any
number of labels, `{labels:topics}`, or a number, `{number:price}`. A name may
stand in front: `caption = {image:photo} -> {text}`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from gemini_jax import config as config_lib

TEXT, LITERAL, CHAT, WORDS = 'text', 'literal', 'chat', 'words'
# Targets that are classes and no text: one of the example, or one a word.
CLASS, TAGS = 'class', 'tags'
CLASSES = (CLASS, TAGS)
# Others for which the model has an output of its own: labels and a number.
LABELS, NUMBER, SERIES = 'labels', 'number', 'series'
HEADS = (*CLASSES, LABELS, NUMBER)
# Fields that can be targets alone.
_TARGETS = (*CLASSES, LABELS)
Part = Literal['inputs', 'targets']

_FIELD = re.compile(r'\{(?:(\w+):)?(\w+)\}')
_NAMED = re.compile(r'(\w+)\s*=\s*(.*)', re.DOTALL)
_ARROW = '->'


@dataclasses.dataclass(frozen=True)
class Piece:
  """A field of a record, or literal text between fields.

  Attributes:
    kind: one of KINDS or HEADS, TEXT, LITERAL, CHAT or WORDS.
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
  def head(self) -> Piece | None:
    """The piece of the targets that an output of its own predicts, if any."""
    return next((p for p in self.targets if p.kind in HEADS), None)

  def drop_kinds(self, kinds: Iterable[str]) -> 'Task':
    """The same task without media of some kinds among its inputs."""
    if self.inputs is None:
      return self
    inputs = tuple(p for p in self.inputs if p.kind not in kinds)
    return dataclasses.replace(self, inputs=inputs)

  def media(self, part: Part) -> tuple[Piece, ...]:
    """Media among the inputs or the targets, in order, numbers included.

    A number that an output predicts is none.
    """
    pieces = self.targets if part == 'targets' else self.inputs or ()
    if part == 'targets' and self.head is not None:
      return ()
    return tuple(p for p in pieces if p.kind in config_lib.KINDS)

  def kinds(self, part: Part) -> tuple[str, ...]:
    """Their kinds."""
    return tuple(piece.kind for piece in self.media(part))


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
    known = (TEXT, WORDS, *config_lib.KINDS, *_TARGETS)
    config_lib.check(
      piece.kind in (*known, LITERAL),
      f'data.tasks: {text!r}: {piece.kind!r} is not a kind of field'
      f'{config_lib.nearest(piece.kind, known)}',
    )
  _check_head(text, task)
  return task


def _check_head(text: str, task: Task):
  """Refuses a head that is not the only target, or tags without words."""
  inputs = task.inputs or ()
  for piece in inputs:
    config_lib.check(
      piece.kind not in _TARGETS,
      f'data.tasks: {text!r}: {{{piece.kind}:{piece.value}}} can be a target '
      'alone',
    )
  if task.head is None:
    return
  config_lib.check(
    len(task.targets) == 1,
    f'data.tasks: {text!r}: {{{task.head.kind}:{task.head.value}}} must '
    'be the only target',
  )
  config_lib.check(
    task.head.kind != TAGS or [p.kind for p in inputs] == [WORDS],
    f'data.tasks: {text!r}: tags are of the words of one field; write '
    f'{{words:FIELD}} -> {{tags:{task.head.value}}}',
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


def head(config: config_lib.Data) -> Piece | None:
  """The piece that an output predicts for all tasks; None: they write tokens.

  Raises:
    ConfigError: tasks have different ones, or some of them none.
  """
  pieces = {task.head for task in from_config(config)}
  config_lib.check(
    len(pieces) == 1,
    f'data.tasks={config.tasks}: the model has one output; where one task '
    'names classes, labels or a number, all must name those of the same field',
  )
  return next(iter(pieces))


def classes(config: config_lib.Data) -> Piece | None:
  """As `head`, where that is a class of examples or of words."""
  piece = head(config)
  return piece if piece is not None and piece.kind in CLASSES else None


# Asked for each number that is read.
@functools.lru_cache(maxsize=16)
def number_fields(texts: tuple[str, ...]) -> tuple[str, ...]:
  """The fields of numbers among the inputs of tasks, each once, in order.

  Args:
    texts: of the tasks, as in `data.tasks`.
  """
  return tuple(
    dict.fromkeys(
      piece.value
      for task in map(parse, texts)
      for piece in task.inputs or ()
      if piece.kind == NUMBER
    )
  )


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
