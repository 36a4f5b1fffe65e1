"""A classifier tells classes apart, and its figures follow the definitions."""

import sys

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.evaluate import (
  independent_classifier as independent_classifier_lib,
)

CLASSES, SHAPE = 4, (5, 3)
SIZE = 15


def examples(number, seed, noise=1.0):
  """Noisy patterns, one for each class, far from standardised."""
  rng = np.random.default_rng(seed)
  patterns = np.random.default_rng(0).normal(size=(CLASSES, *SHAPE)) * 2
  labels_N = rng.integers(CLASSES, size=number)
  noise_NHW = noise * rng.normal(size=(number, *SHAPE))
  return 90 + 30 * (patterns[labels_N] + noise_NHW), labels_N


@pytest.fixture(scope='module')
def classifier():
  return independent_classifier_lib.fit(*examples(400, 1))


def test_judge_knows_classes_and_no_shuffled_ones(classifier):
  values, labels_N = examples(400, 2)
  assert classifier.accuracy(values, labels_N) > 0.95
  train, train_labels_N = examples(400, 1)
  shuffled_N = np.random.default_rng(3).permutation(train_labels_N)
  control = independent_classifier_lib.fit(train, shuffled_N)
  assert abs(control.accuracy(values, labels_N) - 1 / CLASSES) < 0.15


def test_the_seed_decides(classifier):
  values, _ = examples(50, 2)
  again, other = (
    independent_classifier_lib.fit(*examples(400, 1), seed=seed)
    for seed in (0, 1)
  )
  features_NH = classifier.features(values)
  np.testing.assert_array_equal(features_NH, again.features(values))
  assert np.abs(features_NH - other.features(values)).max() > 0.1


def test_features_are_what_the_last_layer_reads(classifier):
  values, _ = examples(50, 2)
  features_NH = classifier.features(values)
  assert features_NH.dtype == np.float32
  scores_NC = features_NH @ classifier.network.coefs_[-1]
  scores_NC += classifier.network.intercepts_[-1]
  np.testing.assert_array_equal(
    classifier.classes[scores_NC.argmax(axis=1)], classifier.predict(values)
  )


def test_pixels_that_hardly_vary_do_not_decide(classifier):
  """Noise of a value that is constant in the training set changes nothing."""
  values, labels_N = examples(400, 1)
  values[:, 0, 0] = 7 + 0.01 * np.random.default_rng(1).normal(size=400)
  quiet = independent_classifier_lib.fit(values, labels_N)
  fresh, fresh_labels_N = examples(400, 2)
  fresh[:, 0, 0] = 7 + 0.3 * np.random.default_rng(2).normal(size=400)
  assert quiet.accuracy(fresh, fresh_labels_N) > 0.95


def test_words_as_labels_and_bytes_as_values():
  rng = np.random.default_rng(0)
  labels_N = rng.choice(['bag', 'coat'], 100)
  values = rng.integers(100, size=(100, 4)).astype(np.uint8)
  values[labels_N == 'coat'] += 100
  classifier = independent_classifier_lib.fit(values, labels_N)
  assert classifier.accuracy(values, labels_N) == 1


def gaussian(mean_F, covariance_FF, number, seed):
  """Examples whose mean and covariance are exactly these."""
  x_NF = np.random.default_rng(seed).normal(size=(number, len(mean_F)))
  x_NF -= x_NF.mean(axis=0)
  root_FF = np.linalg.cholesky(np.cov(x_NF, rowvar=False))
  x_NF = x_NF @ np.linalg.inv(root_FF).T
  return x_NF @ np.linalg.cholesky(covariance_FF).T + mean_F


def test_frechet_is_the_closed_form():
  """Of covariances that share eigenvectors, and of two in one plane."""
  rng = np.random.default_rng(0)
  vectors_FF, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  one_F, other_F = rng.uniform(0.1, 3, size=(2, 6))
  mean_F = rng.normal(size=6)
  a_NF = gaussian(np.zeros(6), vectors_FF * one_F @ vectors_FF.T, 50, 1)
  b_MF = gaussian(mean_F, vectors_FF * other_F @ vectors_FF.T, 70, 2)
  expected = np.sum(mean_F**2) + np.sum((one_F**0.5 - other_F**0.5) ** 2)
  np.testing.assert_allclose(
    independent_classifier_lib.frechet(a_NF, b_MF), expected, rtol=1e-9
  )
  # tr((AB)^(1/2)) of 2 x 2: sqrt(tr(AB) + 2 sqrt(det(AB))).
  one_FF, other_FF = (
    np.array([[2, 0.5], [0.5, 1]]),
    np.array([[1, -0.7], [-0.7, 3]]),
  )
  product_FF = one_FF @ other_FF
  common = np.trace(product_FF) + 2 * np.linalg.det(product_FF) ** 0.5
  expected = 3 + 4 - 2 * common**0.5
  found = independent_classifier_lib.frechet(
    gaussian(np.ones(2), one_FF, 30, 3), gaussian(np.ones(2), other_FF, 40, 4)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_frechet_of_the_same_is_nothing():
  """Also where features depend on each other; and of one example it is NaN."""
  x_NF = np.random.default_rng(0).normal(size=(40, 3))
  x_NF = np.concatenate([x_NF, x_NF @ np.ones((3, 5))], axis=1)
  assert independent_classifier_lib.frechet(x_NF, x_NF[::-1]) < 1e-9
  assert np.isnan(independent_classifier_lib.frechet(x_NF, x_NF[:1]))


def test_spread_is_within_classes():
  """Not between them; classes of one example do not count."""
  values_NF = np.array([[0, 0], [2, 4], [100, 100], [100, 104], [7, 7.0]])
  labels_N = np.array([0, 0, 1, 1, 2])
  expected = np.mean([2**0.5, 8**0.5, 0, 8**0.5])
  np.testing.assert_allclose(
    independent_classifier_lib.spread(values_NF, labels_N), expected, rtol=1e-6
  )
  assert np.isnan(
    independent_classifier_lib.spread(values_NF[1:3], labels_N[1:3])
  )


def test_report_sees_what_is_wrong_and_what_is_all_the_same(classifier):
  real, labels_N = examples(1500, 2)
  fresh, targets_N = examples(1000, 3)
  good = independent_classifier_lib.report(
    classifier, fresh, targets_N, real, labels_N
  )
  assert good['accuracy'] > 0.95 < good['real_accuracy']
  assert good['frechet'] < 2 * good['frechet_of_real']
  assert abs(good['spread'] / good['real_spread'] - 1) < 0.1
  # Every class taken for the next.
  wrong = independent_classifier_lib.report(
    classifier, fresh, (targets_N + 1) % CLASSES, real, labels_N
  )
  assert wrong['accuracy'] < 0.05
  same, _ = examples(1000, 3, noise=0.1)
  same = independent_classifier_lib.report(
    classifier, same, targets_N, real, labels_N
  )
  assert same['accuracy'] == 1
  assert same['spread'] < 0.2 * same['real_spread']
  assert same['frechet'] > 5 * same['frechet_of_real']


def test_report_compares_to_the_real_ones_of_the_wished_classes(classifier):
  real, labels_N = examples(300, 2)
  fresh, targets_N = examples(200, 3)
  only = targets_N == 2
  found = independent_classifier_lib.report(
    classifier, fresh[only], targets_N[only], real, labels_N
  )
  real = real[labels_N == 2]
  expected = independent_classifier_lib.frechet(
    classifier.features(fresh[only]), classifier.features(real)
  )
  np.testing.assert_allclose(found['frechet'], expected)
  np.testing.assert_allclose(
    found['real_spread'],
    independent_classifier_lib.spread(real, np.zeros(len(real))),
  )
  with pytest.raises(ValueError, match='no real example'):
    independent_classifier_lib.report(
      classifier, fresh, np.full(200, 9), real, np.full(len(real), 2)
    )


def test_without_the_library_the_remedy_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn.neural_network', None)
  with pytest.raises(config_lib.ConfigError, match=r'gemini_jax\[judge\]'):
    independent_classifier_lib.fit(*examples(10, 1))
