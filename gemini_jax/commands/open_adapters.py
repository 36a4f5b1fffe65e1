"""The runs that write beside the run itself: `generate.adapters`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.models import build, parameter_groups
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import by_row, lora, peft_files, published, tuning

# Fields of the model that may differ from those of the base.
_OWN_FIELDS = ('model.max_length', 'model.init_scale')


def open_adapters(
  run: run_lib.Run, base: run_lib.RestoredParams, of_prompts: Sequence[str]
) -> by_row.Adapters | None:
  """Those of `generate.adapters`, on the mesh of the run; None: there are none.

  Args:
    run: their base.
    base: the parameters of the run.
    of_prompts: the one that answers each prompt.

  Raises:
    ConfigError: the run cannot be a base, or one is no adapter of it.
  """
  names = run.config.generate.adapters
  if not names:
    return None
  config_lib.check(
    run.config.tune.method == 'full',
    f'generate.adapters={names!r} need their base as --workdir, and this run '
    f'was tuned itself, from {run.config.train.init_from}',
  )
  config_lib.check(
    not run.config.model.latent.dim,
    f'generate.adapters={names!r} need model.latent.dim=0, not '
    f'{run.config.model.latent.dim}',
  )
  opened = {}
  for name in names:
    try:
      opened[name] = _open(run, base, host.expand_path(name))
      _check_leaves(opened[name])
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(
        f'generate.adapters: {name}: {error}'
      ) from error
  return by_row.Adapters(opened, of_prompts)


def _open(
  run: run_lib.Run, base: run_lib.RestoredParams, path: pathlib.Path
) -> Any:
  if (path / peft_files.CONFIG).exists():
    plain = build.abstract_params(run.model, run.mesh)
    entries = published.huggingface_entries(run.config.model, plain)
    adapter = peft_files.read(path, plain, entries)
    if not run.config.compress.is_stored:
      # Rounded parameters have another fingerprint than those they were.
      source = base.manifest.get(base_lib.SOURCE)
      peft_files.check_base(adapter, base.params, source)
    train = dataclasses.replace(run.config.train, init_from=str(run.workdir))
    config = dataclasses.replace(run.config, tune=adapter.tune, train=train)
    whole = tuning.abstract_params(config, run.model, run.mesh)
    return tuning.attached(adapter.tune, adapter.own, base.params, whole)
  file = path / config_lib.FILE
  config_lib.check(
    file.exists(),
    f'is no folder of a run or of PEFT: it has neither {file.name} nor '
    f'{peft_files.CONFIG}',
  )
  saved = config_lib.read(file)
  config_lib.check(
    saved.tune.method in ('lora', 'adalora'),
    f'tune.method={saved.tune.method!r} has no updates of low rank; only lora '
    'and adalora can be chosen for each prompt',
  )
  config_lib.check(
    saved.tune.base == 'plain',
    f'tune.base={saved.tune.base!r}: its base is not as the other prompts read '
    'it; convert it with --format=peft and give that folder',
  )
  model = dataclasses.replace(saved.model, scan_layers=True)
  config = dataclasses.replace(saved, parallel=run.config.parallel, model=model)
  adapter = run_lib.open_run(config, path)
  for field, its, of_base in run_lib.changes(
    adapter.config.model, run.config.model, 'model'
  ):
    config_lib.check(
      field in (*_OWN_FIELDS, *run_lib.NUMERICS_FIELDS),
      f'was tuned from another model: {field} is {its} there and {of_base} in '
      'this run',
    )
  config_lib.check(
    adapter.tokenizer.fingerprint == run.tokenizer.fingerprint,
    'has another tokenizer than this run',
  )
  return adapter.restore_params(base_params=base.params).params


def _check_leaves(params: Any):
  """ConfigError where an update cannot be chosen by row."""
  flat = jax.tree_util.tree_leaves_with_path(params, is_leaf=tuning.is_weight)
  for path, leaf in flat:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    config_lib.check(
      not isinstance(leaf, lora.LowRank)
      or parameter_groups.kind(name) != 'expert',
      f'{name} is a matrix of experts, whose updates cannot be chosen for each '
      'prompt',
    )
