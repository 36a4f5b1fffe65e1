"""Exact match: the share of outputs that are the targets, all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import splits
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.evaluate import generation_options
from gemini_jax.infer import generation, prompts
from gemini_jax.models import gemini


def check(config: config_lib.Config):
  """ConfigError unless the data are pairs."""
  config_lib.check(
    bool(config.data.inputs_field),
    'evaluate.evaluators: exact_match needs pairs; set data.inputs_field and '
    'data.targets_field',
  )


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`split/exact_match` of the first pairs of each split."""
  del step
  num_examples = run.config.evaluate.exact_match.num_examples
  return {
    f'{split}/exact_match': exact_match(
      run.config,
      run.model,
      params,
      run.tokenizer,
      splits.pairs(run.config.data, split, num_examples),
    )
    for split in loaders
  }


def exact_match(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  pairs: Sequence[tuple[str, ...]],
) -> float:
  """Share of (inputs, targets) whose greedy output equals the targets.

  Inputs that are too long for the model count as wrong.
  """
  config = generation_options.with_options(
    config, temperature=0.0, max_tokens=config.model.max_length
  )
  fitting = [
    (inputs, targets)
    for inputs, targets in pairs
    if generation_options.fits(
      prompts.read_prompt(config, model, tokenizer, inputs), config
    )
  ]
  samples = generation.generate(
    config, model, params, tokenizer, [inputs for inputs, _ in fitting]
  )
  num_right = sum(
    sample.text == targets
    for sample, (_, targets) in zip(samples, fitting, strict=True)
  )
  return num_right / len(pairs)
