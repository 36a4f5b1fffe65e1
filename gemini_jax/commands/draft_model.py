"""The run that drafts for another one: `generate.draft`."""

import dataclasses

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.infer import speculative
from gemini_jax.weights import native_products


def open_draft(run: run_lib.Run) -> speculative.Draft | None:
  """The newest model of `generate.draft`, on the mesh of the run; None: none.

  Raises:
    ConfigError: there is no run, or one of another tokenizer.
  """
  options = run.config.generate
  if not options.draft:
    return None
  field = f'generate.draft={options.draft}'
  path = host.expand_path(options.draft)
  config_lib.check(
    (path / run_lib.CONFIG_FILE).exists(),
    f'{field} is no folder of a run: it has no {run_lib.CONFIG_FILE}',
  )
  saved = config_lib.read(path / run_lib.CONFIG_FILE)
  config = dataclasses.replace(
    saved,
    parallel=run.config.parallel,
    model=dataclasses.replace(saved.model, scan_layers=True),
  )
  try:
    draft = run_lib.open_run(config, path)
    config_lib.check(
      draft.tokenizer.fingerprint == run.tokenizer.fingerprint,
      'its tokenizer is another one; only models of one tokenizer can draft '
      'for each other',
    )
    params = native_products.with_kernel(
      draft.restore_params().params, options.cpu_kernel
    )
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{field}: {error}') from error
  return speculative.Draft(draft.model, params, options.draft_tokens)
