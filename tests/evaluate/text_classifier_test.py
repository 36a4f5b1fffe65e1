"""The classifier tells values apart by words, and says how well."""

import sys

import numpy as np
import pytest

import grammar
from gemini_jax import config
from gemini_jax.evaluate import text_classifier


def labelled(count, seed, name='tone'):
  records = grammar.records(count, seed)
  return (
    [record['text'] for record in records],
    [record['label'][name] for record in records],
  )


def test_values_are_learned_from_words():
  learned = text_classifier.fit(*labelled(400, seed=1))
  texts, values = labelled(200, seed=2)
  found = learned.measure(texts, values)
  assert found['texts'] == 200 and found['accuracy'] > 0.95
  assert list(found['values']) == ['negative', 'positive']
  # What has no word has no value, however frequent one is.
  assert list(learned.read(['', ' \n', texts[0]])) == ['', '', values[0]]
  # Without a known word, a text has the most frequent value.
  assert list(learned.read(['xyz'])) == ['negative']


class Fixed:
  """Reads the value that the text says."""

  def predict(self, texts):
    return np.array([text.split()[0] for text in texts])


def test_precision_and_recall_of_each_value():
  texts = ['a', 'a', 'a', 'b', 'b', 'c']
  found = text_classifier.Classifier(Fixed()).measure(texts, [*'aabbad'])
  assert found['accuracy'] == 0.5
  assert found['values'] == {
    'a': {'texts': 3, 'precision': 2 / 3, 'recall': 2 / 3},
    'b': {'texts': 2, 'precision': 0.5, 'recall': 0.5},
    'd': {'texts': 1, 'precision': None, 'recall': 0.0},
  }


def test_what_teaches_nothing_is_refused():
  with pytest.raises(config.ConfigError, match="the value 'a'; a second"):
    text_classifier.fit(['one', 'two'], ['a', 'a'])
  with pytest.raises(config.ConfigError, match='2 labelled texts teach no'):
    text_classifier.fit(['one', 'two'], ['a', 'b'])


def test_without_scikit_learn_the_remedy_is_told(monkeypatch):
  text_classifier.check()
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(config.ConfigError) as error:
    text_classifier.check()
  assert str(error.value) == (
    'the classifier needs scikit-learn; install it with: pip install '
    "'gemini_jax[judge]'"
  )
