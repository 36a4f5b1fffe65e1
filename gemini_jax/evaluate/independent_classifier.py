"""Pictures and sounds that a model made, judged by a classifier of its own.

The classifier learns from real examples alone and shares neither code nor
parameters with the model. N and M examples, F values of each, C classes,
H width of the classifier's last hidden layer.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np

from gemini_jax import config as config_lib

# Of the classifier: width of its hidden layers, examples of a step, steps at
# most; small sets are left earlier, when their loss no longer falls. Of the
# 60,000 pictures of Fashion-MNIST: 33 s of one core, 88.9 % of the test split.
_HIDDEN, _ROWS, _STEPS = (256, 128), 256, 3000


@dataclasses.dataclass(frozen=True)
class Judge:
  """A classifier of flat values.

  Attributes:
    network: sklearn's MLPClassifier.
    mean_F: of what it was fitted to.
    scale: one for all values, so that those which hardly vary do not count
      more than the others.
  """

  network: Any
  mean_F: np.ndarray
  scale: float

  @property
  def classes(self) -> np.ndarray:
    """The labels that it knows, sorted, [C]."""
    return self.network.classes_

  def predict(self, values_NF: np.ndarray) -> np.ndarray:
    """The likeliest label of each, [N]."""
    return self.network.predict(self._standard(values_NF))

  def features(self, values_NF: np.ndarray) -> np.ndarray:
    """What its last hidden layer says, float32[N, H]."""
    x_NH = self._standard(values_NF)
    *hidden, _ = zip(self.network.coefs_, self.network.intercepts_, strict=True)
    for weights, bias_H in hidden:
      x_NH = np.maximum(x_NH @ weights + bias_H[None], 0)
    return x_NH

  def accuracy(self, values_NF: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of the examples that it gives their labels."""
    return float(np.mean(self.predict(values_NF) == np.asarray(labels_N)))

  def _standard(self, values_NF: np.ndarray) -> np.ndarray:
    return (_flat(values_NF) - self.mean_F[None]) / self.scale


def check():
  """ConfigError, with the remedy, unless a judge can be fitted."""
  _networks()


def _networks() -> Any:
  return config_lib.optional(
    'sklearn.neural_network',
    'the judge of pictures and sounds needs scikit-learn',
    'judge',
  )


def fit(values_NF: np.ndarray, labels_N: np.ndarray, *, seed: int = 0) -> Judge:
  """A classifier of pictures or spectrograms of one shape.

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
  rows = min(_ROWS, len(x_NF))
  network = networks.MLPClassifier(
    _HIDDEN,
    batch_size=rows,
    max_iter=-(-_STEPS * rows // len(x_NF)),
    random_state=seed,
  )
  with warnings.catch_warnings():
    # That the steps are spent is how it ends.
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    network.fit(x_NF / scale, labels_N)
  return Judge(network, mean_F, scale)


def report(
  judge: Judge,
  generated_NF: np.ndarray,
  wished_N: np.ndarray,
  real_MF: np.ndarray,
  real_labels_M: np.ndarray,
) -> dict[str, float]:
  """How far made examples are what was wished, and how far like real ones.

  Accuracy alone can be bought with sameness: read it beside the spread. The
  real examples, of the wished classes only, should be unknown to judge and
  model. A Fréchet distance falls with the number of examples and depends on
  how often each class is there: compare it to frechet_of_real, of real ones
  against as many real ones as were made, or half of them if they are fewer.

  Returns:
    accuracy: share that the judge gives the wished label; real_accuracy.
    frechet: in the judge's features; frechet_of_real.
    spread: see `spread`; real_spread.

  Args:
    judge: fitted to other real examples.
    generated_NF: or [N, ...], in the units and the shape of the real ones.
    wished_N: labels.
    real_MF: real examples.
    real_labels_M: of them.
  """
  wished_N, real_labels_M = np.asarray(wished_N), np.asarray(real_labels_M)
  generated_NF, real_MF = _flat(generated_NF), _flat(real_MF)
  same_M = np.isin(real_labels_M, wished_N)
  real_MF, real_labels_M = real_MF[same_M], real_labels_M[same_M]
  if not len(real_MF):
    raise ValueError('no real example has a label that was wished')
  judged_N = judge.predict(generated_NF)
  features_MH = judge.features(real_MF)
  mixed_MH = np.random.default_rng(0).permutation(features_MH)
  part = min(len(wished_N), len(mixed_MH) // 2)
  return {
    'accuracy': float(np.mean(judged_N == wished_N)),
    'real_accuracy': judge.accuracy(real_MF, real_labels_M),
    'frechet': frechet(judge.features(generated_NF), features_MH),
    'frechet_of_real': frechet(mixed_MH[:part], mixed_MH[part:]),
    'spread': spread(generated_NF, wished_N),
    'real_spread': spread(real_MF, real_labels_M),
  }


def frechet(features_NH: np.ndarray, others_MH: np.ndarray) -> float:
  """Fréchet distance of two Gaussians fitted to features, squared.

  |m - n|^2 + tr(A + B - 2 (A B)^(1/2)), as in Heusel et al. 2017; the trace of
  the root is the sum of the singular values of A^(1/2) B^(1/2), since those
  squared are the eigenvalues of A^(1/2) B A^(1/2). NaN for less than two
  examples.
  """
  if min(len(features_NH), len(others_MH)) < 2:
    return float('nan')
  means, roots, total = [], [], 0.0
  for one in (features_NH, others_MH):
    one = np.asarray(one, np.float64)
    means.append(one.mean(axis=0))
    covariance_HH = np.atleast_2d(np.cov(one, rowvar=False))
    total += np.trace(covariance_HH)
    values_H, vectors_HH = np.linalg.eigh(covariance_HH)
    roots.append(np.sqrt(np.maximum(values_H, 0))[:, None] * vectors_HH.T)
  common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
  apart = np.sum(np.square(means[0] - means[1]))
  return max(float(apart + total - 2 * common), 0.0)


def spread(values_NF: np.ndarray, labels_N: np.ndarray) -> float:
  """Mean over classes and values of the standard deviation within a class.

  In the units of the values; NaN unless a class has two examples.
  """
  values_NF, labels_N = _flat(values_NF), np.asarray(labels_N)
  found = []
  for label in np.unique(labels_N):
    own = values_NF[labels_N == label]
    if len(own) > 1:
      found.append(float(np.mean(own.std(axis=0, ddof=1, dtype=np.float64))))
  return float(np.mean(found)) if found else float('nan')


def _flat(values: np.ndarray) -> np.ndarray:
  return np.reshape(values, (len(values), -1)).astype(np.float32, copy=False)
