"""Spans of BIO tags: precision, recall and F1 by seqeval, in strict mode.

A span counts as right only where its type, its first and its last token are.
Strict: what begins with I instead of B is no span.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.evaluate import bootstrap

COLUMNS = ('precision', 'recall', 'f1', 'support')

Sequences = Sequence[Sequence[str]]


class Report(NamedTuple):
  """Metrics of all spans, and columns of those of each type.

  Attributes:
    metrics: by name; see `report`.
    names: of the types, sorted.
    table: columns of COLUMNS, each with a value for each type.
  """

  metrics: dict[str, float]
  names: list[str]
  table: dict[str, list[float]]


def check():
  """ConfigError, with the remedy, unless seqeval is installed."""
  _seqeval('metrics')


def _seqeval(module: str) -> Any:
  return config_lib.optional(
    f'seqeval.{module}', 'metrics of spans need seqeval', 'tasks'
  )


def report(
  truth: Sequences,
  predicted: Sequences,
  num_bootstrap: int = 1000,
  seed: int = 0,
) -> Report:
  """Metrics of spans, of all types together and of each.

  `span_precision`, `span_recall` and `span_f1` count all spans alike (micro);
  `span_macro_f1` is the mean of the types; what would be 0 / 0 is 0.
  `token_accuracy` is the share of tags that are right. `span_f1_low` and
  `span_f1_high` are a 95 % interval by the bootstrap over sequences.

  Args:
    truth: tags of each sequence, BIO.
    predicted: as many.
    num_bootstrap: resamples of the interval; 0: none.
    seed: of the bootstrap.

  Raises:
    ValueError: the sequences do not have the same lengths, or there is no tag.
  """
  lengths, others = ([*map(len, tags)] for tags in (truth, predicted))
  if lengths != others or not sum(lengths):
    raise ValueError(
      f'tags of {sum(lengths)} tokens in {len(lengths)} sequences for '
      f'{sum(others)} in {len(others)}'
    )
  # seqeval takes lists alone.
  truth, predicted = ([*map(list, tags)] for tags in (truth, predicted))
  iob2 = _seqeval('scheme').IOB2
  spans, predicted_spans = (
    _seqeval('scheme').Entities(tags, iob2) for tags in (truth, predicted)
  )
  scores = functools.partial(
    _seqeval('metrics.v1').precision_recall_fscore_support,
    truth,
    predicted,
    zero_division=0,
    scheme=iob2,
    entities_true=spans,
    entities_pred=predicted_spans,
  )
  columns = [values.tolist() for values in scores(average=None)]
  precision, recall, f1, _ = scores(average='micro')
  right = [
    tag == other
    for tags, others in zip(truth, predicted, strict=True)
    for tag, other in zip(tags, others, strict=True)
  ]
  # Of each sequence: spans that are right, and spans of both sides.
  counts_N2 = np.array(
    [
      (len(set(some) & set(others)), len(some) + len(others))
      for some, others in zip(
        spans.entities, predicted_spans.entities, strict=True
      )
    ]
  )
  return Report(
    {
      'span_precision': float(precision),
      'span_recall': float(recall),
      'span_f1': float(f1),
      'span_macro_f1': float(np.mean(columns[2] or 0.0)),
      'token_accuracy': float(np.mean(right)),
      **bootstrap.intervals(
        lambda rows: {'span_f1': _f1(counts_N2[rows].sum(axis=0))},
        len(truth),
        num_bootstrap,
        seed,
      ),
    },
    sorted(spans.unique_tags | predicted_spans.unique_tags),
    dict(zip(COLUMNS, columns, strict=True)),
  )


def _f1(counts_2: np.ndarray) -> float:
  num_right, num_spans = counts_2
  return float(2 * num_right / max(num_spans, 1))
