"""BLEU and CIDEr-D are what their own programs compute."""

import sys

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.evaluate import caption_metrics

REFERENCES = [
  ['a red stamp with a king', 'the king on a red stamp of the post'],
  ['a blue bird on a branch'],
  ['two ships in the harbour at night', 'ships at night', 'two ships'],
  ['a king and a bird'],
]
HYPOTHESES = [
  'a red king with a red stamp',
  'a blue bird on a branch',
  'two two two ships at the night harbour in a storm',
  'bird',
]


def test_cider_is_that_of_pycocoevalcap():
  """Its release 1.2 computed these numbers for the same words."""
  found = caption_metrics.cider(HYPOTHESES, REFERENCES)
  np.testing.assert_allclose(found, 3.6128689541713355, rtol=1e-9)


def test_cider_by_hand():
  """One word of two is right: only single words and pairs, half of it."""
  references = [['red bird'], ['blue ship']]
  found = caption_metrics.cider(['red ship', 'blue ship'], references)
  # First: words cos = 1/2, pairs 0; second: both 1; of four orders.
  np.testing.assert_allclose(found, 10 * np.mean([0.5 / 4, 2 / 4]), rtol=1e-9)
  # Another length costs exp(-1 / 72) beside the cosine of 1 and sqrt(2).
  found = caption_metrics.cider(['red', 'blue ship'], references)
  first = np.exp(-1 / 72) / 2**0.5 / 4
  np.testing.assert_allclose(found, 10 * np.mean([first, 0.5]), rtol=1e-9)


def test_the_same_is_best_and_the_shuffled_is_worse():
  rng = np.random.default_rng(0)
  texts = [
    ' '.join(f'w{i}' for i in rng.integers(30, size=rng.integers(5, 12)))
    for _ in range(40)
  ]
  references = [[text, 'w1 w2 w3 w4'] for text in texts]
  same = caption_metrics.report(texts, [[text] for text in texts])
  np.testing.assert_allclose([*same.values()], [100, 10])
  aligned = caption_metrics.report(texts, references)
  shuffled = caption_metrics.report(texts[1:] + texts[:1], references)
  for name in ('bleu', 'cider'):
    assert shuffled[name] < 0.2 * aligned[name]


def test_bleu_by_hand():
  """All words, 3 of 5 pairs, 1 of 4 triples; of none of 3, half of one."""
  found = caption_metrics.bleu(['a b c x d e'], [['a b c y d e', 'a x']])
  expected = 100 * (6 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** (1 / 4)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_references_may_be_of_any_number():
  """A reference that one caption has and another lacks counts where it is."""
  hypotheses = ['one two three four five', 'six seven eight nine ten']
  few = caption_metrics.bleu(
    hypotheses, [['one two'], ['six seven eight nine ten']]
  )
  more = caption_metrics.bleu(hypotheses, [['one two', hypotheses[0]], ['six']])
  assert few < 99 and more < 99
  both = caption_metrics.bleu(
    hypotheses, [['one two', hypotheses[0]], [hypotheses[1]]]
  )
  np.testing.assert_allclose(both, 100)


def test_short_captions_that_are_right_are_right():
  assert caption_metrics.bleu(['bag', 'coat'], [['bag'], ['coat']]) > 99.99


def test_words_of_scripts():
  assert caption_metrics.words("L'Été, à  8h!") == ['l', 'été', 'à', '8h']
  assert caption_metrics.words('一枚邮票 A4') == ['一', '枚', '邮', '票', 'a4']
  right = caption_metrics.report(
    ['一枚红色邮票', '船'], [['一枚红色邮票'], ['鸟']]
  )
  wrong = caption_metrics.report(
    ['一枚蓝色邮票', '船'], [['一枚红色邮票'], ['鸟']]
  )
  for name in ('bleu', 'cider'):
    assert 0 < wrong[name] < right[name]


@pytest.mark.parametrize(
  ('hypotheses', 'references', 'message'),
  [
    (['a'], [['a'], ['b']], '1 captions for 2'),
    ([], [], 'at least one'),
    (['a', 'b'], [['a'], []], 'every caption needs'),
  ],
)
def test_what_is_not_paired(hypotheses, references, message):
  for measure in (caption_metrics.bleu, caption_metrics.cider):
    with pytest.raises(ValueError, match=message):
      measure(hypotheses, references)


def test_without_the_library_the_remedy_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(config_lib.ConfigError, match=r'gemini_jax\[captions\]'):
    caption_metrics.bleu(['a'], [['a']])
  assert caption_metrics.cider(['a', 'b'], [['a'], ['b']]) > 0
