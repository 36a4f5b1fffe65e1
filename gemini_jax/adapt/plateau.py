"""A learning rate that falls once the validation loss no longer does."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension


@dataclasses.dataclass(frozen=True)
class Plateau(extension.Extension):
  """Its own state: the scale of updates, and the course of the loss."""

  config: config_lib.Optimizer

  name = 'plateau'

  def _rule(self):
    return optax.contrib.reduce_on_plateau(
      factor=self.config.plateau_factor, patience=self.config.plateau_patience
    )

  def init(self, params: Any) -> Any:
    """A scale of 1, in float32 whatever type the parameters are."""
    del params
    return self._rule().init(jnp.zeros(()))

  def updates(self, state: Any, updates: Any) -> Any:
    """Scaled by what the validations so far have decided."""
    scale = state.extra[self.name].scale
    return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)

  def metrics(
    self, state: Any, metrics: Mapping[str, jax.Array]
  ) -> Mapping[str, jax.Array]:
    """With the learning rate that is in force."""
    scale = state.extra[self.name].scale
    return {**metrics, 'learning_rate': metrics['learning_rate'] * scale}

  def after_validation(self, state: Any, loss: jax.typing.ArrayLike) -> Any:
    """The scale may fall."""
    own = state.extra[self.name]
    return self.with_own(state, self._rule().update({}, own, value=loss)[1])


def from_config(config: config_lib.Config) -> Plateau | None:
  """The extension, where the config turns it on."""
  optimizer = config.optimizer
  return Plateau(optimizer) if optimizer.plateau_patience else None


def earlier_names(config: config_lib.Config) -> dict[str, str]:
  """Where earlier versions kept the state, and where it is now.

  It was the last rule of the optimizer's chain, after clipping and the update
  rule.
  """
  optimizer = config.optimizer
  chain = 'inner_states/False/inner_state/' if optimizer.frozen else ''
  index = 2 if optimizer.clip_norm else 1
  return {f'opt_state/{chain}{index}/': 'extra/plateau/'}
