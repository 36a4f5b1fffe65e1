"""Another run, from whose parameters a run starts: `train.init_from`."""

import logging
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import tokenizer as tokenizer_lib
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

  def restore(self, abstract: Any) -> Any:
    """Its parameters, as they would be evaluated, as plain arrays.

    Raises:
      ConfigError: no checkpoint is whole, or a parameter does not fit.
    """
    params, unused = self.base.read(abstract)
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
