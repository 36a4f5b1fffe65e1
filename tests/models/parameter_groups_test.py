"""Patterns find what they should, and say what they found."""

import flax.struct
import jax
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups


def select(name, pattern, **options):
  return [parameter_groups.Selection(name, pattern, **options)]


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    (
      '^tokens/',
      "optimizer.frozen='^tokens/' matches the path of no parameter; the "
      'nearest are token/embedding, ',
    ),
    (
      'atention_norm',
      "optimizer.frozen='atention_norm' matches the path of no parameter; the "
      'nearest are decoder/layers/attention_norm/scale, ',
    ),
    (
      '^encoder/.*@matrix',
      "optimizer.frozen='^encoder/.*@matrix' matches the path of no parameter; "
      'the nearest are ',
    ),
    (
      '@(positions)',
      "optimizer.frozen='@(positions)' matches the path of no parameter; the "
      'nearest are ',
    ),
    (
      '@biases',
      "optimizer.frozen='@biases': 'biases' is no kind of parameter; kinds are "
      'expert, ',
    ),
    (
      '.',
      "optimizer.frozen='.' matches every parameter: none would be trained",
    ),
  ],
)
def test_patterns_that_match_nothing_or_all_are_refused(pattern, message):
  selections = select('optimizer.frozen', pattern, can_be_all=False)
  with pytest.raises(config_lib.ConfigError) as error:
    parameter_groups.check(selections, toy.network())
  assert str(error.value).startswith(message)


def test_distances_from_the_output():
  """Media are below the text; a head, or what learns by itself, is at 0."""
  leaf = lambda *shape: np.zeros(shape)
  layers = lambda size: {'layers': {'attention': {'bias': leaf(size, 3)}}}
  params = {
    'token': {'embedding': leaf(5, 4)},
    'decoder': layers(2),
    'latent': {'query': leaf(4)},
    'contrast': {'scale': leaf()},
    'perception': {
      'encoders_image': {
        'tower': {'stem': {'patch': {'bias': leaf(4)}}, 'layers': layers(3)},
        'projector': {'kernel': leaf(4, 4)},
      },
      'encoders_audio': {'stem': {'frames': {'bias': leaf(4)}}},
      'autoencoders_image': {'write': {'bias': leaf(3)}},
      'heads_image': {'mixture': {'bias': leaf(2)}},
      'number': {'slope': {'embedding': leaf(2, 4)}},
      'series': {'patch': {'bias': leaf(4)}},
    },
  }
  found = jax.tree_util.tree_leaves_with_path(
    parameter_groups.distances(params)
  )
  assert {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.array(d).tolist()
    for path, d in found
  } == {
    'token/embedding': 3,
    'decoder/layers/attention/bias': [2, 1],
    'latent/query': 2,
    'contrast/scale': 0,
    'perception/encoders_image/tower/stem/patch/bias': 6,
    'perception/encoders_image/tower/layers/layers/attention/bias': [5, 4, 3],
    'perception/encoders_image/projector/kernel': 3,
    'perception/encoders_audio/stem/frames/bias': 3,
    'perception/autoencoders_image/write/bias': 0,
    'perception/heads_image/mixture/bias': 0,
    'perception/number/slope/embedding': 3,
    'perception/series/patch/bias': 3,
  }


def test_what_patterns_match_is_logged(caplog):
  caplog.set_level('INFO')
  parameter_groups.check(
    [
      *select('optimizer.frozen', '^token/|kernel$'),
      *select('optimizer.no_decay', ''),
      *select('optimizer.no_decay', config_lib.Optimizer().no_decay),
      *select('all', '.'),
    ],
    toy.network(),
  )
  first, second, third = caplog.messages
  # 8 * 6, 6 * 16, 16 * 6 and 2 * 3 * 6.
  assert first == (
    "optimizer.frozen='^token/|kernel$': 4 of 6 tensors, 276 parameters"
  )
  # The default, of which parts match nothing: 8 * 6, 16 and 6.
  assert second.endswith(': 3 of 6 tensors, 70 parameters')
  assert third == "all='.': 6 of 6 tensors, 298 parameters"


def test_nothing_is_logged_where_it_is_checked_alone(caplog):
  caplog.set_level('INFO')
  parameter_groups.check(select('a', 'kernel'), toy.network(), log=False)
  assert not caplog.messages


def paths(pattern, params):
  """The paths that a pattern matches."""
  flat = jax.tree_util.tree_leaves_with_path(
    parameter_groups.matching(pattern, params)
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, is_matched in flat
    if is_matched
  }


def test_patterns_select_by_path_and_by_kind():
  layer = 'decoder/layers'
  up, down = f'{layer}/feedforward/up', f'{layer}/feedforward/down'
  output = f'{layer}/attention/output/kernel'
  for pattern, expected in {
    '': set(),
    '^token/': {'token/embedding'},
    'feedforward/up/': {f'{up}/kernel', f'{up}/bias'},
    '@(bias|norm)$': {f'{up}/bias', f'{layer}/attention_norm/scale'},
    'attention.*@matrix$': {output},
    # Also the plain path ends there.
    'bias$|@embedding': {f'{up}/bias', 'token/embedding'},
    '@matrix': {f'{up}/kernel', f'{down}/kernel', output},
    # No kind is seen without the sign.
    'matrix': set(),
  }.items():
    assert paths(pattern, toy.network()) == expected, pattern


@flax.struct.dataclass
class LowRank:
  """A leaf that is a tree: a matrix and what is added to it."""

  base: jax.Array
  down: jax.Array


def test_a_leaf_of_several_arrays_matches_as_a_whole_or_by_parts():
  params = toy.network()
  kernel = params['decoder']['layers']['feedforward']['up']
  kernel['kernel'] = LowRank(kernel['kernel'], toy.normal((1, 6, 2)))
  path = 'decoder/layers/feedforward/up/kernel'
  whole = {f'{path}/base', f'{path}/down'}
  assert paths('up/kernel$', params) == whole
  assert paths('up/.*@matrix$', params) == whole
  assert paths('kernel/base$', params) == {f'{path}/base'}


MODELS = {
  'plain': {
    'architecture': 'encoder_decoder',
    'attention_bias': True,
    'mlp_bias': True,
    'qk_norm': True,
    'position': 'learned',
    'contrast_dim': 4,
  },
  'latent': {
    'architecture': 'encoder_decoder',
    'latent': config_lib.Latent(
      dim=3, memory=2, prior='mixture', num_components=2
    ),
  },
  'experts': {'num_experts': 4, 'shared_expert_dim': 4},
  'media': {
    'image': config_lib.Image(
      height=4, width=4, patch=2, autoencoder=config_lib.Autoencoder(dim=2)
    )
  },
}


def flat_params(name):
  model = toy.model(**MODELS[name])
  shapes = jax.eval_shape(lambda: toy.model_params(model))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }


@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_is_of_a_kind(name):
  kinds = {path: parameter_groups.kind(path) for path in flat_params(name)}
  assert 'other' not in kinds.values(), kinds
  for path, kind in kinds.items():
    last = path.split('/')[-1]
    assert (last == 'bias') == (kind == 'bias')
    assert (last == 'kernel') == (kind in ('matrix', 'expert')), path
    assert ('/expert_' in path) == (kind == 'expert')
  # By hand, what is not told by the last name alone.
  for path, kind in {
    'position/embedding': 'positions',
    'token/embedding': 'embedding',
    'latent/query': 'query',
    'latent/multiplier': 'latent',
    'latent/prior_means': 'latent',
    'contrast/scale': 'temperature',
  }.items():
    assert kinds.get(path, kind) == kind


@pytest.mark.parametrize('name', MODELS)
def test_what_does_not_decay_by_default_is_no_matrix(name):
  params = flat_params(name)
  no_decay = parameter_groups.matching(config_lib.Optimizer().no_decay, params)
  for path, skips in no_decay.items():
    kind = parameter_groups.kind(path)
    weights = ('matrix', 'expert', 'convolution')
    assert skips == (kind not in weights), (path, kind)


def test_the_dims_of_matrices():
  dims = parameter_groups.matrix_dims
  matrix = parameter_groups.MatrixDims
  layer = 'decoder/layers'
  assert dims('head/kernel', 2) == matrix((), (0,), (1,))
  assert dims(f'{layer}/attention/query/kernel', 4) == matrix(
    (0,), (1,), (2, 3)
  )
  assert dims(f'{layer}/attention/output/kernel', 4) == matrix(
    (0,), (1, 2), (3,)
  )
  assert dims(f'{layer}/feedforward/expert_up/kernel', 4) == matrix(
    (0, 1), (2,), (3,)
  )
  assert dims('latent/pool/output/kernel', 3) == matrix((), (0, 1), (2,))
  assert dims('latent/posterior/kernel', 3) == matrix((), (0,), (1, 2))


def test_the_parameter_that_a_leaf_mirrors_is_the_one_with_the_longest_path():
  """Not another, whose path is the end of it."""
  array = jax.ShapeDtypeStruct((3,), 'float32')
  params = {'norm': {'scale': array}, 'media': {'norm': {'scale': array}}}
  row = {'norm': {'scale': jax.ShapeDtypeStruct((1,), 'float32')}}
  state = (params, {'mu': params, 'count': array, 'row': row})
  values = {'norm': {'scale': 'norm'}, 'media': {'norm': {'scale': 'media'}}}
  for same_shape in (False, True):
    of_leaves = parameter_groups.mirrored(
      state, params, values, 'none', same_shape=same_shape
    )
    last = 'none' if same_shape else 'norm'
    assert jax.tree.leaves(of_leaves) == [
      *('media', 'norm', 'none', 'media', 'norm', last)
    ]
