"""Requests: the inputs of a task of `data.tasks`, filled in."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import (
  fields,
  numbers,
  transforms,
  unusable,
)
from gemini_jax.data import media as media_lib
from gemini_jax.data import medium as medium_lib
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class Request:
  """The filled-in inputs of one task.

  Attributes:
    text: the inputs as a person reads them; media are named in brackets.
    tokens: int32, with placeholders for media, without bos and eos.
    media: by kind, in order.
    unknown: characters of the text that the tokenizer does not know.
  """

  text: str
  tokens: np.ndarray
  media: Mapping[str, Sequence[medium_lib.Medium]] = dataclasses.field(
    default_factory=dict
  )
  unknown: str = ''


def unknown_characters(
  tokenizer: tokenizer_lib.Tokenizer, texts: Iterable[str]
) -> str:
  """Characters of the texts that the tokenizer does not know, each once."""
  unk_id = getattr(tokenizer, 'unk_id', None)
  is_unknown = lambda text: (
    unk_id is not None and unk_id in tokenizer.encode(text)
  )
  characters = dict.fromkeys(''.join(filter(is_unknown, texts)))
  return ''.join(filter(is_unknown, characters))


def warn_unknown(unknown: Iterable[str]):
  """Logs a warning with the unknown characters of prompts, if there are any."""
  characters = ''.join(dict.fromkeys(''.join(unknown)))
  if characters:
    logging.warning(
      'the tokenizer does not know %r; the model reads each of these '
      'characters as the same unknown token',
      characters,
    )


def choose_task(config: config_lib.Config) -> task_lib.Task:
  """The task that `generate` asks for.

  Raises:
    ConfigError: no task fits, or more than one does; all tasks are listed.
  """
  options = config.generate
  given = {kind for kind in config_lib.MEDIA if getattr(options, kind)}
  fitting = []
  for task in task_lib.from_config(config.data):
    targets = task.kinds('targets')
    writes = targets[0] if targets else 'text'
    read = set(task.kinds('inputs')) - set(config.data.drop_kinds)
    if options.task:
      if task.name == options.task and writes == options.output:
        fitting.append(task)
    elif read == given and writes == options.output:
      fitting.append(task)
  task_list = '; '.join(config.data.tasks)
  asked = (
    f'generate.task={options.task!r} with generate.output={options.output!r}'
    if options.task
    else (
      f'generate.output={options.output!r} of '
      f'{" and ".join(sorted(given)) or "text"}'
    )
  )
  config_lib.check(
    len(fitting) > 0, f'{asked} is none of the tasks of this model: {task_list}'
  )
  config_lib.check(
    len(fitting) == 1,
    f'{asked} fits several tasks; set generate.task to the name of one of: '
    f'{task_list}',
  )
  return fitting[0]


def from_options(
  config: config_lib.Config, tokenizer: tokenizer_lib.Tokenizer
) -> Request:
  """The request that the section `generate` describes.

  Raises:
    ConfigError: no task or several fit, a medium cannot be read, or a medium or
      the text is missing or is no input of the task.
  """
  options = config.generate
  task = choose_task(config)
  not_given = (task_lib.LITERAL, *config.data.drop_kinds)
  fields = [p for p in task.inputs or () if p.kind not in not_given]
  input_kinds = [piece.kind for piece in fields]
  for kind in config_lib.NUMERIC:
    config_lib.check(
      kind not in input_kinds,
      f'the task {_shown(task)} reads a {kind}, which --mode=generate cannot '
      'be given; use --mode=predict',
    )
  for kind in (*config_lib.MEDIA, task_lib.TEXT):
    name = 'prompt' if kind == task_lib.TEXT else kind
    value = getattr(options, name)
    config_lib.check(
      not value or kind in input_kinds,
      f'generate.{name}={value!r} is not read by the task {_shown(task)}',
    )
    config_lib.check(
      bool(value) or kind not in input_kinds,
      f'the task {_shown(task)} reads {name}; set generate.{name}',
    )
  config_lib.check(
    len(set(input_kinds)) == len(input_kinds),
    f'the task {_shown(task)} reads several of one kind, which '
    '--mode=generate cannot be given',
  )
  return from_record(
    config,
    tokenizer,
    task,
    {
      p.value: getattr(options, 'prompt' if p.kind == task_lib.TEXT else p.kind)
      for p in fields
    },
    check=True,
  )


def from_record(
  config: config_lib.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  task: task_lib.Task,
  record: Mapping[str, Any],
  *,
  names: Mapping[str, Sequence[str]] | None = None,
  folder: str | None = '',
  check: bool = False,
) -> Request:
  """The request that a record's fields make of a task.

  Kinds in `data.drop_kinds` are left out as in training rows: the texts before
  and after such a medium are tokenized separately.

  Args:
    config: of the run.
    tokenizer: of the run.
    task: whose inputs are filled in.
    record: fields by name.
    names: label names of fields whose values are numbers.
    folder: that paths of media are relative to.
    check: raise ConfigError where a medium cannot be read: it was given by the
      user, and not by a data set.

  Raises:
    ConfigError: a medium cannot be read, with `check`.
    UnusableError: a medium cannot be read, without `check`; or a text is
      missing.
  """
  parts: list[str | transforms.Slots] = []
  media: dict[str, list[medium_lib.Medium]] = {}
  shown = []
  for piece in task.inputs or ():
    if piece.kind in config.data.drop_kinds:
      parts.append(transforms.Slots(piece.kind, 0))
    elif piece.kind in config_lib.KINDS:
      value = record.get(piece.value)
      try:
        medium = _medium(config, record, piece, folder)
      except unusable.UnusableError as error:
        if not check:
          raise
        raise config_lib.ConfigError(
          f'generate.{piece.kind}={value!r}: {error}'
        ) from error
      media.setdefault(piece.kind, []).append(medium)
      count = config.model.tokens_of(piece.kind, medium.size.tolist())
      parts.append(transforms.Slots(piece.kind, count))
      shown.append(f'[{value if isinstance(value, str) else piece.kind}]')
    else:
      text = fields.text_of(record, piece, names or {})
      parts.append(text)
      shown.append(text)
  tokens = transforms.encode(
    parts,
    tokenizer,
    {kind: config.model.placeholder(kind) for kind in config.model.kinds},
  )
  texts = [part for part in parts if isinstance(part, str)]
  return Request(
    ''.join(shown), tokens, media, unknown_characters(tokenizer, texts)
  )


def _medium(
  config: config_lib.Config,
  record: Mapping[str, Any],
  piece: task_lib.Piece,
  folder: str | None,
) -> medium_lib.Medium:
  if piece.kind in config_lib.NUMERIC:
    return numbers.medium_of(record, piece, config.data, config.model)
  return media_lib.read(
    piece.kind,
    record.get(piece.value),
    config.model,
    config.data.audio_sample_rate,
    folder,
    config.data.max_media_pixels,
  )


def stack_media(
  config: config_lib.Model,
  requests: Sequence[Request],
  batch_size: int,
) -> dict[str, batch_lib.Media]:
  """The media of requests as arrays of a batch; rows past them have none."""
  batched = {}
  for kind in config.kinds:
    num_media = max((len(r.media.get(kind, ())) for r in requests), default=0)
    if not num_media:
      continue
    example = next(r.media[kind][0] for r in requests if r.media.get(kind))
    shape = (batch_size, num_media)
    values = np.zeros(shape + example.values.shape, example.values.dtype)
    sizes = np.zeros(shape + example.size.shape, np.int32)
    for row, request in enumerate(requests):
      for i, medium in enumerate(request.media.get(kind, ())):
        values[row, i], sizes[row, i] = medium
    batched[kind] = batch_lib.Media(values, sizes)
  return batched


def _shown(task: task_lib.Task) -> str:
  """A task as it is written in a config."""
  parts = [
    ''.join(
      piece.value
      if piece.kind == task_lib.LITERAL
      else f'{{{piece.value}}}'
      if piece.kind == task_lib.TEXT
      else f'{{{piece.kind}:{piece.value}}}'
      for piece in part
    )
    for part in task.parts
  ]
  return repr(' -> '.join(parts))
