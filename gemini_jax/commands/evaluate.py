"""Metrics of a trained run on its held-out splits."""

import contextlib
import json
import logging
import os
import sys

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.evaluate import evaluators, held_out
from gemini_jax.parallel import compilation, sharding


def evaluate(config: config_lib.Config, workdir: str | os.PathLike):
  """Evaluates a checkpoint on the held-out splits, and prints it as JSON.

  Raises:
    ConfigError: there is no checkpoint or no held-out split, or the run cannot
      serve what `evaluate.evaluators` names.
  """
  config_lib.check(
    bool(config.data.validation or config.data.test),
    'data.validation and data.test are both empty',
  )
  evaluators.check(config)
  which = config.evaluate.checkpoint
  if config.generate.checkpoint != which:
    logging.warning(
      'generate.checkpoint=%s is of --mode=generate; evaluate.checkpoint=%s is '
      'evaluated',
      config.generate.checkpoint,
      which,
    )
  run = run_lib.open_run(config, workdir)
  compilation.enable_cache(config)
  evaluators.check_run(run)
  loaders = held_out.loaders(run)
  # Standard output holds the JSON alone.
  with sharding.use(run.mesh), contextlib.redirect_stdout(sys.stderr):
    restored = run.restore_params(which, 'evaluate.checkpoint')
    reference = run.restore_reference(restored)
    step = held_out.compile_step(
      run, restored.params, next(iter(loaders.values())), reference
    )
    results = held_out.evaluate(run, restored.params, step, loaders, reference)
    results |= evaluators.evaluate(run, restored.params, loaders, restored.step)
  print(json.dumps({'step': restored.step} | results))
