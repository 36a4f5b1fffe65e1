"""Recall is what counting gives, and chance is what random vectors reach."""

import numpy as np
import pytest

from gemini_jax.evaluate import retrieval


def plain_recall(one_ND, other_MD, positives_NM, k):
  """By sorting, query by query."""
  found = []
  for one, right_M in zip(one_ND, positives_NM, strict=True):
    if right_M.any():
      cosines_M = other_MD @ one / np.linalg.norm(other_MD, axis=1)
      found.append(right_M[np.argsort(-cosines_M)[:k]].any())
  return np.mean(found)


@pytest.mark.parametrize('scores', [2**24, 50])
def test_recall_is_counted(monkeypatch, scores):
  """With several positives, or none; whatever is held at one time."""
  monkeypatch.setattr(retrieval, '_MAX_SCORES', scores)
  rng = np.random.default_rng(0)
  one_ND, other_MD = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
  positives_NM = rng.random((30, 20)) < 0.08
  assert positives_NM.sum(axis=1).max() > 1 > positives_NM.sum(axis=1).min()
  found = retrieval.recall(one_ND, other_MD, positives_NM, (1, 3, 20))
  expected = {
    k: plain_recall(one_ND, other_MD, positives_NM, k) for k in (1, 3, 20)
  }
  assert 0 < expected[1] < expected[3] < expected[20] == 1
  np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-9)


def test_identity_is_found_and_random_vectors_reach_chance():
  rng = np.random.default_rng(0)
  one_ND, other_ND = rng.normal(size=(2, 2000, 8))
  own_NN = np.eye(2000, dtype=bool)
  assert retrieval.recall(one_ND, one_ND * 3, own_NN, (1,)) == {1: 1.0}
  found = retrieval.recall(one_ND, other_ND, own_NN, (10, 200))
  by_chance = retrieval.chance(own_NN, (10, 200))
  np.testing.assert_allclose([by_chance[10], by_chance[200]], [0.005, 0.1])
  np.testing.assert_allclose(found[200], 0.1, atol=0.03)
  np.testing.assert_allclose(found[10], 0.005, atol=0.006)


def test_chance_with_several_positives_by_drawing():
  rng = np.random.default_rng(0)
  positives_NM = np.zeros((2, 12), bool)
  positives_NM[0, :3] = positives_NM[1, :1] = True
  orders = np.array([rng.permutation(12) for _ in range(20000)])[:, :4]
  drawn = [positives_NM[i][orders].any(axis=1).mean() for i in range(2)]
  found = retrieval.chance(positives_NM, (4, 12))
  np.testing.assert_allclose(found[4], np.mean(drawn), atol=0.01)
  assert found[12] == 1


def test_vectors_that_are_all_the_same_find_nothing_beyond_chance():
  positives_NM = np.random.default_rng(0).random((7, 9)) < 0.3
  ks = (1, 2, 9)
  found = retrieval.recall(np.ones((7, 4)), np.ones((9, 4)), positives_NM, ks)
  by_chance = retrieval.chance(positives_NM, ks)
  np.testing.assert_allclose([*found.values()], [*by_chance.values()])


def test_what_is_as_near_shares_its_place():
  """One above, then a positive and a negative side by side."""
  other_MD = np.array([[1, 0], [0.6, 0.8], [0.6, -0.8], [0, 1]])
  positives_NM = np.array([[False, True, False, False]])
  found = retrieval.recall(
    np.array([[1.0, 0]]), other_MD, positives_NM, (1, 2, 3)
  )
  assert found == {1: 0, 2: 0.5, 3: 1}


def test_report_goes_both_ways():
  """Two captions a picture: each finds it, and it finds one of them."""
  rng = np.random.default_rng(0)
  pictures_ND = rng.normal(size=(6, 16))
  captions_MD = np.concatenate([pictures_ND, rng.normal(size=(6, 16))])
  positives_NM = np.tile(np.eye(6, dtype=bool), 2)
  found = retrieval.report(
    pictures_ND,
    captions_MD,
    positives_NM,
    names=('picture', 'caption'),
    ks=(1,),
  )
  assert found['picture_to_caption_recall_at_1'] == 1
  assert 0.5 <= found['caption_to_picture_recall_at_1'] < 1
  np.testing.assert_allclose(
    found['picture_to_caption_recall_at_1_chance'], 1 / 6
  )
  np.testing.assert_allclose(
    found['caption_to_picture_recall_at_1_chance'], 1 / 6
  )
  assert len(found) == 4


def test_nobody_has_a_positive():
  nothing_NM = np.zeros((3, 3), bool)
  found = retrieval.report(np.eye(3), np.eye(3), nothing_NM)
  assert np.isnan([*found.values()]).all()
