"""A decoder that starts anew once the encoder has learned (Li et al. 2019)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax.adapt import extension
from gemini_jax.models import parameter_groups
from gemini_jax.objectives import kl

# What the text decoder alone has, of the parameters of a Gemini.
DECODER = r'^(decoder|decoder_norm|head|latent_embedding)/'


@dataclasses.dataclass(frozen=True)
class DecoderReset(extension.Extension):
  """At one step the decoder, and all that mirrors it, is as in a fresh state.

  What the encoder has learned stays, in the tokens' table too. It has no state
  of its own.

  Attributes:
    step: at which it happens.
    seed: of the run.
  """

  step: int
  seed: int

  name = 'decoder_reset'

  def selections(self) -> Sequence[parameter_groups.Selection]:
    """The decoder."""
    return (
      parameter_groups.Selection(
        'train.kl_annealing.pretrain_fraction, decoder', DECODER
      ),
    )

  def before_step(self, state: Any, fresh: Callable[[jax.Array], Any]) -> Any:
    """The state with a fresh decoder at the one step where it is due."""
    is_replaced = parameter_groups.mirrored(
      state,
      state.params,
      parameter_groups.matching(DECODER, state.params),
      default=False,
      same_shape=False,
    )

    def reset(state):
      key = jax.random.fold_in(jax.random.key(self.seed), self.step)
      return jax.tree.map(
        lambda replaces, old, new: new if replaces else old,
        is_replaced,
        state,
        fresh(key),
      )

    return jax.lax.cond(
      state.step == self.step, reset, lambda state: state, state
    )


def from_config(config: config_lib.Config) -> DecoderReset | None:
  """The extension, where the config turns it on."""
  step = kl.decoder_reset(config.train.kl_annealing, config.train.num_steps)
  if not step or not config.model.latent.dim:
    return None
  return DecoderReset(step, config.train.seed)
