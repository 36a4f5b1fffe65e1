"""Learning rates that fall from the output down to the embeddings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension
from gemini_jax.models import parameter_groups


@dataclasses.dataclass(frozen=True)
class LayerDecay(extension.Extension):
  """Without state: how deep a parameter lies is in the tree of all of them.

  The update is scaled with its weight decay, as a lower rate would do it,
  whichever rule it comes from.
  """

  decay: float

  name = 'layer_decay'

  def updates(self, state: Any, updates: Any) -> Any:
    """Each times `decay` to the power of its distance from the output."""

    def scaled(update, distance):
      if parameter_groups.is_masked(update):
        return update
      scale = np.power(self.decay, distance)
      # Of an array of a stack, one for each layer.
      scale = scale.reshape(scale.shape + (1,) * (update.ndim - scale.ndim))
      return update * jnp.asarray(scale, update.dtype)

    return jax.tree.map(
      scaled,
      updates,
      parameter_groups.distances(state.params),
      is_leaf=parameter_groups.is_masked,
    )


def from_config(config: config_lib.Config) -> LayerDecay | None:
  """The extension, where the config turns it on."""
  decay = config.optimizer.layer_decay
  return LayerDecay(decay) if decay < 1 else None
