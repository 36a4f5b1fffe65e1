"""The protocol of extensions of the training state, and several as one.

A step knows no extension by name; it calls the hooks of all that the config
turns on (see `enabled.py`), in this order:

    before_step       the state, where something is due at a step
    forward_params    the parameters that the forward pass reads
    reference_params  those that preferences are relative to
    gradients         of those, turned into gradients of the stored parameters
    updates           of the optimizer, before they are added
    after_update      the state with the new parameters and its own new state
    metrics           of the step

Outside the step, `after_validation` is given the validation loss, and
`evaluation_params` makes what is evaluated and saved as the result.

How to write what comes next:

- Masks are there: see `masks.py` and `pruning.py`. What chooses other ones
  returns `pruning.with_masks(state, masks)`, which sets what they prune to
  zero.
- Gates that are learned are the extension's own state too. `forward_params`
  multiplies by them; `after_update` takes their gradient with `jax.vjp` of
  `forward_params` from the gradients that it is given, and makes their update.
- A budget that grows when validation no longer improves is a number in the
  state; `after_validation` raises it, `before_step` acts on it.

State is arrays alone, in one tree of the same shapes at every step. What has a
parameter's path at the end of its own, and its shape, is sharded as the
parameter is; all else is the same on every device.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax

from gemini_jax.models import parameter_groups


class Extension:
  """Something that training adapts; every hook may be left as it is here.

  `state` is always the whole TrainState: step, params, opt_state and extra, of
  which `extra[name]` is this extension's own. All hooks but `after_validation`
  run under jit.

  Attributes:
    name: of its state in `extra`, and so in checkpoints.
  """

  name: ClassVar[str]

  @property
  def settled_step(self) -> int:
    """The step from which on the run has the form that was asked for.

    Before it, such as while weights are still being pruned, a lower validation
    loss makes no checkpoint the better one.
    """
    return 0

  def init(self, params: Any) -> Any:
    """Its own state beside fresh parameters; None: it has none."""
    del params
    return None

  def init_beside(self, params: Any, opt_state: Any) -> Any:
    """As `init`, of one that keeps some state of the optimizer as well."""
    del opt_state
    return self.init(params)

  def selections(self) -> Sequence[parameter_groups.Selection]:
    """The parameters that it is about, to be checked and logged."""
    return ()

  def check(self, params: Any):
    """Refuses parameters that it cannot work on.

    Args:
      params: their shapes.

    Raises:
      ConfigError: says which and why.
    """
    del params

  def before_step(self, state: Any, fresh: Callable[[jax.Array], Any]) -> Any:
    """The state from which the step starts.

    Args:
      state: after the step before.
      fresh: makes the state of a run that begins, from a random key.
    """
    del fresh
    return state

  def forward_params(self, state: Any, params: Any) -> Any:
    """What the forward pass reads in place of `params`.

    Gradients are taken with respect to the result; see `gradients`.
    """
    del state
    return params

  def reference_params(self, state: Any) -> Any:
    """Fixed parameters that a loss compares with; None: it has none."""
    del state
    return None

  def gradients(self, state: Any, grads: Any) -> Any:
    """Gradients of `params`, from those of what `forward_params` returned.

    Frozen parameters have none: a MaskedNode stands in their place.
    """
    del state
    return grads

  def updates(self, state: Any, updates: Any) -> Any:
    """What is added to the parameters, from what the optimizer says."""
    del state
    return updates

  def after_update(self, state: Any, grads: Any) -> Any:
    """The state after an update.

    Args:
      state: with the new step, parameters and state of the optimizer.
      grads: with respect to what `forward_params` returned.
    """
    del grads
    return state

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> Mapping[str, jax.Array]:
    """The scalars that a step reports; `state` is that before the update."""
    del state
    return metrics

  def after_validation(self, state: Any, loss: jax.typing.ArrayLike) -> Any:
    """The state once its validation loss is known; runs between two steps.

    It runs again, with the same loss, when a run resumes from the checkpoint
    of the step, which was saved before.
    """
    del loss
    return state

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """What is evaluated in place of `params`."""
    del state
    return params

  def with_own(self, state: Any, value: Any) -> Any:
    """The state with another state of this extension."""
    return state.replace(extra={**state.extra, self.name: value})


@dataclasses.dataclass(frozen=True)
class Extensions:
  """Several extensions, each hook called one after the other."""

  items: tuple[Extension, ...] = ()

  @property
  def settled_step(self) -> int:
    """From which on all of them are settled."""
    return max((item.settled_step for item in self.items), default=0)

  def init(self, params: Any, opt_state: Any = None) -> dict[str, Any]:
    """Their states by name, of those that have one."""
    states = {
      item.name: item.init_beside(params, opt_state) for item in self.items
    }
    return {name: own for name, own in states.items() if own is not None}

  def selections(self) -> list[parameter_groups.Selection]:
    """The parameters that they are about."""
    return [one for item in self.items for one in item.selections()]

  def check(self, params: Any):
    """Refuses parameters that one of them cannot work on."""
    for item in self.items:
      item.check(params)

  def before_step(self, state: Any, fresh: Callable[[jax.Array], Any]) -> Any:
    """The state from which the step starts."""
    for item in self.items:
      state = item.before_step(state, fresh)
    return state

  def forward_params(self, state: Any) -> Any:
    """What the forward pass reads."""
    params = state.params
    for item in self.items:
      params = item.forward_params(state, params)
    return params

  def reference_params(self, state: Any) -> Any:
    """Those that a loss compares with; None where no extension has any."""
    found = (item.reference_params(state) for item in self.items)
    return next((params for params in found if params is not None), None)

  def gradients(self, state: Any, grads: Any) -> Any:
    """Gradients of the parameters; by the chain rule the last comes first."""
    for item in reversed(self.items):
      grads = item.gradients(state, grads)
    return grads

  def updates(self, state: Any, updates: Any) -> Any:
    """What is added to the parameters."""
    for item in self.items:
      updates = item.updates(state, updates)
    return updates

  def after_update(self, state: Any, grads: Any) -> Any:
    """The state after an update."""
    for item in self.items:
      state = item.after_update(state, grads)
    return state

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """The scalars that a step reports."""
    for item in self.items:
      metrics = item.metrics(state, metrics)
    return dict(metrics)

  def after_validation(self, state: Any, loss: jax.typing.ArrayLike) -> Any:
    """The state once its validation loss is known."""
    for item in self.items:
      state = item.after_validation(state, loss)
    return state

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """What is evaluated in place of `params`."""
    for item in self.items:
      params = item.evaluation_params(state, params)
    return params
