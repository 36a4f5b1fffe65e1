"""The extensions that a config turns on."""

from gemini_jax import config as config_lib
from gemini_jax.adapt import (
  adalora,
  decoder_reset,
  ema,
  extension,
  gate,
  gates,
  layer_decay,
  plateau,
  pruning,
  reference,
)


def extensions(config: config_lib.Config) -> extension.Extensions:
  """All that are on, in the order in which their hooks are called."""
  items = (
    decoder_reset.from_config(config),
    adalora.from_config(config),
    plateau.from_config(config),
    layer_decay.from_config(config),
    ema.from_config(config),
    gates.from_config(config),
    reference.from_config(config),
    # Last: it sets to zero what the others have made of pruned weights.
    pruning.from_config(config),
    gate.from_config(config),
  )
  return extension.Extensions(tuple(item for item in items if item is not None))


def earlier_names(config: config_lib.Config) -> dict[str, str]:
  """Where checkpoints of earlier versions kept what is now in `extra`.

  By the beginnings of the paths of arrays; also of what the config turns off.
  """
  return plateau.earlier_names(config) | ema.earlier_names(config)
