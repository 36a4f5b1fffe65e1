"""Scores of texts are those of their packages, with intervals around them."""

import sys

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.evaluate import text_metrics

sacrebleu = pytest.importorskip('sacrebleu', reason='needs gemini_jax[tasks]')
pytest.importorskip('rouge_score', reason='needs gemini_jax[tasks]')

METRICS = 'bleu', 'chrf', 'rouge1', 'rouge2', 'rougeL'


def pairs(count, seed=0):
  """Random texts, and each with every fourth word replaced."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(5, 15, size=count)
  references = [[f'Wort{i}' for i in rng.integers(40, size=n)] for n in lengths]
  texts = [
    [word if rng.random() > 0.25 else 'anders' for word in words]
    for words in references
  ]
  return [f'{" ".join(words)}.' for words in texts], [
    f'{" ".join(words)}.' for words in references
  ]


def test_scores_are_those_of_the_packages():
  texts, references = pairs(60)
  metrics, signatures = text_metrics.report(METRICS, texts, references)
  bleu = sacrebleu.corpus_bleu(texts, [references]).score
  chrf = sacrebleu.corpus_chrf(texts, [references]).score
  assert metrics['bleu'] == pytest.approx(bleu)
  assert metrics['chrf'] == pytest.approx(chrf)
  for name in METRICS:
    low, high = metrics[f'{name}_low'], metrics[f'{name}_high']
    assert low < metrics[name] < high < low + 25
  assert 'case:mixed' in signatures['bleu']
  assert 'tok:13a' in signatures['bleu']
  assert 'version:' in signatures['chrf']
  assert signatures['rougeL'].startswith('rouge-score:')
  assert set(signatures) == set(METRICS)
  # The same again: seeds are fixed.
  again = text_metrics.report(METRICS, texts, references).metrics
  assert again == metrics


def test_rouge_by_hand():
  """Of 3 words and 4, 2 are the same, in order, and 1 of 2 and 3 pairs."""
  metrics, _ = text_metrics.report(
    ('rouge1', 'rouge2', 'rougeL'),
    ['red cats sit', 'a b'],
    ['The red cats stood', 'b a'],
  )
  assert metrics['rouge1'] == pytest.approx(100 * (4 / 7 + 1) / 2)
  assert metrics['rouge2'] == pytest.approx(100 * (2 / 5 + 0) / 2)
  assert metrics['rougeL'] == pytest.approx(100 * (4 / 7 + 1 / 2) / 2)


def test_the_same_is_best_and_nothing_is_worst():
  texts, references = pairs(30)
  names = 'bleu', 'chrf', 'rougeL'
  score = lambda texts: text_metrics.report(names, texts, references).metrics
  best, empty = score(references), score([''] * 30)
  moved = score(texts[1:] + texts[:1])
  lower = score([text.lower() for text in texts])
  found = score(texts)
  for name in names:
    assert best[name] == pytest.approx(100)
    assert empty[name] == 0
    assert moved[name] < 0.6 * found[name]
  # Case counts, but not for ROUGE.
  assert lower['bleu'] < 1 < found['bleu']
  assert lower['rougeL'] == found['rougeL']


def test_a_text_of_several_is_right():
  """Resamples without it score nothing."""
  _, references = pairs(3)
  texts = [references[0], 'x', 'y']
  metrics, _ = text_metrics.report(('bleu', 'chrf'), texts, references)
  for name in ('bleu', 'chrf'):
    assert metrics[f'{name}_low'] == 0 < metrics[name] < 100
    assert metrics[f'{name}_high'] == pytest.approx(100)


@pytest.mark.parametrize('count', [(0, 0), (2, 1)])
def test_texts_without_references_are_refused(count):
  texts, references = ([*'abc'[:number]] for number in count)
  with pytest.raises(ValueError, match='references'):
    text_metrics.report(METRICS, texts, references)


@pytest.mark.parametrize(
  ('name', 'package'), [('bleu', 'sacrebleu'), ('rouge2', 'rouge_score')]
)
def test_a_missing_package_is_named_with_the_remedy(name, package, monkeypatch):
  text_metrics.check(METRICS)
  for module in [*sys.modules]:
    if module.split('.')[0] == package:
      monkeypatch.delitem(sys.modules, module)
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(config_lib.ConfigError) as error:
    text_metrics.check((name,))
  message = str(error.value)
  assert package.replace('_', '-') in message
  assert message.endswith("pip install 'gemini_jax[tasks]'")
  other = {'bleu': 'rouge1', 'rouge2': 'chrf'}[name]
  text_metrics.check((other,))
