"""Another run, from whose parameters a run starts: `train.init_from`."""

import logging
import os
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer, parameters
from gemini_jax.data import tokenizer as tokenizer_lib


class StartingPoint:
  """The run in the folder `train.init_from`."""

  def __init__(self, config: config_lib.Config):
    """Opens it.

    Raises:
      ConfigError: there is no run with a checkpoint.
    """
    self._config = config
    self._path = host.expand_path(config.train.init_from)
    self._field = f'train.init_from={config.train.init_from}'
    config_lib.check(
      os.path.exists(self._path / run_lib.CONFIG_FILE),
      f'{self._field} is no folder of a run: it has no {run_lib.CONFIG_FILE}',
    )
    self._saved = config_lib.read(self._path / run_lib.CONFIG_FILE)
    self._checkpoints = run_lib.open_checkpoints(self._saved, self._path)
    config_lib.check(
      self._checkpoints.agreed_newest() is not None,
      f'{self._field} holds no checkpoint; train it first',
    )

  def tokenizer(self) -> tokenizer_lib.Tokenizer:
    """Its tokenizer, by which the rows of its token table have a meaning.

    Raises:
      ConfigError: another one is asked for.
    """
    for field, there, here in run_lib.changes(
      self._saved.tokenizer, self._config.tokenizer, 'tokenizer'
    ):
      raise config_lib.ConfigError(
        f'{self._field}: {field} is {there} there and {here} here; its '
        'parameters need its tokenizer, so give the same values'
      )
    path = self._path / run_lib.TOKENIZER_FILE
    run_lib.check_tokenizer_file(path)
    config_lib.check(path.exists(), f'{self._field} has no {path.name}')
    return tokenizer_lib.load(path)

  def check(self, abstract: Any):
    """Sees that its newest checkpoint has all parameters that are wanted.

    Args:
      abstract: shapes, types and shardings of the parameters.

    Raises:
      ConfigError: one is missing there, or has another shape.
    """
    try:
      step = max(self._checkpoints.steps())
      saved = self._checkpoints.manifest(step)['arrays']
    except checkpointer.DamageError:
      # An older one may be whole; `restore` looks.
      return
    self._select(saved, abstract)

  def restore(self, abstract: Any) -> Any:
    """Its parameters, as they would be evaluated.

    Raises:
      ConfigError: no checkpoint is whole, or a parameter does not fit.
    """
    select = lambda saved: self._select(saved, abstract).arrays
    try:
      restored = self._checkpoints.restore_arrays(select)
    except checkpointer.DamageError as error:
      raise config_lib.ConfigError(f'{self._field}: {error}') from error
    config_lib.check(restored is not None, f'{self._field} was emptied')
    assert restored is not None
    saved = restored.manifest['arrays']
    selection = self._select(saved, abstract)
    self._log(restored.step, parameters.unused(saved, selection))
    return selection.params(restored.state)

  def _select(
    self, saved: dict[str, str], abstract: Any
  ) -> parameters.Selection:
    selection = parameters.select(saved, abstract)
    misfit = parameters.first_misfit(saved, selection)
    config_lib.check(
      not misfit,
      f'{self._field} holds another model: {misfit}; give the same model',
    )
    return selection

  def _log(self, step: int, unused: list[str]):
    logging.info('starting with the parameters of step %d of %s', step, self)
    if unused:
      logging.warning(
        '%d parameters of %s have no place in this model, such as %s',
        *(len(unused), self, unused[0]),
      )
    for field, there, here in run_lib.changes(
      self._saved.model, self._config.model, 'model'
    ):
      if field not in run_lib.NUMERICS_FIELDS:
        logging.warning('%s is %s in %s and %s here', field, there, self, here)

  def __str__(self) -> str:
    return str(self._path)
