"""When a run ends is a function of its validations, killed or not."""

import json
import math

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.train import early_stopping


def ends_at(losses, *, killed_every=0, **fields):
  """The number of losses after which a run ends; None: it does not."""
  config = config_lib.EarlyStopping(**fields)
  stopping = early_stopping.EarlyStopping(config, {})
  for number, loss in enumerate(losses, 1):
    if killed_every and number % killed_every == 0:
      manifest = json.loads(json.dumps(stopping.saved()))
      stopping = early_stopping.EarlyStopping(config, manifest)
    stopping.observe(loss)
    if stopping.is_over:
      assert f'none of the last {fields["patience"]} valid' in stopping.reason
      return number
  assert not stopping.reason
  return None


@pytest.mark.parametrize(
  ('losses', 'fields', 'expected'),
  [
    ([5, 4, 4.5, 4.2], {'patience': 2}, 4),
    ([5, 4, 4.5, 3.9, 4, 3.9, 4.1], {'patience': 3}, 7),
    ([5, 4, 3, 2, 1], {'patience': 1}, None),
    ([5, 5, 5, 5], {'patience': 0}, None),
    # Less than the margin each, but together more.
    ([5, 4.7, 4.4, 4.2], {'patience': 2, 'min_improvement': 0.5}, None),
    ([5, 4.7, 4.6], {'patience': 2, 'min_improvement': 0.5}, 3),
    ([5, math.nan, math.inf], {'patience': 2}, 3),
    ([math.nan, 7, math.nan], {'patience': 2}, None),
    ([math.nan, math.nan], {'patience': 2}, 2),
  ],
)
def test_it_ends_after_validations_without_an_improvement(
  losses, fields, expected
):
  assert ends_at(losses, **fields) == expected


def test_kills_do_not_change_the_end():
  """Wherever checkpoints lie, from the floats of a JSON file."""
  ends = []
  for seed in range(200):
    rng = np.random.default_rng(seed)
    losses = (rng.normal(size=20) - 0.1 * np.arange(20)).tolist()
    fields = {'patience': int(rng.integers(1, 5)), 'min_improvement': 0.1}
    whole = ends_at(losses, **fields)
    assert ends_at(losses, killed_every=1, **fields) == whole
    assert ends_at(losses, killed_every=3, **fields) == whole
    ends.append(whole)
  assert len(set(ends)) > 10


def test_a_longer_patience_goes_on_from_the_same_count():
  short = config_lib.EarlyStopping(patience=2)
  stopping = early_stopping.EarlyStopping(short, {})
  for loss in (5.0, 6.0, 7.0):
    stopping.observe(loss)
  assert stopping.is_over
  longer = config_lib.EarlyStopping(patience=3)
  again = early_stopping.EarlyStopping(longer, stopping.saved())
  assert not again.is_over
  again.observe(5.5)
  assert again.is_over
  off = early_stopping.EarlyStopping(
    config_lib.EarlyStopping(), stopping.saved()
  )
  assert not off.is_over and off.saved() == {}


@pytest.mark.parametrize('saved', [7, {}, {'best': '1', 'waited': 0}])
def test_a_manifest_without_a_count_is_refused(saved):
  with pytest.raises(config_lib.ConfigError, match='which is no count of'):
    early_stopping.EarlyStopping(
      config_lib.EarlyStopping(), {'early_stopping': saved}
    )
