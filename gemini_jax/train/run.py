"""A run: what its config and its folder make, put together once."""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.checkpoint import checkpointer
from gemini_jax.data import loader, tokenizer
from gemini_jax.kernels import dot_product_attention
from gemini_jax.models import gemini
from gemini_jax.parallel import pipeline, processes, sharding
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import metrics_file
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import step as step_lib

CONFIG_FILE = config_lib.FILE
TOKENIZER_FILE = 'tokenizer'
# The token table gets a multiple of this many rows: it then divides evenly.
_VOCAB_MULTIPLE = 64
# Fields of the model that change how a run computes, not what it computes.
_FREE = (
  *('model.scan_layers', 'model.remat', 'model.remat_save'),
  *('model.remat_offload', 'model.attention_kernel', 'model.context_parallel'),
  *('model.dtype', 'model.dropout'),
)
_OF_TOKENIZER = ('model.vocab_size', 'model.text_vocab_size')
# Batches on the device ahead of the step that reads them.
_ON_DEVICE = 2
# Checkpoints that are tried while the run that trains removes them.
_READS = 10


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts that every mode works with.

  Attributes:
    config: resolved: `model.vocab_size` and `text_vocab_size` are set.
    workdir: the folder of the run.
    tokenizer: trained or loaded.
    model: the network.
    optimizer: its update rule.
    mesh: all devices.
    abstract: shapes and shardings of the training state.
    checkpoints: what was saved.
    lock: held while the run trains.
  """

  config: config_lib.Config
  workdir: pathlib.Path
  tokenizer: tokenizer.Tokenizer
  model: gemini.Gemini
  optimizer: optax.GradientTransformationExtraArgs
  mesh: Mesh
  abstract: step_lib.TrainState
  checkpoints: checkpointer.Checkpointer
  lock: lock_lib.Lock

  def loader(self, split: loader.Split) -> loader.Loader:
    """The batches of a split, this process's share of each."""
    batch_size = self.config.data.batch_size
    if split != 'train':
      batch_size = self.config.evaluate.batch_size or batch_size
    return loader.Loader(
      self.config.data,
      self.tokenizer,
      split,
      seed=self.config.train.seed,
      batch_size=batch_size,
      rows=sharding.local_rows(self.mesh, batch_size),
      model=self.config.model,
    )

  def write_config(self):
    """Keeps the config in the folder of the run, once nothing refuses it.

    Raises:
      ConfigError: it cannot be written.
    """
    path = self.workdir / CONFIG_FILE

    def write():
      try:
        host.replace_file(path, config_lib.to_json(self.config).encode())
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
        self.checkpoints.clean()
      except checkpointer.PathError as error:
        raise config_lib.ConfigError(str(error)) from error

    processes.on_process_zero(remove)

  def restore(self, which: str = 'latest') -> checkpointer.Restored:
    """The newest checkpoint, or the best by validation loss, to read only.

    Raises:
      ConfigError: there is none that is whole.
    """
    for _ in range(_READS):
      config_lib.check(
        bool(self.checkpoints.steps()),
        f'--workdir={self.workdir} holds no checkpoint; train first with '
        '--mode=train',
      )
      best, remedy = None, 'put a copy of one back'
      if which == 'best':
        best = self.checkpoints.best()
        remedy = 'use --config.generate.checkpoint=latest'
        config_lib.check(
          best is not None,
          f'generate.checkpoint=best: no checkpoint of --workdir='
          f'{self.workdir} was saved at a step that was validated; {remedy}',
        )
      try:
        restored = self.checkpoints.restore(
          self.abstract, best, set_aside=False
        )
      except checkpointer.DamageError as error:
        if best is not None and best not in self.checkpoints.steps():
          # The run that trains has removed it for a better one.
          continue
        where = f'{self.checkpoints.path(best)} is damaged: ' if best else ''
        raise config_lib.ConfigError(f'{where}{error}; {remedy}') from error
      if restored is not None:
        return restored
    raise config_lib.ConfigError(f'--workdir={self.workdir} was emptied')

  def resume(self) -> checkpointer.Restored | None:
    """The newest checkpoint, to train on from; None where a run begins.

    Raises:
      ConfigError: what was trained here is damaged or lost, and training
        would overwrite the rest of it.
    """
    try:
      restored = self.checkpoints.restore(self.abstract)
    except checkpointer.DamageError as error:
      raise config_lib.ConfigError(
        f'{error}; {_begin(self.workdir)}'
      ) from error
    size = self._check_manifest(restored) if restored else 0
    metrics_file.check(self.workdir, size)
    return restored

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
      f'{self.checkpoints.path(restored.step)} cannot be gone on from: its '
      f'{checkpointer.MANIFEST} lacks data, config, metrics_bytes or results '
      'as a training saves them',
    )
    return size  # pyright: ignore


def open_run(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  *,
  create: bool,
  lock: lock_lib.Lock | None = None,
) -> Run:
  """Puts a run together, before any work on a device.

  Args:
    config: what was asked for.
    workdir: the folder of the run.
    create: for training: makes the folder, and trains a tokenizer if there
      is no checkpoint yet. The config of a run that begins is written; that of
      one that goes on by `Run.write_config`, once nothing can refuse it.
    lock: acquired before anything in the folder is changed.

  Raises:
    ConfigError: the folder cannot be used, holds another model, or the
      config does not fit the devices.
  """
  config_lib.check(
    not jax.config.jax_disable_jit,  # pyright: ignore
    'JAX_DISABLE_JIT is set, and steps are compiled ahead of time; unset it',
  )
  path = pathlib.Path(workdir)
  mesh = sharding.make_mesh(config.parallel)
  for field, size in (
    ('data.batch_size', config.data.batch_size),
    ('evaluate.batch_size', config.evaluate.batch_size),
  ):
    if size is not None:
      sharding.check_batch(mesh, size, field)
  pipeline.check(config, mesh)
  try:
    checkpoints = checkpointer.Checkpointer(
      path / 'checkpoints', config.train.keep_last, config.train.keep_best
    )
  except checkpointer.PathError as error:
    raise config_lib.ConfigError(f'--workdir={path}: {error}') from error
  # The shapes alone tell whether the mesh fits, before any data is read.
  _, _, abstract = abstract_parts(with_vocab(config, 1 << 20), mesh)
  if create:
    optimizer_lib.check_patterns(config.optimizer, abstract.params, tell=False)
    _make_writable(path, lock)
  elif not processes.all_processes(os.path.isdir(path)):
    raise config_lib.ConfigError(f'--workdir={path} does not exist')
  if checkpoints.steps():
    _check_same_run(path, config, mesh)
  elif create:
    _check_not_lost(path, config, checkpoints)
  words = _open_tokenizer(path, config, create, bool(checkpoints.steps()))
  _check_same_tokenizer(path, words, checkpoints)
  config = with_vocab(config, words.vocab_size)
  config_lib.check(
    processes.same_on_all_processes(config_lib.to_json(config)),
    f'--workdir={path}: what was asked for is not the config of every process; '
    'start all of them alike',
  )
  model, optimizer, abstract = abstract_parts(config, mesh)
  logging.info('attention: %s', model.config.attention_kernel)
  if create:
    optimizer_lib.check_patterns(config.optimizer, abstract.params)
  return Run(
    config,
    path,
    words,
    model,
    optimizer,
    mesh,
    abstract,
    checkpoints,
    lock or lock_lib.Lock(),
  )


def _begin(path: pathlib.Path) -> str:
  """What a user can do whose checkpoints are of no use."""
  return (
    'put a copy of one back, or begin anew in another --workdir, or here '
    f'after moving {metrics_file.FILE} and checkpoints away from {path}'
  )


def _check_not_lost(
  path: pathlib.Path,
  config: config_lib.Config,
  checkpoints: checkpointer.Checkpointer,
):
  """Refuses to begin where a training has lost its checkpoints."""
  damaged = checkpoints.damaged()
  config_lib.check(
    not damaged,
    f'--workdir={path} holds damaged checkpoints alone, '
    f'{", ".join(folder.name for folder in damaged)}; {_begin(path)}',
  )
  # A run that was killed before its first save has none either, and one that
  # was killed in it has left something behind.
  train = config.train
  if (path / CONFIG_FILE).exists():
    train = config_lib.read(path / CONFIG_FILE).train
  first = min(train.save_every, train.num_steps)
  line = next(metrics_file.newest_lines(path), {'step': 0})
  # What is evaluated was saved before.
  saved = line['step'] > first or (
    line['step'] == first and 'train/loss' not in line
  )
  config_lib.check(
    not saved or checkpoints.has_leftovers(),
    f'{path / metrics_file.FILE} goes to step {line["step"]:,}, but there is '
    f'no checkpoint; {_begin(path)}',
  )


def with_vocab(config: config_lib.Config, size: int) -> config_lib.Config:
  """The config with a token table for a tokenizer of `size` tokens."""
  rows = config.model.vocab_size
  if rows is None:
    least = size + (len(config_lib.KINDS) if config.model.kinds else 0)
    rows = -(-least // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
  text = config.model.text_vocab_size or min(size, rows)
  model = dataclasses.replace(
    config.model, vocab_size=rows, text_vocab_size=text
  )
  return dataclasses.replace(config, model=model)


def make_model(config: config_lib.Config, mesh: Mesh) -> gemini.Gemini:
  """The network as it runs on the devices of a mesh.

  Raises:
    ConfigError: an attention kernel asked for by name is not there, or not
      for this model.
  """
  kernel = dot_product_attention.choose(
    config.model.attention_kernel,
    mesh.devices.flat[0].platform,
    plain='parallel.sequence above 1'
    if mesh.shape['sequence'] > 1
    else 'model.latent.memory above 0'
    if config.model.latent.dim and config.model.latent.memory
    else '',
  )
  model = dataclasses.replace(config.model, attention_kernel=kernel)
  config_lib.check(
    kernel != 'cudnn'
    or (model.dtype == 'bfloat16' and not model.attention_softcap),
    "model.attention_kernel='cudnn' needs model.dtype='bfloat16' and "
    'model.attention_softcap=0',
  )
  return gemini.Gemini(model, pipeline.make_schedule(config.parallel))


def abstract_parts(
  config: config_lib.Config, mesh: Mesh
) -> tuple[Any, Any, step_lib.TrainState]:
  """Model, optimizer, and the shapes and shardings of the training state."""
  model = make_model(config, mesh)
  optimizer = optimizer_lib.make_optimizer(
    config.optimizer, config.train.num_steps
  )
  return (
    model,
    optimizer,
    step_lib.abstract_state(config, model, optimizer, mesh),
  )


def _make_writable(path: pathlib.Path, lock: lock_lib.Lock | None):
  """Makes the folder, and sees that it is one for all processes."""
  probe = path / '.writable'

  def write():
    try:
      path.mkdir(parents=True, exist_ok=True)
      if lock is not None:
        lock.acquire(path)
      probe.unlink(missing_ok=True)
      probe.open('x').close()
    except OSError as error:
      raise config_lib.ConfigError(
        f'--workdir={path} cannot be written: {error.strerror}'
      ) from error

  processes.on_process_zero(write)
  shared = processes.all_processes(probe.exists())
  processes.on_process_zero(lambda: probe.unlink(missing_ok=True))
  config_lib.check(
    shared, f'--workdir={path} must be a folder that all processes share'
  )


def _check_same_run(path: pathlib.Path, config: config_lib.Config, mesh: Mesh):
  """Refuses a folder of another model or state; says what else has changed."""
  try:
    then = config_lib.read(path / CONFIG_FILE)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(
      f'--workdir={path} has checkpoints but no readable {CONFIG_FILE}: {error}'
    ) from error
  changes = list(_changes(then, config))
  for field, before, value in changes:
    config_lib.check(
      not field.startswith(('model.', 'tokenizer.')) or field in _FREE,
      f'--workdir={path} holds another model: {field} is {before} there and '
      f'{value} here; use another --workdir or the same config',
    )
  state = [
    f'{field} is {before} there and {value} here'
    for field, before, value in changes
    if field.startswith(('optimizer.', 'train.'))
  ]
  # On the devices that are here now.
  free = [field.removeprefix('model.') for field in _FREE]
  free_values = {field: getattr(config.model, field) for field in free}
  then = dataclasses.replace(
    then,
    model=dataclasses.replace(then.model, **free_values),
    parallel=config.parallel,
  )
  config_lib.check(
    not state or _state_shapes(then, mesh) == _state_shapes(config, mesh),
    f'--workdir={path} holds another state of training: {"; ".join(state)}; '
    'use another --workdir or the same values',
  )
  for field, before, value in changes:
    if not field.startswith(('evaluate.', 'generate.', 'plan.')):
      logging.info(
        '%s was %s in this workdir and is now %s', field, before, value
      )


def _changes(then: Any, now: Any, path: str = '') -> Iterator[tuple]:
  """Fields of two configs that differ, as `section.field`, with both values."""
  for field in dataclasses.fields(then):
    before, value = getattr(then, field.name), getattr(now, field.name)
    name = f'{path}.{field.name}'.lstrip('.')
    if dataclasses.is_dataclass(before):
      yield from _changes(before, value, name)
    # The tokenizer decides where the config does not.
    elif before != value and not (name in _OF_TOKENIZER and value is None):
      yield name, before, value


def _state_shapes(config: config_lib.Config, mesh: Mesh) -> list[tuple]:
  """Path, shape and type of every array of the training state."""
  # Of any table: that of the tokens is compared with the model.
  model = dataclasses.replace(
    config.model, vocab_size=_VOCAB_MULTIPLE, text_vocab_size=None
  )
  config = dataclasses.replace(config, model=model)
  state = abstract_parts(config, mesh)[2]
  return [
    (jax.tree_util.keystr(name), leaf.shape, leaf.dtype)
    for name, leaf in jax.tree_util.tree_leaves_with_path(state)
  ]


def _check_same_tokenizer(
  path: pathlib.Path,
  words: tokenizer.Tokenizer,
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


def _open_tokenizer(
  path: pathlib.Path, config: config_lib.Config, create: bool, resumes: bool
) -> tokenizer.Tokenizer:
  file = path / TOKENIZER_FILE
  if file.exists():
    try:
      host.check_regular(file)
    except OSError as error:
      raise config_lib.ConfigError(f'{file}: {error.strerror}') from error
  if resumes or not create:
    config_lib.check(
      os.path.isfile(file),
      f'--workdir={path} holds no trained run: no {file.name}',
    )
    words = tokenizer.load(file)
  else:

    def make():
      tokenizer.build(
        config.tokenizer, lambda: loader.texts(config.data, 'train')
      ).save(file)

    processes.on_process_zero(make)
    words = tokenizer.load(file)
  rows = config.model.vocab_size
  least = words.vocab_size + bool(config.model.kinds) * len(config_lib.KINDS)
  config_lib.check(
    rows is None or rows >= least,
    f'model.vocab_size={rows} must be at least {least}: {words.vocab_size} of '
    'the tokenizer and a placeholder for each kind of media',
  )
  return words


def device_batches(
  run: Run,
  source: loader.Loader,
  batches: Iterable[batch_lib.Batch],
) -> Iterator[batch_lib.Batch]:
  """The loader's batches as global arrays, put on devices a little ahead."""
  queue: collections.deque = collections.deque()
  for batch in batches:
    queue.append(
      sharding.put_batch(run.mesh, batch, source.rows, source.batch_size)
    )
    if len(queue) >= _ON_DEVICE:
      yield queue.popleft()
  yield from queue
