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


def make(method, num_steps=20, **shares):
  item = gates_lib.Gates(
    config_lib.Gates(method=method, **(shares or GATES)),
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


def test_each_unit_has_the_factors_of_all_that_it_is_part_of():
  """Heads 0 and 1 share the first keys and values, 2 and 3 the second."""
  shares = dict.fromkeys(('heads', 'kv_heads', 'channels', 'layers'), 0.5)
  item, _ = make('taylor', **shares)
  params = toy.model_params(toy.model(mlp_bias=True))
  gates = {
    name: toy.normal(shape, i)
    for i, (name, (shape, _)) in enumerate(item.shapes().items())
  }
  heads, kv_heads, channels, layers = gates.values()
  found = item.factors(gates, params)['decoder']['layers']
  for layer in range(2):
    for head in range(4):
      expected = layers[layer] * kv_heads[layer, head // 2]
      expected *= heads[layer, head // 2, head % 2]
      factor = found['attention']['output']['kernel'][layer, head]
      np.testing.assert_allclose(factor, expected.reshape(1, 1), rtol=1e-6)
    down = found['feedforward']['down']
    expected = layers[layer] * channels[layer]
    np.testing.assert_allclose(down['kernel'][layer, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(down['bias'][layer], layers[layer], rtol=1e-6)


def test_what_is_removed_by_importance_goes_early_and_stays_away():
  item, state = make('taylor', channels=0.5)
  update = jax.jit(item.after_update)
  before = np.ones((2, 24), bool)
  first, last = item.course
  for step in range(1, 21):
    # Others matter at each step, and the sign does not.
    grads = toy.model_params(toy.model(), seed=step, scale=0.1 * step)
    state = update(state.replace(step=jnp.int32(step)), grads)
    kept = np.asarray(
      state.extra['gates']['kept']['decoder.feedforward.channels']
    )
    share = 1 - (1 - np.clip((step - first) / (last - first), 0, 1)) ** 3
    assert (kept.sum(-1) == 24 - round(12 * share)).all()
    assert not (kept & ~before).any()
    before = kept
  # Nor do they where a longer course would have removed fewer by then.
  early = item.after_update(state.replace(step=jnp.int32(first + 1)), grads)
  toy.assert_near(early.extra['gates']['kept'], state.extra['gates']['kept'])
  assert (
    item.evaluation_params(state, state.params)['decoder']['layers'][
      'feedforward'
    ]['down']['kernel']
    == 0
  ).all(-1).sum() == 24


def test_scores_of_l0_follow_the_gradient_of_what_the_step_read():
  item, state = make('l0')
  weights = toy.model_params(toy.model(), seed=2)
  own = state.extra['gates']
  # A first step of Adam has the sign of the gradient alone.
  own = own | {
    'score': {n: toy.normal(s.shape, 5) for n, s in own['score'].items()}
  }
  state = item.with_own(state.replace(step=jnp.int32(3)), own)

  def total(score):
    read = item.forward_params(
      item.with_own(state, own | {'score': score}), state.params
    )
    return sum(
      jnp.vdot(a, b)
      for a, b in zip(
        jax.tree.leaves(read), jax.tree.leaves(weights), strict=True
      )
    )

  slopes = jax.grad(total)(own['score'])
  after = item.after_update(state.replace(step=jnp.int32(4)), weights)
  for name, slope in slopes.items():
    moved = after.extra['gates']['score'][name] - own['score'][name]
    assert (np.abs(slope) > 1e-4).any()
    np.testing.assert_allclose(moved, -0.1 * np.sign(slope), atol=0.01)


def test_multipliers_of_l0_close_the_share_before_the_cut():
  """Without a gradient; and the expectation is that of gates drawn."""
  item, state = make('l0', num_steps=600, channels=0.5)
  zeros = jax.tree.map(jnp.zeros_like, state.params)

  def one(state, step):
    return item.after_update(state.replace(step=step), zeros), None

  run = jax.jit(lambda s, steps: jax.lax.scan(one, s, steps)[0])
  state = run(state, jnp.arange(1, item.course[1]))
  own = state.extra['gates']
  drawn = jax.vmap(lambda step: item.drawn(own, step))(jnp.arange(400))
  closed = float((drawn['decoder.feedforward.channels'] == 0).mean())
  assert closed == pytest.approx(0.5, abs=0.08)
  (score,) = own['score'].values()
  expected = gates_lib._closed_share(score)
  assert closed == pytest.approx(float(expected.mean()), abs=0.02)
  # After the cut the gates are settled, whatever the step.
  own = run(state, item.course[1] + jnp.arange(5)).extra['gates']
  drawn = item.drawn(own, jnp.int32(item.course[1]))
  toy.assert_near(drawn, item.settled(own))
  assert (drawn['decoder.feedforward.channels'] > 0).sum(-1).max() <= 12
  toy.assert_near(
    own['score'],
    run(state, item.course[1] + jnp.arange(1)).extra['gates']['score'],
  )


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
