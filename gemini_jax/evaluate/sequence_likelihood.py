"""Likelihood: nats of test sequences, and what a latent tells of them."""

from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import likelihood


def check(config: config_lib.Config):
  """ConfigError unless each row of the test split is one sequence of text."""
  needed = 'evaluate.evaluators: likelihood needs'
  config_lib.check(bool(config.data.test), f'{needed} data.test')
  config_lib.check(
    not config.data.pack,
    f'{needed} one sequence in each row; set data.pack=False',
  )
  config_lib.check(
    not config.data.tasks, f'{needed} plain text or pairs, without data.tasks'
  )


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`test/nll`, and of a latent `test/kl`, `test/mi` and others."""
  del step
  options, loader = run.config.evaluate.likelihood, loaders['test']
  metrics = likelihood.measure(
    run.model,
    params,
    run_lib.device_batches(run, loader, loader_lib.iterate(loader)),
    num_samples=options.importance_samples,
    num_sequences=options.num_examples,
  )
  return {f'test/{name}': value for name, value in metrics.items()}
