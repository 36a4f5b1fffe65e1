"""Whether a run ends before its last step, by its validations so far."""

import math
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib

# In the manifest of a checkpoint.
KEY = 'early_stopping'


class EarlyStopping:
  """Counts the validations since the last one that was an improvement.

  What is counted lies in the manifests of checkpoints, so that a run that was
  killed ends where it would have ended.

  Attributes:
    has_ended: whether the run had ended when the manifest was written; with a
      smaller patience than before it ends now.
  """

  def __init__(
    self, config: config_lib.EarlyStopping, manifest: Mapping[str, Any]
  ):
    """Goes on from a manifest; one of a run without it, or {}, has no count.

    Raises:
      ConfigError: the manifest holds no count.
    """
    saved = manifest.get(KEY, {'best': None, 'waited': 0})
    config_lib.check(
      isinstance(saved, dict)
      and isinstance(saved.get('best'), (float, int, type(None)))
      and type(saved.get('waited')) is int,
      f'the checkpoint holds {KEY}={str(saved)[:100]!r}, which is no count of '
      'validations',
    )
    self._config = config
    self._best: float | None = saved['best']
    self._waited: int = saved['waited']
    self.has_ended = saved.get('ended') is True

  @property
  def _lowest(self) -> float:
    return math.inf if self._best is None else self._best

  @property
  def is_over(self) -> bool:
    """Whether the run ends with the newest validation."""
    return 0 < self._config.patience <= self._waited

  @property
  def reason(self) -> str:
    """Why the run has ended, in a sentence; '' where it has not."""
    if not self.is_over:
      return ''
    margin = self._config.min_improvement
    return (
      f'Ended by train.early_stopping: none of the last {self._waited} '
      f'validation losses was below {self._lowest:.5g}'
      f'{f" by more than {margin}" if margin else ""}.'
    )

  def observe(self, loss: float):
    """Counts a validation."""
    if loss < self._lowest - self._config.min_improvement:
      self._best, self._waited = loss, 0
    else:
      self._waited += 1

  def saved(self) -> dict[str, Any]:
    """What a manifest keeps; {} where nothing is to end the run."""
    if not self._config.patience:
      return {}
    count = {'best': self._best, 'waited': self._waited}
    return {KEY: count | {'ended': self.is_over}}
