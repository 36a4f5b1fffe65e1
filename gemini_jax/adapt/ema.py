"""An exponential moving average of the parameters, to be evaluated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension
from gemini_jax.models import parameter_groups


@dataclasses.dataclass(frozen=True)
class EMA(extension.Extension):
  """Its own state: the average of each trained parameter, in float32.

  Of frozen parameters, which are their own average, it has none.
  """

  config: config_lib.Config

  name = 'ema'

  def init(self, params: Any) -> Any:
    """The parameters themselves; copied, so that both can be donated."""
    return jax.tree.map(
      lambda leaf: jnp.array(leaf, jnp.float32),
      parameter_groups.trained(self.config, params),
    )

  def after_update(self, state: Any, grads: Any) -> Any:
    """The average moved towards the new parameters.

    It starts as a plain mean, so that it forgets the first values.
    """
    del grads
    limit = self.config.optimizer.ema_decay
    decay = jnp.minimum(limit, state.step / (9 + state.step))
    params = parameter_groups.trained(self.config, state.params)
    average = optax.incremental_update(
      parameter_groups.to_float32(params), state.extra[self.name], 1 - decay
    )
    return self.with_own(state, average)

  def evaluation_params(self, state: Any, params: Any) -> Any:
    """The average."""
    return parameter_groups.merged(state.extra[self.name], params)


def from_config(config: config_lib.Config) -> EMA | None:
  """The extension, where the config turns it on."""
  return EMA(config) if config.optimizer.ema_decay else None


def earlier_names(config: config_lib.Config) -> dict[str, str]:
  """Where earlier versions kept the state, and where it is now."""
  del config
  return {'ema/': 'extra/ema/'}
