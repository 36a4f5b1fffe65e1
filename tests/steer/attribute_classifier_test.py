"""What labels teach, and what they cannot.

N texts, F features, C values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemini_jax import config
from gemini_jax.steer import attribute_classifier

N, F = 400, 8
STANDARD = np.zeros(F), np.ones(F)


def separable(num_values, std=0.3, seed=0, count=N):
  """Features around points that tell the values, and the labels."""
  rng = np.random.default_rng(seed)
  which_N = rng.integers(0, num_values, count)
  centres_CF = rng.normal(0, 1, (num_values, F)) * 1.2
  mean_NF = centres_CF[which_N] + rng.normal(0, 0.3, (count, F))
  labels = [{'kind': f'v{which:02}'} for which in which_N]
  return features(mean_NF, std), labels, centres_CF


def probabilities(model, x_NF):
  return np.exp(jax.vmap(model.log_probs)(jnp.asarray(x_NF, jnp.float32)))


def features(mean_NF, std):
  mean_NSF = mean_NF[:, None]
  ones = np.ones(len(mean_NF), int)
  return attribute_classifier.Features(
    mean_NSF, np.full_like(mean_NSF, std), ones
  )


@pytest.mark.parametrize('num_values', [2, 24, 50])
def test_values_that_features_tell_are_learned(num_values):
  found, labels, centres_CF = separable(num_values)
  model = attribute_classifier.fit(found, labels, ['kind'], STANDARD)['kind']
  assert model.values == tuple(f'v{i:02}' for i in range(num_values))
  assert model.accuracy > 0.85
  probs_CC = probabilities(model, centres_CF)
  np.testing.assert_allclose(probs_CC.sum(axis=1), 1, rtol=1e-5)
  right = probs_CC.argmax(axis=1) == np.arange(num_values)
  assert right.mean() > 0.9


def test_probabilities_are_those_of_draws_not_of_means():
  """Posteriors of variance v around means of +-m mix: p is not 0 or 1."""
  rng = np.random.default_rng(1)
  which_N = rng.integers(0, 2, 800)
  mean_NF = np.zeros((800, F))
  mean_NF[:, 0] = 0.5 * (2 * which_N - 1)
  labels = [{'side': 'ab'[which]} for which in which_N]
  model = attribute_classifier.fit(
    features(mean_NF, 1.0), labels, ['side'], STANDARD
  )
  points = np.zeros((5, F))
  points[:, 0] = [-2, -1, 0, 1, 2]
  probs = probabilities(model['side'], points)[:, 1]
  # Two normals of variance 1 at -0.5 and 0.5: log-odds are x.
  np.testing.assert_allclose(probs, 1 / (1 + np.exp(-points[:, 0])), atol=0.08)


def test_what_was_chosen_by_its_value_is_corrected():
  """Log-odds are those among all texts, of which a twentieth is of b."""
  rng = np.random.default_rng(1)
  which_N = np.arange(800) % 2
  mean_NF = np.zeros((800, F))
  mean_NF[:, 0] = rng.normal(2 * which_N - 1, 1)
  labels = [{'side': 'ab'[which]} for which in which_N]
  shares = {'side': {'a': 0.95, 'b': 0.05}}
  found = features(mean_NF, 0.0)
  model = attribute_classifier.fit(
    found, labels, ['side'], STANDARD, shares=shares
  )
  points = np.zeros((5, F))
  points[:, 0] = [-1, 0, 1, 2, 3]
  probs = probabilities(model['side'], points)[:, 1]
  # Two normals of variance 1 at -1 and 1: log-odds are 2 x and the prior's.
  expected = 1 / (1 + 19 * np.exp(-2 * points[:, 0]))
  np.testing.assert_allclose(probs, expected, atol=0.1)
  plain = attribute_classifier.fit(found, labels, ['side'], STANDARD, seed=-1)
  assert probabilities(plain['side'], points)[2, 1] > 0.75


def test_attributes_are_learned_together_and_a_missing_label_is_no_value():
  """Each equals what it is alone; texts without a label have no say."""
  found, labels, _ = separable(3, count=300)
  rng = np.random.default_rng(2)
  mean_NF = np.array(found.mean_NSF[:, 0])
  # Of the texts without this label, the features would teach the opposite.
  sign = np.where(rng.random(300) < 0.5, 1, -1)
  known = rng.random(300) < 0.7
  mean_NF[:, 0] = 2 * sign * np.where(known, 1, -1)
  for i in np.flatnonzero(known):
    labels[i] = labels[i] | {'sign': 'up' if sign[i] > 0 else 'down'}
  found = features(mean_NF, 0.3)
  both = attribute_classifier.fit(found, labels, ['sign', 'kind'], STANDARD)
  assert both['sign'].values == ('down', 'up')
  assert both['sign'].accuracy > 0.95
  alone = attribute_classifier.fit(found, labels, ['kind'], STANDARD)
  np.testing.assert_allclose(
    probabilities(both['kind'], mean_NF),
    probabilities(alone['kind'], mean_NF),
    atol=1e-2,
  )


def test_features_that_tell_nothing_leave_the_frequencies(caplog):
  rng = np.random.default_rng(3)
  labels = [{'kind': 'ab'[rng.random() < 0.3]} for _ in range(N)]
  mean_NF = rng.normal(size=(N, F))
  fitted = attribute_classifier.fit(
    features(mean_NF, 0.5), labels, ['kind'], STANDARD
  )
  assert 'attribute kind: the texts do not tell its values apart' in caplog.text
  share = np.mean([label['kind'] == 'b' for label in labels])
  probs = probabilities(fitted['kind'], mean_NF)
  np.testing.assert_allclose(probs[:, 1], share, rtol=1e-5)
  known = {'kind': {'a': 0.9, 'b': 0.1}}
  fitted = attribute_classifier.fit(
    features(mean_NF, 0.5), labels, ['kind'], STANDARD, shares=known
  )
  probs = probabilities(fitted['kind'], mean_NF)
  np.testing.assert_allclose(probs[:, 1], 0.1, rtol=1e-5)


def test_places_of_a_text_are_drawn_where_they_are():
  mean_NSF = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
  found = attribute_classifier.Features(
    jnp.asarray(mean_NSF), jnp.zeros((2, 3, 2)), jnp.array([3, 1])
  )
  keys = jax.random.split(jax.random.key(0), 60)
  drawn = np.asarray(jax.vmap(found.draw)(keys))
  assert set(drawn[:, 0, 0]) == {0, 2, 4}
  assert set(drawn[:, 1, 0]) == {6}
  mean_F, std_F = found.moments()
  np.testing.assert_allclose(mean_F, [3, 4])
  np.testing.assert_allclose(std_F, np.std([0, 2, 4, 6]), rtol=1e-4)


def test_wishes_are_read():
  assert attribute_classifier.parse(' tone = positive,topic=a=b') == {
    'tone': 'positive',
    'topic': 'a=b',
  }


LABELS = [
  {'tone': 'positive', 'topic': 'sea', 'one': '1'},
  {'tone': 'negative', 'topic': 'sky', 'one': '1'},
]


@pytest.mark.parametrize(
  ('steer', 'message'),
  [
    ('tone', 'must be ATTRIBUTE=VALUE, several with commas'),
    ('tone=positive,', 'must be ATTRIBUTE=VALUE, several with commas'),
    ('=positive', 'must be ATTRIBUTE=VALUE, several with commas'),
    ('tone=positive,tone=negative', "names 'tone' twice"),
    ('mood=good', ": no text has a label 'mood'; accepted: one, tone, topic"),
    ('ton=good', ": no text has a label 'ton'; did you mean tone or one?"),
    ('tone=positiv', ': no text has tone=positiv; did you mean positive'),
    ('topic=sun', ': no text has topic=sun; accepted: sea, sky'),
    ('one=1', ": every text with a label 'one' has one=1; a second value is"),
  ],
)
def test_a_wish_that_cannot_be_learned_is_refused(steer, message):
  with pytest.raises(config.ConfigError) as error:
    attribute_classifier.check(steer, attribute_classifier.parse(steer), LABELS)
  assert str(error.value).startswith(f'generate.steer={steer!r}')
  assert message in str(error.value)
