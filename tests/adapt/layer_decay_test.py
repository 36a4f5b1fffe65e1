"""The update of a layer is a power of the decay times what it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import toy
from gemini_jax.adapt import enabled
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

MODEL = {
  'architecture': 'encoder_decoder',
  'num_layers': 3,
  'num_encoder_layers': 2,
  'tie_embeddings': False,
}


def updates(**optimizer):
  """Those of a step, by path; what is frozen has none."""
  config = tiny.config(
    model=MODEL,
    data={'objective': 'seq2seq'},
    optimizer={'schedule': 'constant', 'learning_rate': 0.5, **optimizer},
  )
  params = toy.model_params(gemini.Gemini(config.model))
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  state = state_lib.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=rule.init(params),
    extra=enabled.extensions(config).init(params),
  )
  assert state.extra == {}
  update = jax.jit(
    functools.partial(step_lib.compute_updates, config=config, optimizer=rule)
  )
  grads = parameter_groups.trained(config, toy.random_tree(params, 1))
  changes = update(state, grads, jnp.float32(1.0))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(changes.updates)
  }


@pytest.mark.parametrize(
  ('name', 'frozen'),
  [
    # The layers between the output and the encoder need not be trained.
    ('lion', '^decoder/layers/|^encoder_norm/'),
    ('muon', ''),
  ],
)
def test_updates_fall_from_the_output_down(name, frozen):
  """Exactly, since powers of 1/2 do not round; weight decay is in them."""
  plain = updates(name=name, frozen=frozen)
  decayed = updates(name=name, frozen=frozen, layer_decay=0.5)
  assert plain.keys() == decayed.keys() and len(plain) > 10
  scales = {
    'token': 1 / 64,
    'encoder': np.array([1 / 32, 1 / 16]),
    'encoder_norm': 1 / 8,
    'decoder': np.array([1 / 8, 1 / 4, 1 / 2]),
    'decoder_norm': 1,
    'head': 1,
  }
  for path, leaf in decayed.items():
    expected = (np.array(plain[path]).T * scales[path.split('/')[0]]).T
    assert np.abs(leaf).max() > 0
    np.testing.assert_array_equal(leaf, expected, err_msg=path)
