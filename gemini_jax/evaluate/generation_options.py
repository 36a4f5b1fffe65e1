"""How evaluators generate: by their own options, never by `generate`'s."""

import dataclasses
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.infer import prompts


def with_options(config: config_lib.Config, **fields: Any) -> config_lib.Config:
  """The config with a section `generate` of defaults and of these fields."""
  options = config_lib.Generate(**fields)
  return dataclasses.replace(config, generate=options)


def fits(
  prompt: prompts.Prompt, config: config_lib.Config, num_tokens: int = 1
) -> bool:
  """Whether the model can read a prompt and write `num_tokens` after it."""
  inputs = () if prompt.inputs is None else prompt.inputs
  return (
    len(prompt.tokens) + num_tokens <= config.model.max_length
    and len(inputs) <= config.data.inputs_length
  )
