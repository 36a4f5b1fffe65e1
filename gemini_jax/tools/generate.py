"""Text from a trained run, as it is written."""

import logging
import os
import sys
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.infer import generation
from gemini_jax.infer import guide as guide_lib
from gemini_jax.parallel import sharding
from gemini_jax.train import loop
from gemini_jax.train import run as run_lib


def generate(config: config_lib.Config, workdir: str | os.PathLike):
  """Continues `generate.prompt` (or reads it, with an encoder) and shows it.

  Raises:
    ConfigError: there is no checkpoint, or the prompt does not fit.
  """
  run = run_lib.open_run(config, workdir, create=False)
  # What is wrong with a wish is told before anything is computed.
  examples = guide_lib.examples(config) if config.generate.steer else None
  loop.enable_compilation_cache(run.config)
  with sharding.use(run.mesh):
    restored = run.restore(config.generate.checkpoint)
    logging.info('generating with step %d', restored.step)
    params = restored.state.evaluation_params()
    parts = run.config, run.model, params, run.tokenizer
    guide = guide_lib.learn(*parts, examples) if examples else None
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
      *parts,
      [config.generate.prompt],
      on_text=show if alone else None,
      guide=guide,
    )
    if not alone:
      for index, sample in enumerate(samples):
        show(index, sample.text)
    report = '' if guide is None else _report(guide, parts, samples)
  path = run.workdir / 'samples' / f'{restored.step:08d}-generate.jsonl'
  generation.write_samples(path, samples)
  print(f'\n\n{report}written to {path}')


def _report(
  guide: guide_lib.Guide, parts: Any, samples: list[generation.Sample]
) -> str:
  """How many samples have what was wished for, and what each took."""
  texts = [sample.text for sample in samples]
  lines = [
    f'{wish.strip()}: {100 * share:.1f} % of {len(texts)}, by the model that '
    'steered'
    for wish, share in zip(
      guide.options.steer.split(','),
      guide_lib.shares(guide, *parts, texts=texts).values(),
      strict=True,
    )
  ]
  num_tokens = sum(len(sample.tokens) for sample in samples) / len(samples)
  cost = guide.cost(parts[1], num_tokens)
  lines.append(
    'passes for a sample, forward and backward: '
    f'{cost.attribute_forward:.0f} and {cost.attribute_backward:.0f} of the '
    f'attributes, {cost.decoder_forward:.0f} and {cost.decoder_backward:.0f} '
    'of the decoder'
  )
  return '\n'.join(lines) + '\n\n'
