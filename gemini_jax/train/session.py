"""What training has beside the run: optimizer, state, lock, the way back in.

A session is opened on a folder to train there: it makes the folder and its
tokenizer where a run begins, and sees that one that goes on can do so.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.data import (
  classes,
  normalization,
  splits,
  tokenizer_training,
)
from gemini_jax.models import build
from gemini_jax.parallel import processes
from gemini_jax.train import folder, growing, metrics_file, restoring
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import starting_point as starting_point_lib
from gemini_jax.train import state as state_lib
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import tuning


@dataclasses.dataclass(frozen=True)
class Session:
  """A run that is being trained.

  Attributes:
    run: what every mode works with.
    optimizer: the update rule.
    abstract: shapes and shardings of the training state.
    final_model: the one that the run has at its end.
    lock: held while the run trains.
    starting_point: the run whose parameters this one begins with, if any.
    is_grown: whether the model has the sizes that it has at the end.
    smaller: the state of the newest checkpoint, if the run grows now.
    base: step and fingerprint of the parameters that are tuned, once they have
      been read; {}: none are tuned. Updated in place.
  """

  run: run_lib.Run
  optimizer: optax.GradientTransformationExtraArgs
  abstract: state_lib.TrainState
  final_model: config_lib.Model
  lock: lock_lib.Lock
  starting_point: starting_point_lib.StartingPoint | None = None
  is_grown: bool = True
  smaller: growing.Smaller | None = None
  base: dict[str, Any] = dataclasses.field(default_factory=dict)

  def init_state(self) -> state_lib.TrainState:
    """The state of a run that begins.

    Raises:
      ConfigError: the parameters of `train.init_from` cannot be used.
    """
    config = self.run.config
    if self.starting_point is None:
      return state_lib.init_state(
        config, self.run.model, self.optimizer, self.abstract
      )
    params = self.starting_point.restore(config, self.run.mesh)
    if config.tune.method != 'full':
      self.base.update(self.starting_point.base.identity(params))
    params = base_lib.with_classes(params, self.abstract.params)
    if config.tune.method != 'full':
      abstract = self.abstract.params
      own = tuning.drawn(config, abstract, params)
      params = tuning.attached(config.tune, own, params, abstract)
    return state_lib.state_from_params(
      config, self.optimizer, self.abstract, params
    )

  def write_config(self):
    """Keeps the config in the folder of the run, once nothing refuses it.

    Raises:
      ConfigError: it cannot be written.
    """
    path = self.run.workdir / run_lib.CONFIG_FILE
    config = self.run.config
    model = dataclasses.replace(
      self.final_model,
      vocab_size=config.model.vocab_size,
      text_vocab_size=config.model.text_vocab_size,
    )
    text = config_lib.to_json(dataclasses.replace(config, model=model))

    def write():
      try:
        host.replace_file(path, text.encode())
      except OSError as error:
        raise config_lib.ConfigError(
          f'{path} cannot be written: {error.strerror}'
        ) from error

    processes.on_process_zero(write)

  def clean(self):
    """Removes what an interrupted save left behind.

    Raises:
      ConfigError: a folder that is not ours is where a checkpoint would be.
    """

    def remove():
      try:
        self.run.checkpoints.clean()
      except checkpointer.PathError as error:
        raise config_lib.ConfigError(str(error)) from error

    processes.on_process_zero(remove)

  def resume(self) -> checkpointer.Restored | None:
    """The newest checkpoint, to train on from; None where a run begins.

    Raises:
      ConfigError: what was trained here is damaged or lost, and training
        would overwrite the rest of it; or it tunes what is not there any more.
    """
    run = self.run
    saved = self.smaller or growing.Smaller(
      run.config, state_lib.saved(run.config, self.abstract)
    )
    try:
      restored = restoring.restore(
        run.checkpoints, saved.config, saved.abstract
      )
    except checkpointer.DamageError as error:
      raise config_lib.ConfigError(
        f'{error}; {folder.advice(run.workdir)}'
      ) from error
    size = self._check_manifest(restored) if restored else 0
    metrics_file.check(run.workdir, size)
    if restored is not None and self.smaller is not None:
      state = growing.grown_state(
        restored.state, self.smaller.config, run.config, self.abstract
      )
      return dataclasses.replace(restored, state=state)
    if restored is None or run.config.tune.method == 'full':
      return restored
    params = base_lib.with_base(
      run.config, run.model, run.mesh, restored.state.params, restored.manifest
    )
    self.base.update(restored.manifest[base_lib.KEY])
    state = dataclasses.replace(restored.state, params=params)
    return dataclasses.replace(restored, state=state)

  def _check_manifest(self, restored: checkpointer.Restored) -> int:
    """Of what a training saved, `metrics_bytes`."""
    manifest = restored.manifest
    data, size, results = (
      manifest.get(name) for name in ('data', 'metrics_bytes', 'results')
    )
    config, observed = manifest.get('config', {}), manifest.get('observed')
    config_lib.check(
      isinstance(data, dict)
      and isinstance(data.get('fingerprint'), dict)
      and type(data.get('next_batch')) is int
      and isinstance(config, dict)
      and all(isinstance(section, dict) for section in config.values())
      and (observed is None or isinstance(observed, (int, float)))
      and type(size) is int
      and size >= 0
      and isinstance(results, dict)
      and all(isinstance(value, (int, float)) for value in results.values()),
      f'{self.run.checkpoints.path(restored.step)} cannot be gone on from: its '
      f'{checkpointer.MANIFEST} lacks data, config, metrics_bytes or results '
      'as a training saves them',
    )
    return size  # pyright: ignore


def open_session(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  lock: lock_lib.Lock | None = None,
  *,
  is_grown: bool = True,
) -> Session:
  """Puts together what training needs, before any work on a device.

  Makes the folder, and a tokenizer if there is no checkpoint yet. The config
  is written by `Session.write_config`, once nothing can refuse it.

  Args:
    config: what was asked for.
    workdir: the folder of the run.
    lock: acquired before anything in the folder is changed.
    is_grown: False: to train up to `growth.at_step`.

  Raises:
    ConfigError: the folder cannot be used, holds another model or state, or
      the config does not fit the devices.
  """
  path = pathlib.Path(workdir)
  config_lib.check(
    not config.compress.is_stored,
    f'--workdir={path} holds compressed parameters and no training; give '
    f'another config and --workdir, and --config.train.init_from={path}',
  )
  config = _with_whole_path(config)
  mesh = run_lib.make_mesh(config)
  checkpoints = run_lib.open_checkpoints(config, path)
  saved = run_lib.saved_config(path) if checkpoints.steps() else None
  config = classes.resolve(config, saved)
  config = normalization.resolve(config, saved)
  # The shapes alone tell whether the mesh fits, before any data is read.
  _, _, abstract = abstract_parts(build.with_any_vocab(config), mesh)
  state_lib.check_patterns(config, abstract.params, log=False)
  starting_point = None
  if not checkpoints.steps():
    config_lib.check(
      bool(config.train.init_from) or not config.data.rejected_field,
      f'data.rejected_field={config.data.rejected_field!r} tunes what was '
      'trained before; set train.init_from to the folder of a run',
    )
  if config.train.init_from and not checkpoints.steps():
    starting_point = starting_point_lib.StartingPoint(config)
  folder.make_writable(path, lock)
  if not checkpoints.steps():
    folder.check_not_lost(path, config, checkpoints)
    _make_tokenizer(path, config, starting_point)
  run = run_lib.assemble(config, path, mesh, checkpoints, is_grown=is_grown)
  if checkpoints.steps():
    folder.check_trained(path, checkpoints)
    _check_same_state(path, config, mesh)
  _, optimizer, abstract = abstract_parts(run.config, mesh)
  state_lib.check_patterns(config, abstract.params)
  if starting_point is not None:
    starting_point.check(run.config, mesh)
  smaller = None
  at_step = config.growth.at_step
  if is_grown and at_step and checkpoints.newest_whole() == at_step:
    model = config.growth.before(run.config.model)
    before = dataclasses.replace(run.config, model=model)
    smaller = growing.Smaller(before, abstract_parts(before, mesh)[2])
  return Session(
    run,
    optimizer,
    abstract,
    config.model,
    lock or lock_lib.Lock(),
    starting_point,
    is_grown,
    smaller,
  )


def _with_whole_path(config: config_lib.Config) -> config_lib.Config:
  """The config that names the base wherever it is read from."""
  if config.tune.method == 'full':
    return config
  path = os.path.abspath(host.expand_path(config.train.init_from))
  train = dataclasses.replace(config.train, init_from=path)
  return dataclasses.replace(config, train=train)


def abstract_parts(
  config: config_lib.Config, mesh: Mesh
) -> tuple[Any, Any, state_lib.TrainState]:
  """Model, optimizer, and the shapes and shardings of the training state."""
  model = build.make_model(config, mesh)
  optimizer = optimizer_lib.make_optimizer(
    config.optimizer, config.train.num_steps, config.tune
  )
  return (
    model,
    optimizer,
    state_lib.abstract_state(config, model, optimizer, mesh),
  )


def _check_same_state(
  path: pathlib.Path, config: config_lib.Config, mesh: Mesh
):
  """Refuses a folder whose checkpoints hold another state of training."""
  saved = run_lib.saved_config(path)
  state = [
    f'{field} is {before} there and {value} here'
    for field, before, value in run_lib.changes(saved, config)
    if field.startswith(('optimizer.', 'train.'))
  ]
  # On the devices that are here now.
  names = [
    field.removeprefix('model.')
    for field in run_lib.NUMERICS_FIELDS
    if field.startswith('model.')
  ]
  values = {name: getattr(config.model, name) for name in names}
  saved = dataclasses.replace(
    saved,
    model=dataclasses.replace(saved.model, **values),
    parallel=config.parallel,
  )
  config_lib.check(
    not state or _state_shapes(saved, mesh) == _state_shapes(config, mesh),
    f'--workdir={path} holds another state of training: {"; ".join(state)}; '
    'use another --workdir or the same values',
  )


def _state_shapes(config: config_lib.Config, mesh: Mesh) -> list[tuple]:
  """Path, shape and type of every array that a run must have to go on.

  Extensions may come and go; see `restoring`.
  """
  # Of any table: that of the tokens is compared with the model.
  model = dataclasses.replace(
    config.model, vocab_size=build.VOCAB_MULTIPLE, text_vocab_size=None
  )
  config = dataclasses.replace(config, model=model)
  state = abstract_parts(config, mesh)[2]
  return [
    (jax.tree_util.keystr(name), leaf.shape, leaf.dtype)
    for name, leaf in jax.tree_util.tree_leaves_with_path(
      (state.params, state.opt_state)
    )
  ]


def _make_tokenizer(
  path: pathlib.Path,
  config: config_lib.Config,
  starting_point: starting_point_lib.StartingPoint | None,
):
  """Trains the tokenizer of a run that begins, or takes over another run's."""
  file = path / run_lib.TOKENIZER_FILE
  run_lib.check_tokenizer_file(file)

  def make():
    if starting_point is not None:
      starting_point.tokenizer().save(file)
      return
    tokenizer_training.build(
      config.tokenizer, lambda: splits.texts(config.data, 'train')
    ).save(file)

  processes.on_process_zero(make)
