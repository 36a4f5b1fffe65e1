"""Losses of the routers of mixtures of experts, which their layers compute."""

import jax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import forward_pass
from gemini_jax.objectives import terms as terms_lib


def terms(
  config: config_lib.Model,
  output: forward_pass.ForwardOutput,
  batch: batch_lib.Batch,
  num_tokens: jax.Array,
  train: config_lib.Train | None,
) -> terms_lib.Terms:
  """`router_balance` and `router_z`, means over tokens and layers."""
  del config, batch, num_tokens, train
  return terms_lib.Terms(losses=dict(output.aux))
