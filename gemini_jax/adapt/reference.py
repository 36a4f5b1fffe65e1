"""The parameters that a run starts from, kept for preferences (DPO)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension
from gemini_jax.models import parameter_groups


@dataclasses.dataclass(frozen=True)
class Reference(extension.Extension):
  """Its own state: a copy of each trained parameter, which never changes.

  Frozen parameters, such as the base of low-rank ones, are their own copy.
  """

  config: config_lib.Config

  name = 'reference'

  def init(self, params: Any) -> Any:
    """The parameters themselves; copied, so that both can be donated."""
    return jax.tree.map(
      jnp.array, parameter_groups.trained(self.config, params)
    )

  def reference_params(self, state: Any) -> Any:
    """All of them, the frozen ones too."""
    return parameter_groups.merged(state.extra[self.name], state.params)


def from_config(config: config_lib.Config) -> Reference | None:
  """The extension, where the data are preferences."""
  return Reference(config) if config.data.rejected_field else None
