"""A run: what its config and its folder make, put together once."""

import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

import optax
from jax.sharding import Mesh

from gemini_jax import checkpoint
from gemini_jax import config as config_lib
from gemini_jax.data import loader, tokenizer
from gemini_jax.kernels import flash
from gemini_jax.models import gemini
from gemini_jax.parallel import cluster, pipeline, sharding
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import step as step_lib

CONFIG_FILE = 'config.json'
TOKENIZER_FILE = 'tokenizer'
# The token table gets a multiple of this many rows: it then divides evenly.
_VOCAB_MULTIPLE = 64


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
  """

  config: config_lib.Config
  workdir: pathlib.Path
  tokenizer: tokenizer.Tokenizer
  model: gemini.Gemini
  optimizer: optax.GradientTransformationExtraArgs
  mesh: Mesh
  abstract: step_lib.TrainState
  checkpoints: checkpoint.Checkpointer

  def loader(self, split: loader.Split) -> loader.Loader:
    """The batches of a split, this process's share of each."""
    batch_size = self.config.data.batch_size
    if split != 'train':
      batch_size = self.config.eval.batch_size or batch_size
    return loader.Loader(
      self.config.data,
      self.tokenizer,
      split,
      seed=self.config.train.seed,
      batch_size=batch_size,
      rows=sharding.local_rows(self.mesh, batch_size),
      model=self.config.model,
    )

  def restore(self, which: str = 'latest') -> checkpoint.Restored:
    """The newest checkpoint, or the best by validation loss.

    Raises:
      ConfigError: there is none.
    """
    best = self.checkpoints.best() if which == 'best' else None
    try:
      restored = self.checkpoints.restore(self.abstract, best)
    except checkpoint.DamageError as error:
      raise config_lib.ConfigError(
        f'the best checkpoint, {self.checkpoints.path(best or 0)}, is damaged '
        f'({error}); use --config.generate.checkpoint=latest'
      ) from error
    if restored is None:
      raise config_lib.ConfigError(
        f'--workdir={self.workdir} holds no checkpoint; train first with '
        '--mode=train'
      )
    return restored


def open_run(
  config: config_lib.Config, workdir: str | os.PathLike, *, create: bool
) -> Run:
  """Puts a run together, before any work on a device.

  Args:
    config: what was asked for.
    workdir: the folder of the run.
    create: for training: makes the folder, trains a tokenizer if there is
      none yet, and writes the resolved config.

  Raises:
    ConfigError: the folder cannot be used, holds another model, or the
      config does not fit the devices.
  """
  path = pathlib.Path(workdir)
  mesh = sharding.make_mesh(config.parallel)
  for field, size in (
    ('data.batch_size', config.data.batch_size),
    ('eval.batch_size', config.eval.batch_size),
  ):
    if size is not None:
      sharding.check_batch(mesh, size, field)
  pipeline.check(config, mesh)
  # The shapes alone tell whether the mesh fits, before any data is read.
  _, _, abstract = abstract_parts(with_vocab(config, 1 << 20), mesh)
  if create:
    optimizer_lib.check_patterns(config.optimizer, abstract.params)
    _make_writable(path)
  elif not cluster.everywhere(path.is_dir()):
    raise config_lib.ConfigError(f'--workdir={path} does not exist')
  checkpoints = checkpoint.Checkpointer(
    path / 'checkpoints', config.train.keep_last, config.train.keep_best
  )
  if checkpoints.steps():
    _check_same_model(path, config)
  words = _open_tokenizer(path, config, create, bool(checkpoints.steps()))
  config = with_vocab(config, words.vocab_size)
  if create:
    cluster.on_first(checkpoints.clean)
    _write_config(path / CONFIG_FILE, config)
  model, optimizer, abstract = abstract_parts(config, mesh)
  logging.info('attention: %s', model.config.attention_kernel)
  return Run(config, path, words, model, optimizer, mesh, abstract, checkpoints)


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
  kernel = flash.choose(
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


def _make_writable(path: pathlib.Path):
  """Makes the folder, and sees that it is one for all processes."""
  probe = path / '.writable'

  def write():
    try:
      path.mkdir(parents=True, exist_ok=True)
      probe.write_text('')
    except OSError as error:
      raise config_lib.ConfigError(
        f'--workdir={path} cannot be written: {error.strerror}'
      ) from error

  cluster.on_first(write)
  shared = cluster.everywhere(probe.exists())
  cluster.on_first(lambda: probe.unlink(missing_ok=True))
  config_lib.check(
    shared, f'--workdir={path} must be a folder that all processes share'
  )


def _filled(values: Any, defaults: Any) -> Any:
  """A nested dict, with the defaults of what it has not."""
  if not (isinstance(values, dict) and isinstance(defaults, dict)):
    return values
  return defaults | {
    name: _filled(value, defaults.get(name)) for name, value in values.items()
  }


def _check_same_model(path: pathlib.Path, config: config_lib.Config):
  """Refuses a folder of another model; says what else has changed."""
  try:
    then = json.loads((path / CONFIG_FILE).read_text())
  except (OSError, ValueError) as error:
    raise config_lib.ConfigError(
      f'--workdir={path} has checkpoints but no readable {CONFIG_FILE}: {error}'
    ) from error
  now = json.loads(config_lib.to_json(config))
  # What an earlier version did not know yet is off by default.
  then = _filled(then, json.loads(config_lib.to_json(config_lib.Config())))
  # These change how a run computes, not what it computes.
  free = {
    'scan_layers',
    'remat',
    'remat_save',
    'remat_offload',
    'attention_kernel',
    'over_sequence',
    'dtype',
    'dropout',
  }
  for section, values in now.items():
    for name, value in values.items():
      before = then[section][name]
      derived = name in ('vocab_size', 'text_vocab_size') and value is None
      if before == value or derived:
        continue
      config_lib.check(
        section not in ('model', 'tokenizer') or name in free,
        f'--workdir={path} holds another model: {section}.{name} is {before} '
        f'there and {value} here; use another --workdir or the same config',
      )
      if section not in ('eval', 'generate', 'plan'):
        logging.info(
          '%s.%s was %s in this workdir and is now %s',
          section,
          name,
          before,
          value,
        )


def _open_tokenizer(
  path: pathlib.Path, config: config_lib.Config, create: bool, resumes: bool
) -> tokenizer.Tokenizer:
  file = path / TOKENIZER_FILE
  if resumes or not create:
    config_lib.check(
      file.exists(), f'--workdir={path} holds no trained run: no {file.name}'
    )
    words = tokenizer.load(file)
  else:

    def make():
      tokenizer.build(
        config.tokenizer, lambda: loader.texts(config.data, 'train')
      ).save(file)

    cluster.on_first(make)
    words = tokenizer.load(file)
  rows = config.model.vocab_size
  least = words.vocab_size + bool(config.model.kinds) * len(config_lib.KINDS)
  config_lib.check(
    rows is None or rows >= least,
    f'model.vocab_size={rows} must be at least {least}: {words.vocab_size} of '
    'the tokenizer and a placeholder for each kind of media',
  )
  return words


def _write_config(path: pathlib.Path, config: config_lib.Config):
  text = config_lib.to_json(config)

  def write():
    draft = path.with_name(f'{path.name}.draft')
    draft.write_text(text)
    draft.replace(path)

  cluster.on_first(write)
  config_lib.check(
    cluster.everywhere(path.read_text() == text),
    f'{path} is not the config of every process; start all of them alike',
  )
