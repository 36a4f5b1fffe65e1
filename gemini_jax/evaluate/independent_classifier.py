"""Generated pictures and sounds, judged by an independent classifier.

The classifier is trained on real examples alone and shares neither code nor
parameters with the model. N and M examples, F values of each, C classes,
H width of the classifier's last hidden layer.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np

from gemini_jax import config as config_lib

# Widths of the hidden layers, examples in a step, and steps at most; training
# stops earlier once the loss no longer falls. On the 60,000 pictures of
# Fashion-MNIST: 33 s on one core, 88.9 % of the test split.
_HIDDEN, _BATCH_SIZE, _MAX_STEPS = (256, 128), 256, 3000


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A classifier of flat values.

  Attributes:
    network: scikit-learn's MLPClassifier.
    mean_F: of the training examples; it is subtracted.
    scale: standard deviation of all their values; values are divided by it.
      One for all, so that pixels which hardly vary do not count more.
  """

  network: Any
  mean_F: np.ndarray
  scale: float

  @property
  def classes(self) -> np.ndarray:
    """The labels of the training examples, sorted, [C]."""
    return self.network.classes_

  def predict(self, values_NF: np.ndarray) -> np.ndarray:
    """The likeliest label of each, [N]."""
    return self.network.predict(self._standard(values_NF))

  def features(self, values_NF: np.ndarray) -> np.ndarray:
    """Activations of the last hidden layer, float32[N, H]."""
    x_NH = self._standard(values_NF)
    *hidden, _ = zip(self.network.coefs_, self.network.intercepts_, strict=True)
    for weights, bias_H in hidden:
      x_NH = np.maximum(x_NH @ weights + bias_H[None], 0)
    return x_NH

  def accuracy(self, values_NF: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of the examples whose predicted label is right."""
    return float(np.mean(self.predict(values_NF) == np.asarray(labels_N)))

  def _standard(self, values_NF: np.ndarray) -> np.ndarray:
    return (_flat(values_NF) - self.mean_F[None]) / self.scale


def check():
  """ConfigError, with the remedy, unless scikit-learn is installed."""
  _networks()


def _networks() -> Any:
  return config_lib.optional(
    'sklearn.neural_network',
    'the classifier of pictures and sounds needs scikit-learn',
    'judge',
  )


def fit(
  values_NF: np.ndarray, labels_N: np.ndarray, *, seed: int = 0
) -> Classifier:
  """Trains a classifier of pictures or spectrograms of one shape.

  Args:
    values_NF: or [N, ...], of any type: pixels, log-mel energies.
    labels_N: numbers or words.
    seed: of its initial weights and of the order of examples.
  """
  networks = _networks()
  from sklearn import exceptions

  x_NF = _flat(values_NF)
  mean_F = x_NF.mean(axis=0, dtype=np.float64).astype(np.float32)
  x_NF = x_NF - mean_F[None]
  scale = float(np.sqrt(np.mean(np.square(x_NF), dtype=np.float64))) or 1.0
  batch_size = min(_BATCH_SIZE, len(x_NF))
  network = networks.MLPClassifier(
    _HIDDEN,
    batch_size=batch_size,
    max_iter=-(-_MAX_STEPS * batch_size // len(x_NF)),
    random_state=seed,
  )
  with warnings.catch_warnings():
    # It is meant to end when the steps are used up.
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    network.fit(x_NF / scale, labels_N)
  return Classifier(network, mean_F, scale)


def report(
  classifier: Classifier,
  generated_NF: np.ndarray,
  targets_N: np.ndarray,
  real_MF: np.ndarray,
  real_labels_M: np.ndarray,
) -> dict[str, float]:
  """How well generated examples match their labels and resemble real ones.

  A model that writes one good example per label has a high accuracy too, so
  read it beside the spread. Neither the classifier nor the model should have
  been trained on the real examples here; only those with a label of
  `targets_N` count. A Fréchet distance falls with the number of examples and
  depends on the frequencies of the labels: compare it to frechet_of_real, the
  distance of real examples from as many other real ones as were generated, or
  of their two halves if there are fewer.

  Args:
    classifier: trained on other real examples.
    generated_NF: or [N, ...], in the units and the shape of the real ones.
    targets_N: the labels that they were generated for.
    real_MF: real examples.
    real_labels_M: their labels.

  Returns:
    accuracy: share whose predicted label is the target; real_accuracy.
    frechet: in the classifier's features; frechet_of_real.
    spread: see `spread`; real_spread.

  Raises:
    ValueError: no real example has a label of `targets_N`.
  """
  targets_N, real_labels_M = np.asarray(targets_N), np.asarray(real_labels_M)
  generated_NF, real_MF = _flat(generated_NF), _flat(real_MF)
  same_M = np.isin(real_labels_M, targets_N)
  real_MF, real_labels_M = real_MF[same_M], real_labels_M[same_M]
  if not len(real_MF):
    raise ValueError('no real example has a label that was asked for')
  predicted_N = classifier.predict(generated_NF)
  features_MH = classifier.features(real_MF)
  shuffled_MH = np.random.default_rng(0).permutation(features_MH)
  part = min(len(targets_N), len(shuffled_MH) // 2)
  return {
    'accuracy': float(np.mean(predicted_N == targets_N)),
    'real_accuracy': classifier.accuracy(real_MF, real_labels_M),
    'frechet': frechet(classifier.features(generated_NF), features_MH),
    'frechet_of_real': frechet(shuffled_MH[:part], shuffled_MH[part:]),
    'spread': spread(generated_NF, targets_N),
    'real_spread': spread(real_MF, real_labels_M),
  }


def frechet(features_NH: np.ndarray, others_MH: np.ndarray) -> float:
  """Fréchet distance of two Gaussians fitted to features, squared.

  |m - n|^2 + tr(A + B - 2 (A B)^(1/2)), as in Heusel et al. 2017; the trace of
  the root is the sum of the singular values of A^(1/2) B^(1/2), since those
  squared are the eigenvalues of A^(1/2) B A^(1/2). NaN for fewer than two
  examples.
  """
  if min(len(features_NH), len(others_MH)) < 2:
    return float('nan')
  means, roots, total = [], [], 0.0
  for features in (features_NH, others_MH):
    features = np.asarray(features, np.float64)
    means.append(features.mean(axis=0))
    covariance_HH = np.atleast_2d(np.cov(features, rowvar=False))
    total += np.trace(covariance_HH)
    values_H, vectors_HH = np.linalg.eigh(covariance_HH)
    roots.append(np.sqrt(np.maximum(values_H, 0))[:, None] * vectors_HH.T)
  root_trace = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
  distance = np.sum(np.square(means[0] - means[1]))
  return max(float(distance + total - 2 * root_trace), 0.0)


def spread(values_NF: np.ndarray, labels_N: np.ndarray) -> float:
  """Mean over classes and values of the standard deviation within a class.

  In the units of the values; NaN unless a class has two examples.
  """
  values_NF, labels_N = _flat(values_NF), np.asarray(labels_N)
  deviations = []
  for label in np.unique(labels_N):
    examples = values_NF[labels_N == label]
    if len(examples) > 1:
      deviation_F = examples.std(axis=0, ddof=1, dtype=np.float64)
      deviations.append(float(np.mean(deviation_F)))
  return float(np.mean(deviations)) if deviations else float('nan')


def _flat(values: np.ndarray) -> np.ndarray:
  return np.reshape(values, (len(values), -1)).astype(np.float32, copy=False)
