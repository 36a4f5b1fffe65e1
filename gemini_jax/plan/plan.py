"""Plans a run for devices that are not present: memory, speed, suggestions.

The train step and the decode step are compiled and not run.
"""

import json
import os
import pathlib
import sys
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import (
  classes,
  normalization,
  tokenizer,
  tokenizer_training,
)
from gemini_jax.models import build
from gemini_jax.plan import compile as compile_lib
from gemini_jax.plan import compiler_errors, page, report, suggestions, topology

FILE = 'plan.json'
# Assumed vocabulary of a tokenizer of characters before it is trained.
_CHARACTERS = 256


def plan(config: config_lib.Config, workdir: str | os.PathLike) -> int:
  """Prints the plan and writes `plan.json`; returns the exit code.

  It is 1 if the train step does not fit into memory, and also, without a plan,
  if the compiler refuses the program for another reason.

  Raises:
    ConfigError: the config does not match the devices, or they are unknown.
  """
  path = pathlib.Path(workdir)
  config_lib.check(
    not config.compress.is_stored,
    f'--workdir={path} holds compressed parameters, which are not trained; '
    '--mode=plan is for the run that was compressed',
  )
  assumptions: list[str] = []
  config = normalization.resolve(classes.resolve(config, None), None)
  config = with_vocab(config, path, assumptions)
  if config.plan.topology:
    # A topology needs no accelerator of this machine.
    jax.config.update('jax_platforms', 'cpu')
  devices = find_devices(config)
  try:
    measured = compile_lib.measure(config, devices)
  except compiler_errors.CompilerError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  result = report.build(measured, assumptions)
  print(page.spell(result), flush=True)
  if not result['fits']:
    result['suggestions'] = [
      suggestion.summary() for suggestion in suggestions.search(measured)
    ]
    print(suggestions.spell(result['suggestions']))
  _write(path, result)
  return 0 if result['fits'] else 1


def find_devices(config: config_lib.Config) -> list[Any]:
  """The devices of `plan.topology`, or those of this machine."""
  if not config.plan.topology:
    return list(jax.devices())
  return topology.devices(config.plan.topology, config.parallel.slices)


def with_vocab(
  config: config_lib.Config, path: pathlib.Path, assumptions: list[str]
) -> config_lib.Config:
  """The config with `model.vocab_size` set, without reading any data."""
  if config.model.vocab_size is not None:
    return config
  file = path / run_lib.TOKENIZER_FILE
  if file.exists():
    return build.with_vocab(config, tokenizer.load(file).vocab_size)
  if config.tokenizer.kind == 'huggingface':
    made = tokenizer_training.build(config.tokenizer, tuple)
    return build.with_vocab(config, made.vocab_size)
  sizes = {
    'sentencepiece': config.tokenizer.vocab_size,
    'bytes': tokenizer.Bytes().vocab_size,
    'characters': _CHARACTERS,
  }
  config = build.with_vocab(config, sizes[config.tokenizer.kind])
  assumptions.append(
    f'vocabulary: no tokenizer is trained; {config.model.vocab_size} rows of '
    f'the embedding table, for {config.tokenizer.kind}'
  )
  return config


def _write(path: pathlib.Path, result: dict[str, Any]):
  try:
    path.mkdir(parents=True, exist_ok=True)
    (path / FILE).write_text(json.dumps(result, indent=2) + '\n')
  except OSError as error:
    raise config_lib.ConfigError(
      f'--workdir={path} cannot be written: {error.strerror}'
    ) from error
  print(f'written to {path / FILE}')
