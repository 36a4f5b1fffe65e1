"""BLEU, chrF and ROUGE of texts, each against one reference, 0 to 100.

BLEU and chrF are sacrebleu's with its defaults: of the texts as they are, case
counts, BLEU on words as its tokenizer 13a splits them. ROUGE is that of
rouge-score with Porter's stemmer, the mean F1 of the texts; it is made for
English and reads letters a to z and digits alone.
"""

import logging
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.evaluate import bootstrap

# Those of sacrebleu by the name of its class.
_CORPUS = {'bleu': 'BLEU', 'chrf': 'CHRF'}


class Report(NamedTuple):
  """Metrics by name, and how each was computed.

  Attributes:
    metrics: the scores, and NAME_low and NAME_high of a 95 % interval by the
      bootstrap.
    signatures: of each score: sacrebleu's, or the package and its version.
  """

  metrics: dict[str, float]
  signatures: dict[str, str]


def check(names: Sequence[str]):
  """ConfigError, with the remedy, for a metric whose package is missing."""
  for name in names:
    _sacrebleu() if name in _CORPUS else _rouge()


def _sacrebleu() -> Any:
  return config_lib.optional(
    'sacrebleu', 'evaluate.texts.metrics: bleu and chrf need sacrebleu', 'tasks'
  )


def _rouge() -> Any:
  return config_lib.optional(
    'rouge_score.rouge_scorer',
    'evaluate.texts.metrics: rouge needs rouge-score',
    'tasks',
  )


def report(
  names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> Report:
  """Scores of texts, with intervals and signatures.

  Args:
    names: some of bleu, chrf, rouge1, rouge2 and rougeL.
    texts: that were written; one may be empty.
    references: what each should be.

  Raises:
    ValueError: there are none, or not as many of both.
  """
  if not texts or len(texts) != len(references):
    raise ValueError(f'{len(texts)} texts for {len(references)} references')
  metrics, signatures = {}, {}
  for name in names:
    if name in _CORPUS:
      scores, signatures[name] = _corpus_score(name, texts, references)
      metrics |= scores
  if rouge := [name for name in names if name not in _CORPUS]:
    metrics |= _rouge_scores(rouge, texts, references)
    version = metadata.version('rouge-score')
    signatures |= dict.fromkeys(rouge, f'rouge-score:{version}|stemmer:porter')
  return Report(metrics, signatures)


def _corpus_score(
  name: str, texts: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float], str]:
  """A score of sacrebleu with an interval, and the signature."""
  metric = getattr(_sacrebleu(), _CORPUS[name])()
  score = metric.corpus_score([*texts], [[*references]])
  signature = metric.get_signature().format()
  logging.info('%s: %s', name, score.format(signature=signature))
  # Not by its own bootstrap: that fails where some resamples score nothing.
  counts_NS = np.array(
    metric._extract_corpus_statistics([*texts], [[*references]]), np.int64
  )
  resampled = lambda rows: {
    name: float(
      metric._compute_score_from_stats(counts_NS[rows].sum(0).tolist()).score
    )
  }
  intervals = bootstrap.intervals(resampled, len(texts))
  return {name: float(score.score)} | intervals, signature


def _rouge_scores(
  names: Sequence[str], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
  scorer = _rouge().RougeScorer([*names], use_stemmer=True)
  scores = [
    scorer.score(reference, text)
    for text, reference in zip(texts, references, strict=True)
  ]
  values = {
    name: 100 * np.array([score[name].fmeasure for score in scores])
    for name in names
  }
  means = lambda rows: {
    name: float(values_N[rows].mean()) for name, values_N in values.items()
  }
  return means(slice(None)) | bootstrap.intervals(means, len(texts))
