"""Spans count where type, first and last token are right; BIO is checked."""

import numpy as np
import pytest

from gemini_jax.evaluate import span_metrics

pytest.importorskip('seqeval', reason='needs gemini_jax[tasks]')

KEYS = ('precision', 'recall', 'f1')
TAGS = ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')


def report(truth, predicted, num_bootstrap=0):
  return span_metrics.report(
    [text.split() for text in truth],
    [text.split() for text in predicted],
    num_bootstrap,
  )


@pytest.mark.parametrize(
  ('predicted', 'precision', 'recall'),
  [
    ('B-PER I-PER I-PER O B-LOC O', 1, 1),
    # Shorter or longer by one token, or another type: nothing of it is right.
    ('B-PER I-PER O O B-LOC O', 1 / 2, 1 / 2),
    ('B-PER I-PER I-PER O B-LOC I-LOC', 1 / 2, 1 / 2),
    ('B-LOC I-LOC I-LOC O O O', 0, 0),
    # Cut in two; and what does not begin with B is no span.
    ('B-PER I-PER B-PER O B-LOC O', 1 / 3, 1 / 2),
    ('I-PER I-PER I-PER O B-LOC O', 1, 1 / 2),
    ('B-PER I-PER I-PER O I-LOC O', 1, 1 / 2),
    ('O O O O O O', 0, 0),
  ],
)
def test_spans_by_hand(predicted, precision, recall):
  metrics, *_ = report(['B-PER I-PER I-PER O B-LOC O'], [predicted])
  f1 = 2 * precision * recall / ((precision + recall) or 1)
  found = [metrics[f'span_{key}'] for key in KEYS]
  np.testing.assert_allclose(found, [precision, recall, f1])


def spans(tags):
  """Strict spans, by a rule of our own: B-X and the I-X that follow."""
  found = set()
  for i, tag in enumerate(tags):
    if tag.startswith('B-'):
      end = i + 1
      while end < len(tags) and tags[end] == f'I-{tag[2:]}':
        end += 1
      found.add((tag[2:], i, end))
  return found


def scores(pairs, name=''):
  """Precision, recall and F1 of pairs of sets of spans, and the support."""
  of_type = lambda found: {span for span in found if name in ('', span[0])}
  counts = [
    [len(of_type(part)) for part in (truth & predicted, truth, predicted)]
    for truth, predicted in pairs
  ]
  right, support, claimed = np.sum(counts, axis=0)
  f1 = 2 * right / (claimed + support)
  return (right / claimed, right / support, f1), support


def test_random_tags_have_the_spans_of_another_rule():
  rng = np.random.default_rng(0)
  lengths = [*rng.integers(9, size=200), 0]
  draw = lambda: [[TAGS[i] for i in rng.integers(5, size=n)] for n in lengths]
  truth, predicted = draw(), draw()
  metrics, names, table = span_metrics.report(truth, predicted)
  assert names == ['LOC', 'PER']
  pairs = [
    (spans(tags), spans(others))
    for tags, others in zip(truth, predicted, strict=True)
  ]
  for column, name in enumerate(names):
    expected, support = scores(pairs, name)
    found = [table[key][column] for key in KEYS]
    np.testing.assert_allclose(found, expected)
    assert table['support'][column] == support
  found = [metrics[f'span_{key}'] for key in KEYS]
  np.testing.assert_allclose(found, scores(pairs)[0])
  np.testing.assert_allclose(metrics['span_macro_f1'], np.mean(table['f1']))
  flat = [np.concatenate([*map(np.array, tags)]) for tags in (truth, predicted)]
  np.testing.assert_allclose(
    metrics['token_accuracy'], np.mean(flat[0] == flat[1])
  )
  assert metrics['span_f1_low'] < metrics['span_f1'] < metrics['span_f1_high']


def test_no_span_at_all_is_zero():
  metrics, names, table = report(['O O'], ['O O'], 10)
  assert metrics['token_accuracy'] == 1
  assert metrics['span_f1'] == metrics['span_macro_f1'] == 0
  assert not names and table['f1'] == []


@pytest.mark.parametrize(
  ('truth', 'predicted'),
  [(['O O'], ['O']), (['O'], []), ([], []), ([''], [''])],
)
def test_sequences_that_do_not_fit_are_refused(truth, predicted):
  with pytest.raises(ValueError, match='tokens in'):
    report(truth, predicted)
