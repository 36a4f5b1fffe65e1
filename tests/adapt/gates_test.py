"""Gates close by importance or by their own gradient, equally many in a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.adapt import gates as gates_lib
from gemini_jax.commands import shrink
from gemini_jax.train import state as state_lib

GATES = {'heads': 0.5, 'channels': 0.25}


def make(method, num_steps=20):
  item = gates_lib.Gates(
    config_lib.Gates(method=method, **GATES),
    toy.model().config,
    num_steps,
    seed=0,
  )
  params = toy.model_params(toy.model())
  state = state_lib.TrainState(
    jnp.int32(0), params, (), {'gates': item.init(params)}
  )
  return item, state


@pytest.mark.parametrize('method', ['taylor', 'l0'])
def test_the_share_that_was_asked_for_is_closed_at_the_end(method):
  """By fixed gradients: the units on which these push most are kept."""
  item, state = make(method)
  grads = toy.model_params(toy.model(), seed=1, scale=2.0)
  update = jax.jit(item.after_update)
  for step in range(1, 21):
    state = update(state.replace(step=jnp.int32(step)), grads)
  factors = state.extra['gates']['factors']['decoder']['layers']
  heads = np.asarray(factors['attention']['output']['kernel']).squeeze()
  channels = np.asarray(factors['feedforward']['down']['kernel']).squeeze()
  # One of the two heads of each pair; 6 of 24 channels of each layer.
  assert (np.count_nonzero(heads.reshape(2, 2, 2), axis=-1) == 1).all()
  assert (np.count_nonzero(channels, axis=-1) <= 18).all()
  layers = state.params['decoder']['layers']
  pull = grads['decoder']['layers']['attention']['output']['kernel']
  pull = np.asarray(
    (pull * layers['attention']['output']['kernel']).sum((2, 3))
  )
  worth = -pull if method == 'l0' else np.abs(pull)
  best = worth.reshape(2, 2, 2).argmax(-1)
  kept = heads.reshape(2, 2, 2).argmax(-1)
  # Descent is sure where one gate should open and the other one close.
  opposite = worth.reshape(2, 2, 2).prod(-1) < 0
  decided = opposite if method == 'l0' else np.full((2, 2), True)
  assert decided.any()
  assert (kept == best)[decided].all()
  # What is evaluated is what a step reads.
  for read in (item.forward_params, item.evaluation_params):
    kernel = read(state, state.params)['decoder']['layers']['attention']
    kernel = np.asarray(kernel['output']['kernel'])
    assert not kernel[heads == 0].any()


def test_gradients_are_those_of_the_parameters_before_their_gates():
  item, state = make('l0')
  state = state.replace(step=jnp.int32(3))
  weights = toy.model_params(toy.model(), seed=2)
  total = lambda params: sum(
    jnp.vdot(a, b)
    for a, b in zip(
      jax.tree.leaves(item.forward_params(state, params)),
      jax.tree.leaves(weights),
      strict=True,
    )
  )
  expected = jax.grad(total)(state.params)
  toy.assert_near(item.gradients(state, weights), expected)


def test_a_run_that_removed_units_is_cut_to_a_plain_one(tmp_path):
  file = tiny.experiment(
    tmp_path,
    "gates.method='taylor'",
    'gates.heads=0.5',
    'gates.channels=0.3',
    'optimizer.ema_decay=0.5',
  )
  assert tiny.run(file, tmp_path / 'run') == 0
  results = lambda folder: tiny.metrics(folder)[-1]['validation/loss']
  closed = [
    line.get('train/gates_closed') for line in tiny.metrics(tmp_path / 'run')
  ]
  assert closed[-2] == pytest.approx((2 + 28) / (4 + 96))
  argv = [f'--source={tmp_path / "run"}', f'--target={tmp_path / "small"}']
  assert shrink.main(['shrink', *argv]) == 0
  small = config_lib.read(tmp_path / 'small' / 'config.json')
  assert (small.model.num_heads, small.model.mlp_width) == (1, 34)
  assert small.gates == config_lib.Gates()
  more = (
    f'train.init_from={tmp_path / "small"}',
    'gates.method=none',
    'gates.heads=0.0',
    'gates.channels=0.0',
    'model.num_heads=1',
    'model.head_dim=16',
    'model.mlp_dim=34',
    'train.num_steps=1',
    'optimizer.learning_rate=1e-9',
  )
  assert tiny.run(file, tmp_path / 'again', *more) == 0
  assert results(tmp_path / 'again') == pytest.approx(
    results(tmp_path / 'run'), rel=1e-4
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'gates': {'method': 'l0'}}, 'goes with shares above 0'),
    ({'gates': {'heads': 0.5}}, "gates.method='none' goes with"),
    (
      {'gates': {'method': 'l0', 'heads': 0.1}},
      'gates.heads=0.1 of 2 removes none',
    ),
    (
      {
        'gates': {'method': 'l0', 'kv_heads': 0.5},
        'model': {'num_kv_heads': 4},
      },
      'heads have keys of their own',
    ),
    (
      {'gates': {'method': 'l0', 'heads': 1.5}},
      'gates.heads=1.5 must be at least 0 and below 1',
    ),
  ],
)
def test_bad_shares_are_told(fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    tiny.config(**fields)
