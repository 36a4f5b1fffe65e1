"""The classes and labels that targets name: which there are, and how often.

Their order is that of `data.label_names`, which a run that begins finds in its
training data and keeps in its config, with `model.num_classes`.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import cache, fields, sources, unusable
from gemini_jax.data import task as task_lib

# As many as a corpus can hold, beside none.
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
    names = _found(piece, config.data)
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


def _found(piece: task_lib.Piece, config: config_lib.Data) -> tuple[str, ...]:
  """The names that the training data have: their own, or all that occur."""
  names: set[str] = set()
  for spec in config.train:
    source = sources.records(spec, config)
    known = source.names.get(piece.value)
    if known:
      return tuple(known)
    for index in range(len(source)):
      try:
        record = source[index]
        value: Any = record.get(piece.value)
        if piece.kind == task_lib.LABELS:
          value = fields.label_list(record, piece)
      except unusable.UnusableError:
        continue
      is_list = isinstance(value, list | tuple | np.ndarray)
      for one in value if is_list else [value]:
        try:
          names.add(fields.class_name(piece.value, one, ()))
        except unusable.UnusableError:
          # Counted, with its reason, when the records are tokenized.
          continue
      if len(names) > _MAX_CLASSES:
        break
  is_number = all(name.isdecimal() for name in names)
  found = tuple(sorted(names, key=int if is_number else str))
  logging.info('%d classes in data.train', len(found))
  return found


def weights(
  config: config_lib.Data, corpora: Iterable[cache.Corpus]
) -> np.ndarray | None:
  """float32[C], what a training example of each class counts.

  Args:
    config: of the data.
    corpora: of the training split.

  Returns:
    1 over the frequency of the class, 1 in the mean over examples; None where
    all count alike.

  Raises:
    ConfigError: a class has no example.
  """
  if task_lib.classes(config) is None:
    return None
  counts = count(config.label_names, corpora)
  missing = [
    name
    for name, number in zip(config.label_names, counts, strict=True)
    if not number
  ]
  config_lib.check(
    not missing,
    f'data.train has no example of {len(missing)} of the '
    f'{len(counts)} classes, such as {", ".join(missing[:3])}; take them out '
    'of data.label_names',
  )
  if config.class_weights == 'none':
    return None
  return (counts.sum() / len(counts) / counts).astype(np.float32)


def count(names: Sequence[str], corpora: Iterable[cache.Corpus]) -> np.ndarray:
  """int64[C], targets of each class."""
  total = np.zeros(len(names) + 1, np.int64)
  for corpus in corpora:
    assert corpus.classes is not None
    total += np.bincount(corpus.classes, minlength=len(total))
  return total[1:]
