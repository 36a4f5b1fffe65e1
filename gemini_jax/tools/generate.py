"""Text from a trained run, as it is written."""

import logging
import os
import sys

from gemini_jax import config as config_lib
from gemini_jax.infer import generation
from gemini_jax.parallel import sharding
from gemini_jax.train import loop
from gemini_jax.train import run as run_lib


def generate(config: config_lib.Config, workdir: str | os.PathLike):
  """Continues `generate.prompt` (or reads it, with an encoder) and shows it.

  Raises:
    ConfigError: there is no checkpoint, or the prompt does not fit.
  """
  run = run_lib.open_run(config, workdir, create=False)
  loop.enable_compilation_cache(run.config)
  with sharding.use(run.mesh):
    restored = run.restore(config.generate.checkpoint)
    logging.info('generating with step %d', restored.step)
    shown = -1

    def show(index: int, text: str):
      nonlocal shown
      if index != shown:
        header = f'--- {index + 1} of {config.generate.count} ---\n'
        header = header if config.generate.count > 1 else ''
        continues = config.generate.source in ('prompt', 'prior')
        continues &= not run.config.model.cross
        lead = config.generate.prompt if continues else ''
        sys.stdout.write(f'{"" if shown < 0 else chr(10)}{header}{lead}')
        shown = index
      sys.stdout.write(text)
      sys.stdout.flush()

    # Several samples grow side by side; only one can be shown as it grows.
    alone = config.generate.count == 1
    samples = generation.generate(
      run.config,
      run.model,
      restored.state.evaluation_params(),
      run.tokenizer,
      [config.generate.prompt],
      on_text=show if alone else None,
    )
    if not alone:
      for index, sample in enumerate(samples):
        show(index, sample.text)
  path = run.workdir / 'samples' / f'{restored.step:08d}-generate.jsonl'
  generation.write_samples(path, samples)
  print(f'\n\nwritten to {path}')
