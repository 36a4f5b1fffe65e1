"""Samples: prompts that are continued after training, for a person to read."""

from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import generation_options
from gemini_jax.infer import generation
from gemini_jax.infer import prompts as prompts_lib
from gemini_jax.infer import samples as samples_lib


def check(config: config_lib.Config):
  """ConfigError unless there are prompts."""
  config_lib.check(
    bool(config.evaluate.samples.prompts),
    'evaluate.evaluators: samples needs evaluate.samples.prompts',
  )


def check_run(run: run_lib.Run):
  """ConfigError for a prompt that the model cannot read."""
  config = _config(run)
  decoder = generation.build_decoder(config, run.model, run.tokenizer, 1)
  for i, text in enumerate(run.config.evaluate.samples.prompts):
    field = f'evaluate.samples.prompts[{i}]'
    try:
      prompt = prompts_lib.read_prompt(config, run.model, run.tokenizer, text)
      inputs = () if prompt.inputs is None else (prompt.inputs,)
      decoder.check_lengths([prompt.tokens], inputs)
    except UnicodeError as error:
      raise config_lib.ConfigError(
        f'{field}={text!r} is not valid text: {error}'
      ) from error
    except config_lib.ConfigError as error:
      message = str(error).replace('generate.prompt', field)
      raise config_lib.ConfigError(
        message.replace('generate.task', 'evaluate.samples.task')
      ) from error


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """Writes samples/STEP.jsonl and prints it; there are no metrics."""
  del loaders
  samples = generation.generate(
    _config(run),
    run.model,
    params,
    run.tokenizer,
    run.config.evaluate.samples.prompts,
  )
  samples_lib.write_samples(
    run.workdir / 'samples' / f'{step:08d}.jsonl', samples
  )
  for sample in samples:
    print(f'\n--- {sample.prompt!r} ---\n{sample.prompt}{sample.text}')
  print(flush=True)
  return {}


def _config(run: run_lib.Run) -> config_lib.Config:
  options = run.config.evaluate.samples
  return generation_options.with_options(
    run.config,
    temperature=options.temperature,
    max_tokens=options.max_tokens,
    task=options.task,
  )
