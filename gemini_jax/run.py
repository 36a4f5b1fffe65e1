"""A run: what its config and its folder make, opened to be read.

What training adds to it is in `train/session.py`.
"""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.checkpoint import checkpointer, parameters
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import pipeline, processes, sharding
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import compressed, tuning

CONFIG_FILE = config_lib.FILE
TOKENIZER_FILE = 'tokenizer'
# Fields of the model that change how a run computes, not what it computes.
NUMERICS_FIELDS = (
  *('model.scan_layers', 'model.remat', 'model.remat_save'),
  *('model.remat_offload', 'model.attention_kernel', 'model.context_parallel'),
  *('model.dtype', 'model.dropout', 'model.stochastic_depth'),
  'tune.dropout',
)
# Sections that say nothing of what the run is.
_OF_USE = ('evaluate.', 'generate.', 'plan.', 'predict.')
_TOKENIZER_FIELDS = ('model.vocab_size', 'model.text_vocab_size')
# Batches on the device ahead of the step that reads them.
_BATCHES_AHEAD = 2
# Checkpoints that are tried while the run that trains removes them.
_MAX_READS = 10


@dataclasses.dataclass(frozen=True)
class RestoredParams:
  """Parameters to evaluate, and the step and manifest of their checkpoint."""

  step: int
  params: Any
  manifest: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts that every mode works with; nothing of training.

  Attributes:
    config: resolved: `model.vocab_size` and `text_vocab_size` are set.
    workdir: the folder of the run.
    tokenizer: the one that the folder holds.
    model: the network.
    mesh: all devices.
    checkpoints: what was saved.
  """

  config: config_lib.Config
  workdir: pathlib.Path
  tokenizer: tokenizer_lib.Tokenizer
  model: gemini.Gemini
  mesh: Mesh
  checkpoints: checkpointer.Checkpointer

  def loader(self, split: loader_lib.Split) -> loader_lib.Loader:
    """The batches of a split, this process's share of each."""
    batch_size = self.config.data.batch_size
    if split != 'train':
      batch_size = self.config.evaluate.batch_size or batch_size
    return loader_lib.Loader(
      self.config.data,
      self.tokenizer,
      split,
      seed=self.config.train.seed,
      batch_size=batch_size,
      rows=sharding.local_rows(self.mesh, batch_size),
      model=self.config.model,
    )

  def restore_params(
    self,
    which: Literal['latest', 'best'] | str = 'latest',
    field: str = 'generate.checkpoint',
    base_params: Any = None,
  ) -> RestoredParams:
    """The parameters to evaluate and to generate with, without the rest.

    A moving average of the parameters takes their place where training kept
    one. Those of a run that was tuned are in part the base's, in leaf types of
    `weights/`. Nothing in the folder is changed.

    Args:
      which: 'latest', or 'best' by validation loss.
      field: of the config that says so, for messages.
      base_params: of the base that it tunes, where they have been read.

    Raises:
      ConfigError: there is no checkpoint that is whole, or not the base that
        it tunes.
    """
    whole = tuning.abstract_params(self.config, self.model, self.mesh)
    abstract = parameter_groups.own(self.config.tune, whole)
    is_compressed = self.config.compress.is_stored
    if is_compressed:
      abstract = compressed.abstract_stored(self.config, self.model, self.mesh)
    select = lambda saved: parameters.select(saved, abstract).arrays
    for _ in range(_MAX_READS):
      step, remedy = self._step_to_read(which, field)
      try:
        restored = self.checkpoints.restore_arrays(select, step)
      except checkpointer.DamageError as error:
        if step is not None and not self.checkpoints.holds(step):
          # The run that trains has removed it for a better one.
          continue
        where = f'{self.checkpoints.path(step)} is damaged: ' if step else ''
        raise config_lib.ConfigError(f'{where}{error}; {remedy}') from error
      if restored is not None:
        selection = parameters.select(restored.manifest['arrays'], abstract)
        params = base_lib.with_base(
          self.config,
          self.model,
          self.mesh,
          selection.params(restored.state),
          restored.manifest,
          base_params,
        )
        if is_compressed:
          params = compressed.opened(params, whole)
        return RestoredParams(restored.step, params, restored.manifest)
    raise config_lib.ConfigError(f'--workdir={self.workdir} was emptied')

  def restore_reference(self, restored: RestoredParams) -> Any:
    """The parameters that preferences are relative to; None without any.

    What training leaves as it is they share with the restored ones.

    Args:
      restored: of `restore_params`.

    Raises:
      ConfigError: the checkpoint cannot be read again.
    """
    if not self.config.data.rejected_field:
      return None
    abstract = parameter_groups.trained(
      self.config, tuning.abstract_params(self.config, self.model, self.mesh)
    )
    select = lambda saved: parameters.select_reference(saved, abstract)
    try:
      found = self.checkpoints.restore_arrays(
        lambda saved: select(saved).arrays, restored.step
      )
    except checkpointer.DamageError as error:
      raise config_lib.ConfigError(str(error)) from error
    assert found is not None
    kept = select(found.manifest['arrays']).params(found.state)
    return parameter_groups.merged(kept, restored.params)

  def _step_to_read(self, which: str, field: str) -> tuple[int | None, str]:
    """The step of the best checkpoint, or None; and what helps if it is lost.

    Raises:
      ConfigError: there is no checkpoint.
    """
    config_lib.check(
      self.checkpoints.agreed_newest() is not None,
      f'--workdir={self.workdir} holds no checkpoint; train first with '
      '--mode=train',
    )
    if which != 'best':
      return None, 'put a copy of one back'
    best = self.checkpoints.agreed_best()
    remedy = f'use --config.{field}=latest'
    config_lib.check(
      best is not None,
      f'{field}=best: no checkpoint of --workdir={self.workdir} was saved at '
      f'a step that was validated; {remedy}',
    )
    return best, remedy


def open_run(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  mesh: Mesh | None = None,
) -> Run:
  """Opens what was trained in a folder, before any work on a device.

  Args:
    config: what was asked for.
    workdir: the folder.
    mesh: of all devices; None: of the config, whose batches must fit it.

  Raises:
    ConfigError: the folder cannot be used, holds another model, or the
      config does not fit the devices.
  """
  path = pathlib.Path(workdir)
  mesh = mesh or make_mesh(config)
  checkpoints = open_checkpoints(config, path)
  # The shapes alone tell whether the mesh fits, before any data is read.
  build.abstract_params(
    build.make_model(build.with_any_vocab(config), mesh), mesh
  )
  config_lib.check(
    processes.all_processes(os.path.isdir(path)),
    f'--workdir={path} does not exist',
  )
  newest = checkpoints.agreed_newest() or 0
  is_grown = not config.growth.at_step or newest > config.growth.at_step
  return assemble(config, path, mesh, checkpoints, is_grown=is_grown)


def assemble(
  config: config_lib.Config,
  path: pathlib.Path,
  mesh: Mesh,
  checkpoints: checkpointer.Checkpointer,
  *,
  is_grown: bool = True,
) -> Run:
  """A run of a folder that holds its tokenizer.

  Args:
    config: what was asked for.
    path: the folder.
    mesh: of all devices.
    checkpoints: in the folder.
    is_grown: False: with the model that it has before `growth.at_step`.

  Raises:
    ConfigError: the folder holds another model, or no tokenizer.
  """
  if checkpoints.steps():
    _check_same_model(path, config)
  words = _load_tokenizer(path, config)
  _check_same_tokenizer(path, words, checkpoints)
  if not is_grown:
    model = config.growth.before(config.model)
    config = dataclasses.replace(config, model=model)
  config = build.with_vocab(config, words.vocab_size)
  config_lib.check(
    processes.same_on_all_processes(config_lib.to_json(config)),
    f'--workdir={path}: what was asked for is not the config of every process; '
    'start all of them alike',
  )
  model = build.make_model(config, mesh)
  logging.info('attention: %s', model.config.attention_kernel)
  return Run(config, path, words, model, mesh, checkpoints)


def make_mesh(config: config_lib.Config) -> Mesh:
  """The mesh of all devices, which batches and stages divide.

  Raises:
    ConfigError: they do not.
  """
  config_lib.check(
    not jax.config.jax_disable_jit,  # pyright: ignore
    'JAX_DISABLE_JIT is set, and steps are compiled ahead of time; unset it',
  )
  mesh = mesh_lib.make_mesh(config.parallel)
  for field, size in (
    ('data.batch_size', config.data.batch_size),
    ('evaluate.batch_size', config.evaluate.batch_size),
  ):
    if size is not None:
      sharding.check_batch(mesh, size, field)
  pipeline.check(config, mesh)
  return mesh


def open_checkpoints(
  config: config_lib.Config, path: pathlib.Path
) -> checkpointer.Checkpointer:
  """The checkpoints of a folder, which may not be there yet.

  Raises:
    ConfigError: Orbax cannot write to a folder of this name.
  """
  try:
    return checkpointer.Checkpointer(
      path / 'checkpoints', config.train.keep_last, config.train.keep_best
    )
  except checkpointer.PathError as error:
    raise config_lib.ConfigError(f'--workdir={path}: {error}') from error


def _check_same_model(path: pathlib.Path, config: config_lib.Config):
  """Refuses a folder of another model; says what else has changed.

  Raises:
    ConfigError: it holds another model, or no config that tells.
  """
  saved = saved_config(path)
  differences = list(changes(saved, config))
  sections = ['model.', 'tokenizer.', 'tune.']
  if saved.compress.is_stored or config.compress.is_stored:
    sections.append('compress.')
  for field, before, value in differences:
    config_lib.check(
      not field.startswith(tuple(sections)) or field in NUMERICS_FIELDS,
      f'--workdir={path} holds another model: {field} is {before} there and '
      f'{value} here; use another --workdir or the same config',
    )
  for field, before, value in differences:
    if not field.startswith(_OF_USE):
      logging.info(
        '%s was %s in this workdir and is now %s', field, before, value
      )


def saved_config(path: pathlib.Path) -> config_lib.Config:
  """The config of the run in a folder that has checkpoints.

  Raises:
    ConfigError: it cannot be read.
  """
  try:
    return config_lib.read(path / CONFIG_FILE)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(
      f'--workdir={path} has checkpoints but no readable {CONFIG_FILE}: {error}'
    ) from error


def changes(then: Any, now: Any, path: str = '') -> Iterator[tuple]:
  """Fields of two configs that differ, as `section.field`, with both values."""
  for field in dataclasses.fields(then):
    before, value = getattr(then, field.name), getattr(now, field.name)
    name = f'{path}.{field.name}'.lstrip('.')
    if dataclasses.is_dataclass(before):
      yield from changes(before, value, name)
    # The tokenizer decides where the config does not.
    elif before != value and not (name in _TOKENIZER_FIELDS and value is None):
      yield name, before, value


def _load_tokenizer(
  path: pathlib.Path, config: config_lib.Config
) -> tokenizer_lib.Tokenizer:
  """The tokenizer that a folder holds.

  Raises:
    ConfigError: there is none, or the token table is too small for it.
  """
  file = path / TOKENIZER_FILE
  check_tokenizer_file(file)
  config_lib.check(
    os.path.isfile(file),
    f'--workdir={path} holds no trained run: no {file.name}',
  )
  words = tokenizer_lib.load(file)
  rows = config.model.vocab_size
  least = words.vocab_size + config.model.num_placeholders
  config_lib.check(
    rows is None or rows >= least,
    f'model.vocab_size={rows} must be at least {least}: {words.vocab_size} of '
    'the tokenizer and a placeholder for each kind of media',
  )
  return words


def check_tokenizer_file(file: pathlib.Path):
  """ConfigError for what is there and is no file."""
  if file.exists():
    try:
      host.check_regular(file)
    except OSError as error:
      raise config_lib.ConfigError(f'{file}: {error.strerror}') from error


def _check_same_tokenizer(
  path: pathlib.Path,
  words: tokenizer_lib.Tokenizer,
  checkpoints: checkpointer.Checkpointer,
):
  """Refuses a tokenizer file that is not that of the newest checkpoint."""
  for step in reversed(checkpoints.steps()):
    try:
      manifest = checkpoints.manifest(step)
    except checkpointer.DamageError:
      continue
    match manifest:
      case {'data': {'fingerprint': {'tokenizer': then}}}:
        config_lib.check(
          then == words.fingerprint,
          f'{path / TOKENIZER_FILE} is not the tokenizer that the model in '
          f'--workdir={path} was trained with: the file has changed; put the '
          'one of a copy of the run in its place',
        )
    return


def device_batches(
  run: Run,
  source: loader_lib.Loader,
  batches: Iterable[batch_lib.Batch],
) -> Iterator[batch_lib.Batch]:
  """The loader's batches as global arrays, put on devices a little ahead."""
  queue: collections.deque = collections.deque()
  for batch in batches:
    queue.append(
      sharding.put_batch(run.mesh, batch, source.rows, source.batch_size)
    )
    if len(queue) >= _BATCHES_AHEAD:
      yield queue.popleft()
  yield from queue
