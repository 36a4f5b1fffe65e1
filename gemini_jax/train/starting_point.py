"""Another run, from whose parameters a run starts: `train.init_from`."""

import dataclasses
import logging
from typing import Any

from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.config import growth as growth_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.models import build
from gemini_jax.train import growing
from gemini_jax.weights import base as base_lib


class StartingPoint:
  """The run in the folder `train.init_from`.

  Attributes:
    base: its parameters.
  """

  def __init__(self, config: config_lib.Config):
    """Opens it.

    Raises:
      ConfigError: there is no run with a checkpoint.
    """
    self._config = config
    self.base = base_lib.Base(config)

  def tokenizer(self) -> tokenizer_lib.Tokenizer:
    """Its tokenizer, by which the rows of its token table have a meaning.

    Raises:
      ConfigError: another one is asked for.
    """
    field = self.base.field
    for name, there, here in run_lib.changes(
      self.base.config.tokenizer, self._config.tokenizer, 'tokenizer'
    ):
      raise config_lib.ConfigError(
        f'{field}: {name} is {there} there and {here} here; its '
        'parameters need its tokenizer, so give the same values'
      )
    path = self.base.path / run_lib.TOKENIZER_FILE
    run_lib.check_tokenizer_file(path)
    config_lib.check(path.exists(), f'{field} has no {path.name}')
    return tokenizer_lib.load(path)

  def model(self, config: config_lib.Config) -> config_lib.Model:
    """The run's own model, or one of the other run's sizes, if it grows.

    Raises:
      ConfigError: the other run's sizes cannot become those of this one.
    """
    if config.growth.method == 'none':
      return config.model
    there = self.base.config.model
    before = growth_lib.with_sizes(config.model, growth_lib.sizes(there))
    growth_lib.check_sizes(config.growth, before, config.model, self.base.field)
    return before

  def check(self, config: config_lib.Config, mesh: Mesh):
    """Sees that its newest checkpoint has what this run starts from.

    Raises:
      ConfigError: a parameter is missing there, or has another shape.
    """
    self.base.check(self.base.parts(config, self._abstract(config, mesh)))

  def _abstract(self, config: config_lib.Config, mesh: Mesh) -> Any:
    config = dataclasses.replace(config, model=self.model(config))
    return build.abstract_params(build.make_model(config, mesh), mesh)

  def restore(self, config: config_lib.Config, mesh: Mesh) -> Any:
    """Its parameters, as they would be evaluated, as plain arrays.

    They are larger where `growth.method` makes them so.

    Args:
      config: of this run, its vocabulary known.
      mesh: of the devices.

    Raises:
      ConfigError: no checkpoint is whole, or a parameter does not fit.
    """
    abstract = self.base.parts(config, self._abstract(config, mesh))
    params, unused = self.base.read(abstract)
    before = self.model(config)
    if before != config.model:
      whole = build.abstract_params(build.make_model(config, mesh), mesh)
      whole = self.base.parts(config, whole)
      params = growing.grown_params(params, before, config, whole)
    path = self.base.path
    logging.info(
      'starting with the parameters of step %d of %s', self.base.step, path
    )
    if unused:
      logging.warning(
        '%d parameters of %s have no place in this model, such as %s',
        *(len(unused), path, unused[0]),
      )
    for field, there, here in run_lib.changes(
      self.base.config.model, self._config.model, 'model'
    ):
      if field not in run_lib.NUMERICS_FIELDS:
        logging.warning('%s is %s in %s and %s here', field, there, path, here)
    return params
