"""A classifier of texts that is independent of the models.

Logistic regression over TF-IDF of words and pairs of words, by scikit-learn.
"""

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.evaluate import ngram

# Inverse strength of the regularisation, and iterations at most.
_INVERSE_STRENGTH, _MAX_STEPS = 10.0, 200


def check():
  """ConfigError, with the remedy, unless scikit-learn is installed."""
  config_lib.optional('sklearn', 'the classifier needs scikit-learn', 'judge')


@dataclasses.dataclass(frozen=True)
class Classifier:
  """Predicts the value of an attribute that a text has.

  Attributes:
    pipeline: scikit-learn's vectorizer and regression.
  """

  pipeline: Any

  def read(self, texts: Sequence[str]) -> np.ndarray:
    """The likeliest value of each text; '' for a text without a word."""
    has_words = [bool(ngram.words(text)) for text in texts]
    return np.where(has_words, self.pipeline.predict(list(texts)), '')

  def measure(
    self, texts: Sequence[str], values: Sequence[str]
  ) -> dict[str, Any]:
    """Accuracy, and precision and recall of each value.

    Args:
      texts: to classify.
      values: the true ones.

    Returns:
      The number of `texts`, the `accuracy`, and by `values`: the number of
      `texts` with it, `precision` and `recall`, None where nothing is counted.
    """
    predicted, true = self.read(texts), np.array(values)
    by_value = {}
    for value in sorted(set(values)):
      num_right = int(np.sum((predicted == value) & (true == value)))
      num_predicted = int(np.sum(predicted == value))
      num_true = int(np.sum(true == value))
      by_value[value] = {
        'texts': num_true,
        'precision': num_right / num_predicted if num_predicted else None,
        'recall': num_right / num_true if num_true else None,
      }
    accuracy = float(np.mean(predicted == true))
    return {'texts': len(true), 'accuracy': accuracy, 'values': by_value}


def fit(texts: Sequence[str], values: Sequence[str]) -> Classifier:
  """Trains a classifier; a text without known words gets a frequent value.

  Raises:
    ConfigError: no two texts have a word in common, or all have one value.
  """
  import sklearn.exceptions
  import sklearn.feature_extraction.text
  import sklearn.linear_model
  import sklearn.pipeline

  config_lib.check(
    len(set(values)) > 1,
    f'all {len(values)} labelled texts have the value {values[0]!r}; a second '
    'one is needed to tell them apart',
  )
  pipeline: Any = sklearn.pipeline.make_pipeline(
    sklearn.feature_extraction.text.TfidfVectorizer(
      token_pattern=r'\w+',
      ngram_range=(1, 2),
      min_df=2,
      sublinear_tf=True,
    ),
    sklearn.linear_model.LogisticRegression(
      C=_INVERSE_STRENGTH, max_iter=_MAX_STEPS
    ),
  )
  with warnings.catch_warnings():
    # After so many iterations only the last digits still change.
    kind = sklearn.exceptions.ConvergenceWarning
    warnings.simplefilter('ignore', kind)
    try:
      pipeline.fit(list(texts), list(values))
    except ValueError as error:
      raise config_lib.ConfigError(
        f'{len(texts)} labelled texts teach no classifier: {error}'
      ) from error
  logging.info(
    'classifier: %s texts, %d values, %s words and pairs',
    f'{len(texts):,}',
    len(set(values)),
    f'{pipeline[-1].coef_.shape[1]:,}',
  )
  return Classifier(pipeline)
