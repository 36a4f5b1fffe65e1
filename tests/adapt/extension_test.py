"""The protocol serves what comes next: masks, RigL, gates, budgets."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
import toy
from gemini_jax.adapt import enabled, extension
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.train import diagnosis
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

PRUNED = r'feedforward/.*@matrix$'
CONFIG = tiny.config(
  data={'batch_size': 4},
  optimizer={'schedule': 'constant', 'learning_rate': 0.01},
  train={'num_steps': 10},
)
NETWORK = gemini.Gemini(CONFIG.model)
RULE = optimizer_lib.make_optimizer(CONFIG.optimizer, 10)


@dataclasses.dataclass(frozen=True)
class RigL(extension.Extension):
  """Half of the weights of some matrices are zero, others every two steps.

  The smallest tenth goes, and those of the largest gradients come (Evci et
  al. 2020).
  """

  every: int = 2
  name: ClassVar[str] = 'rigl'

  def init(self, params):
    selected = parameter_groups.matching(PRUNED, params)
    return jax.tree.map(
      lambda is_on, leaf: (
        jnp.abs(leaf) > jnp.median(jnp.abs(leaf))
        if is_on
        else optax.MaskedNode()
      ),
      selected,
      params,
    )

  def _masked(self, state, tree):
    keep = lambda mask, leaf: (
      leaf
      if parameter_groups.is_masked(mask)
      else jnp.where(mask, leaf, jnp.zeros_like(leaf))
    )
    return jax.tree.map(
      keep,
      state.extra[self.name],
      tree,
      is_leaf=parameter_groups.is_masked,
    )

  def forward_params(self, state, params):
    return self._masked(state, params)

  def gradients(self, state, grads):
    return self._masked(state, grads)

  def evaluation_params(self, state, params):
    return self._masked(state, params)

  def after_update(self, state, grads):
    def move(mask, param, grad):
      if parameter_groups.is_masked(mask):
        return mask, param
      count = mask.size // 10
      kept = jnp.where(mask, jnp.abs(param), jnp.inf).reshape(-1)
      off = jnp.where(mask, -jnp.inf, jnp.abs(grad)).reshape(-1)
      new = mask.reshape(-1).at[jax.lax.top_k(-kept, count)[1]].set(False)
      new = new.at[jax.lax.top_k(off, count)[1]].set(True).reshape(mask.shape)
      return new, jnp.where(new & mask, param, 0)

    def moved(state):
      pairs = jax.tree.map(
        move,
        state.extra[self.name],
        state.params,
        grads,
        is_leaf=parameter_groups.is_masked,
      )
      pick = lambda index: jax.tree.map(
        lambda pair: pair[index],
        pairs,
        is_leaf=lambda leaf: type(leaf) is tuple,
      )
      return self.with_own(dataclasses.replace(state, params=pick(1)), pick(0))

    return jax.lax.cond(
      state.step % self.every == 0, moved, lambda state: state, state
    )


@pytest.fixture(scope='module')
def parts():
  """(step function, a state) with the extension on."""
  on = extension.Extensions((RigL(),))
  params = toy.model_params(NETWORK)
  state = state_lib.TrainState(
    jnp.int32(0), params, RULE.init(params), on.init(params)
  )
  step = jax.jit(
    functools.partial(
      step_lib.train_step, config=CONFIG, model=NETWORK, optimizer=RULE
    )
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(enabled, 'extensions', lambda config: on)
    yield step, state


def masks(state):
  """(path, mask) of each pruned matrix."""
  flat = jax.tree_util.tree_leaves_with_path(state.extra['rigl'])
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(mask)
    for path, mask in flat
  }


def leaf_of(tree, path):
  return np.asarray(functools.reduce(lambda t, k: t[k], path.split('/'), tree))


def test_masks_that_move_by_the_gradients_of_what_is_zero(parts):
  """With one program, and no change to the step."""
  step, state = parts
  before = masks(state)
  assert len(before) in (2, 3)
  after, metrics = step(state, toy.batch(rows=4), 0)
  for path, mask in before.items():
    old, new = leaf_of(state.params, path), leaf_of(after.params, path)
    decayed = old * (1 - 0.01 * CONFIG.optimizer.weight_decay)
    np.testing.assert_allclose(new[~mask], decayed[~mask], rtol=1e-6)
    assert (new[mask] != decayed[mask]).mean() > 0.9
    evaluated = leaf_of(state_lib.evaluation_params(CONFIG, after), path)
    assert not evaluated[~mask].any() and evaluated[mask].all()
    # The optimizer has seen no gradient of them.
    adam = optimizer_lib.find_state(after.opt_state, optax.ScaleByAdamState)
    assert not leaf_of(adam.mu, path)[~mask].any()
    assert leaf_of(adam.mu, path)[mask].any()
    np.testing.assert_array_equal(masks(after)[path], mask)
  assert bool(metrics['finite'])
  moved, _ = step(after, toy.batch(rows=4, seed=1), 1)
  for path, mask in before.items():
    new = masks(moved)[path]
    assert new.sum() == mask.sum()
    changed = (new != mask).sum()
    assert changed == 2 * (mask.size // 10)
    assert not leaf_of(moved.params, path)[new & ~mask].any()
  assert step._cache_size() == 1


def test_the_forward_pass_reads_what_is_effective(parts):
  """The loss is that of a model whose weights were set to zero."""
  step, state = parts
  _, metrics = step(state, toy.batch(rows=4), 0)
  on = enabled.extensions(CONFIG)
  zeroed = state.replace(params=on.forward_params(state))
  _, same = step(zeroed, toy.batch(rows=4), 0)
  assert float(metrics['loss']) == float(same['loss'])
  full = jax.tree.map(jnp.ones_like, state.extra)
  _, other = step(state.replace(extra=full), toy.batch(rows=4), 0)
  assert float(metrics['loss']) != float(other['loss'])


def test_a_step_that_is_not_finite_moves_no_mask(parts):
  step, state = parts
  batch = toy.batch(rows=4)
  weights_BT = np.array(batch.weights)
  weights_BT[2, 5] = np.inf
  state = state.replace(step=jnp.int32(1))
  after, metrics = step(state, batch.replace(weights=weights_BT), 1)
  assert not bool(metrics['finite'])
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_search_for_what_is_not_finite_goes_through_extensions(
  parts, monkeypatch
):
  """It names what an extension makes of the updates and the parameters."""
  _, state = parts
  args = CONFIG, NETWORK, RULE
  batch = toy.batch(rows=4)
  monkeypatch.setattr(
    RigL,
    'updates',
    lambda self, state, updates: jax.tree.map(lambda u: u * jnp.nan, updates),
  )
  step, found = diagnosis.first_not_finite(*args, state, batch)
  assert step == 1 and found.startswith('update of ')
  monkeypatch.setattr(
    RigL,
    'forward_params',
    lambda self, state, params: jax.tree.map(lambda p: p * jnp.nan, params),
  )
  step, found = diagnosis.first_not_finite(*args, state, batch)
  assert step == 1 and found.startswith('output of '), found


@dataclasses.dataclass(frozen=True)
class Scaled(extension.Extension):
  """Multiplies where it can, and notes that it was called."""

  by: float
  name: ClassVar[str] = 'scaled'

  def forward_params(self, state, params):
    return params + self.by

  def gradients(self, state, grads):
    return grads * self.by

  def updates(self, state, updates):
    return updates - self.by


def test_hooks_are_called_in_order_and_gradients_in_reverse():
  first, second = Scaled(2.0), Scaled(3.0)
  calls = []

  @dataclasses.dataclass(frozen=True)
  class Noting(Scaled):
    def gradients(self, state, grads):
      calls.append(self.by)
      return super().gradients(state, grads)

  both = extension.Extensions((Noting(2.0), Noting(3.0)))
  state = state_lib.TrainState(jnp.int32(0), 1.0, (), {})
  assert both.forward_params(state) == 6.0
  assert both.gradients(state, 1.0) == 6.0 and calls == [3.0, 2.0]
  assert extension.Extensions((first, second)).updates(state, 9.0) == 4.0
  # All else is left as it is.
  assert both.before_step(state, None) is state
  assert both.after_update(state, None) is state
  assert both.after_validation(state, 1.0) is state
  assert both.init(1.0) == {} and both.selections() == []
