"""A classifier of texts that no model here has a part in.

TF-IDF of words and pairs of words, and logistic regression over them, by
scikit-learn.
"""

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.evaluate import ngram

# Inverse strength of the regularisation, and steps at most.
_INVERSE_STRENGTH, _MAX_STEPS = 10.0, 200


def check():
  """ConfigError, with the remedy, unless scikit-learn is there."""
  config_lib.optional('sklearn', 'the classifier needs scikit-learn', 'judge')


@dataclasses.dataclass(frozen=True)
class Classifier:
  """Which value a text has.

  Attributes:
    pipeline: scikit-learn's.
  """

  pipeline: Any

  def read(self, texts: Sequence[str]) -> np.ndarray:
    """The likeliest value of each text; '' where it has no word."""
    there = [bool(ngram.words(text)) for text in texts]
    return np.where(there, self.pipeline.predict(list(texts)), '')

  def measure(
    self, texts: Sequence[str], values: Sequence[str]
  ) -> dict[str, Any]:
    """How often it is right, of texts whose values are known.

    Of each value: `texts` that have it; precision, of those that are read as
    it; recall, of those that have it; None where there is none.
    """
    read, known = self.read(texts), np.array(values)
    found = {}
    for value in sorted(set(values)):
      right = int(np.sum((read == value) & (known == value)))
      of_read, of_known = (
        int(np.sum(read == value)),
        int(np.sum(known == value)),
      )
      found[value] = {
        'texts': of_known,
        'precision': right / of_read if of_read else None,
        'recall': right / of_known if of_known else None,
      }
    accuracy = float(np.mean(read == known))
    return {'texts': len(known), 'accuracy': accuracy, 'values': found}


def fit(texts: Sequence[str], values: Sequence[str]) -> Classifier:
  """Learns the values of texts, by their frequencies where words say nothing.

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
    # Of no account: what is missing after so many steps are the last digits.
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
