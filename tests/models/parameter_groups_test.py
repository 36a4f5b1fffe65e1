"""Patterns find what they should, and say what they found."""

import jax
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups


def network(seed=0):
  """Parameters with the paths of a model's, drawn at random."""
  shapes = {
    'token': {'embedding': (8, 6)},
    'decoder': {
      'layers': {
        'feedforward': {
          'up': {'kernel': (1, 6, 16), 'bias': (1, 16)},
          'down': {'kernel': (1, 16, 6)},
        },
        'attention': {'output': {'kernel': (1, 2, 3, 6)}},
        'attention_norm': {'scale': (1, 6)},
      }
    },
  }
  return jax.tree.map(
    lambda shape: toy.normal(shape, (seed, sum(shape)), shape[-2] ** -0.5),
    shapes,
    is_leaf=lambda shape: isinstance(shape, tuple),
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'frozen': '^tokens/'},
      "optimizer.frozen='^tokens/' matches the path of no parameter; the "
      'nearest are token/embedding, ',
    ),
    (
      {'no_decay': 'atention_norm'},
      "optimizer.no_decay='atention_norm' matches the path of no parameter; "
      'the nearest are decoder/layers/attention_norm/scale, ',
    ),
    (
      {'frozen': '.'},
      "optimizer.frozen='.' matches every parameter: none would be trained",
    ),
  ],
)
def test_patterns_that_match_nothing_or_all_are_refused(fields, message):
  with pytest.raises(config_lib.ConfigError) as error:
    parameter_groups.check_patterns(config_lib.Optimizer(**fields), network())
  assert str(error.value).startswith(message)


def test_what_patterns_match_is_logged(caplog):
  caplog.set_level('INFO')
  parameter_groups.check_patterns(
    config_lib.Optimizer(frozen='^token/|kernel$', no_decay=''), network()
  )
  parameter_groups.check_patterns(config_lib.Optimizer(), network())
  first, second = caplog.messages
  # 8 * 6, 6 * 16, 16 * 6 and 2 * 3 * 6.
  assert first == (
    "optimizer.frozen='^token/|kernel$': 4 of 6 tensors, 276 parameters"
  )
  # The default, of which parts match nothing: 8 * 6, 16 and 6.
  assert second.endswith(': 3 of 6 tensors, 70 parameters')


def test_the_parameter_that_a_leaf_mirrors_is_the_one_with_the_longest_path():
  """Not another, whose path is the end of it."""
  params = {'norm': {'scale': 0}, 'media': {'norm': {'scale': 0}}}
  known = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  state = (params, {'mu': params, 'count': 0})
  found = [
    parameter_groups.param_path(path, known)
    for path, _ in jax.tree_util.tree_leaves_with_path(state)
  ]
  media, norm = known
  assert found == [media, norm, None, media, norm]
