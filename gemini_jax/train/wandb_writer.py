"""Metrics of a run on Weights & Biases."""

import json
import pathlib
import re
import uuid
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host

# Holds the id of the folder's run on Weights & Biases.
_WANDB_ID_FILE = 'wandb_id'


def check(config: config_lib.Config):
  """ConfigError, with the remedy, unless wandb is there where it is needed."""
  if config.train.wandb_project:
    _import_wandb(config)


def _import_wandb(config: config_lib.Config) -> Any:
  asked = f'train.wandb_project={config.train.wandb_project!r} needs wandb'
  return config_lib.optional('wandb', asked, 'wandb')


def start(workdir: pathlib.Path, config: config_lib.Config, step: int) -> Any:
  """Opens the folder's run on Weights & Biases, a new one or the one it has.

  Args:
    workdir: folder of the run.
    config: with `train.wandb_project`.
    step: the step that the run goes on from.

  Returns:
    wandb's run, with `log` and `finish`.

  Raises:
    ConfigError: wandb is missing or refuses.
  """
  wandb = _import_wandb(config)
  try:
    return wandb.init(
      project=config.train.wandb_project,
      name=workdir.resolve().name,
      id=_wandb_id(workdir, step),
      resume='allow',
      dir=str(workdir),
      config=json.loads(config_lib.to_json(config)),
    )
  except wandb.Error as error:
    raise config_lib.ConfigError(
      f'train.wandb_project={config.train.wandb_project!r} cannot be used: '
      f'{" ".join(str(error).split())}; log in with `wandb login`, or set '
      'WANDB_MODE=offline'
    ) from error


def _wandb_id(workdir: pathlib.Path, step: int) -> str:
  """The id of a folder's run, made once and kept in a file.

  An earlier version used the folder's name and wrote no file: a run that
  resumes without one keeps that name.
  """
  path = workdir / _WANDB_ID_FILE
  if path.is_file():
    identity = host.read_file(path).decode(errors='replace').strip()
    if re.fullmatch(r'[^\s/\\#?%:]{1,128}', identity):
      return identity
  identity = workdir.resolve().name if step else uuid.uuid4().hex[:12]
  host.replace_file(path, f'{identity}\n'.encode())
  return identity
