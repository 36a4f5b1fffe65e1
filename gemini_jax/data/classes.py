"""The classes and labels that targets name: which there are, and how often.

Their order is that of `data.label_names`, which a run that begins finds in its
training data and keeps in its config, with `model.num_classes`.
"""

import contextlib
import dataclasses
import logging
from typing import Any, Literal

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import fields, sources, unusable
from gemini_jax.data import task as task_lib

# A corpus holds the class + 1 as uint16; 0 is no class.
_MAX_CLASSES = 65_535


def resolve(
  config: config_lib.Config, saved: config_lib.Config | None
) -> config_lib.Config:
  """The config with the output that its tasks need, and the names of classes.

  Args:
    config: of a run; one whose targets are tokens is returned as it is.
    saved: of the same run when it began; None: it begins now.

  Raises:
    ConfigError: there are fewer than two classes or no label, or not those of
      `model.num_classes`; rows would hold several examples of labels or
      numbers; or the data cannot be read.
  """
  piece = task_lib.head(config.data)
  if piece is None:
    config_lib.check(
      not config.model.num_classes,
      f'model.num_classes={config.model.num_classes} needs tasks that name '
      'classes, such as data.tasks=("{text} -> {class:label}",)',
    )
    return config
  config_lib.check(
    piece.kind != task_lib.TAGS or config.data.objective != 'seq2seq',
    f'data.tasks={config.data.tasks}: tags are of the words that the decoder '
    'reads; set data.objective=prefix, not seq2seq',
  )
  if piece.kind not in task_lib.CLASSES:
    config_lib.check(
      not config.data.pack and config.data.class_weights == 'none',
      f'data.tasks={config.data.tasks}: targets that are labels or a number '
      "need data.pack=False and data.class_weights='none'",
    )
  if piece.kind == task_lib.NUMBER:
    return _with_output(config, 'numbers', 1, ())
  names = config.data.label_names
  if not names and saved is not None:
    names = saved.data.label_names
  if not names:
    names = _training_names(piece, config.data)
  is_labels = piece.kind == task_lib.LABELS
  least = 1 if is_labels else 2
  config_lib.check(
    least <= len(names) <= _MAX_CLASSES and len(set(names)) == len(names),
    f'data.label_names={names[:10]}: {{{piece.kind}:{piece.value}}} has '
    f'{len(names)} classes; there must be {least} to {_MAX_CLASSES:,}, each '
    'once',
  )
  return _with_output(
    config, 'labels' if is_labels else 'classes', len(names), names
  )


def _with_output(
  config: config_lib.Config,
  output: Literal['classes', 'labels', 'numbers'],
  size: int,
  names: tuple[str, ...],
) -> config_lib.Config:
  config_lib.check(
    config.model.num_classes in (0, size),
    f'model.num_classes={config.model.num_classes}, and the data have '
    f'{size} classes; leave it out',
  )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, label_names=names),
    model=dataclasses.replace(config.model, num_classes=size, output=output),
  )


def _training_names(
  piece: task_lib.Piece, config: config_lib.Data
) -> tuple[str, ...]:
  """The names of all classes of the training data.

  First come those that sources have in an order of their own.
  """
  ordered: dict[str, None] = {}
  others: set[str] = set()
  for spec in config.train:
    source = sources.records(spec, config)
    known = source.rows.names.get(piece.value, ())
    ordered |= dict.fromkeys(known)
    if not known:
      others |= _names_of_records(piece, source)
  others -= ordered.keys()
  are_numbers = all(name.isdecimal() for name in others)
  names = (*ordered, *sorted(others, key=int if are_numbers else str))
  logging.info('%d classes in data.train', len(names))
  return names


def _names_of_records(
  piece: task_lib.Piece, source: sources.Source
) -> set[str]:
  """The names that the records of a source have, as far as they are usable."""
  names: set[str] = set()
  for index in range(len(source)):
    try:
      record = source[index]
      value: Any = record.get(piece.value)
      if piece.kind == task_lib.LABELS:
        value = fields.label_list(record, piece)
    except unusable.UnusableError:
      continue
    is_list = isinstance(value, list | tuple | np.ndarray)
    for label in value if is_list else [value]:
      # What is neither is counted when the records are tokenized.
      with contextlib.suppress(unusable.UnusableError):
        names.add(fields.class_name(piece.value, label, ()))
    if len(names) > _MAX_CLASSES:
      break
  return names


def weights(config: config_lib.Data, counts: np.ndarray) -> np.ndarray | None:
  """float32[C], what a training example of each class counts.

  Args:
    config: of the data.
    counts: int64[C], training examples of each class.

  Returns:
    1 over the frequency of the class, 1 in the mean over examples; None where
    all count alike.

  Raises:
    ConfigError: a class has no example.
  """
  missing = [
    name
    for name, number in zip(config.label_names, counts, strict=True)
    if not number
  ]
  config_lib.check(
    not missing,
    f'data.train has no example of {len(missing)} of the '
    f'{len(counts)} classes, such as {", ".join(missing[:3])}; give more data, '
    'or the names of the others as data.label_names',
  )
  if config.class_weights == 'none':
    return None
  return (counts.sum() / len(counts) / counts).astype(np.float32)
