"""The step calls the hooks of extensions, here of masks that move."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import toy
from gemini_jax.adapt import enabled, extension, pruning
from gemini_jax.models import gemini
from gemini_jax.train import diagnosis
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

CONFIG = tiny.config(
  data={'batch_size': 4},
  optimizer={'schedule': 'constant', 'learning_rate': 0.01},
  train={'num_steps': 10},
  sparsity={'method': 'rigl', 'sparsity': 0.5, 'update_every': 2},
)
NETWORK = gemini.Gemini(CONFIG.model)
RULE = optimizer_lib.make_optimizer(CONFIG.optimizer, 10)


@pytest.fixture(scope='module')
def parts():
  """(step function, a state) of a run whose masks move every two steps."""
  params = toy.model_params(NETWORK)
  state = state_lib.TrainState(
    jnp.int32(0),
    params,
    RULE.init(params),
    enabled.extensions(CONFIG).init(params),
  )
  step = jax.jit(
    functools.partial(
      step_lib.train_step, config=CONFIG, model=NETWORK, optimizer=RULE
    )
  )
  return step, state


def test_the_forward_pass_reads_what_is_effective(parts):
  """The loss is that of a model whose weights were set to zero."""
  step, state = parts
  _, metrics = step(state, toy.batch(rows=4), 0)
  on = enabled.extensions(CONFIG)
  zeroed = state.replace(params=on.forward_params(state))
  _, same = step(zeroed, toy.batch(rows=4), 0)
  assert float(metrics['loss']) == float(same['loss'])
  zeroed = on.evaluation_params(state, state.params)
  jax.tree.map(np.testing.assert_array_equal, zeroed, on.forward_params(state))
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
  # Of a batch that is finite they move here.
  after, _ = step(state, batch, 1)
  changed = jax.tree.map(
    lambda new, old: bool((new != old).any()), after.extra, state.extra
  )
  assert all(jax.tree.leaves(changed))


def test_the_search_for_what_is_not_finite_goes_through_extensions(
  parts, monkeypatch
):
  """It names what an extension makes of the updates and the parameters."""
  _, state = parts
  args = CONFIG, NETWORK, RULE
  batch = toy.batch(rows=4)
  monkeypatch.setattr(
    pruning.Pruning,
    'updates',
    lambda self, state, updates: jax.tree.map(lambda u: u * jnp.nan, updates),
  )
  step, found = diagnosis.first_not_finite(*args, state, batch)
  assert step == 1 and found.startswith('update of ')
  monkeypatch.setattr(
    pruning.Pruning,
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
