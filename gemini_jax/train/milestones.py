"""At which steps the loop logs, evaluates and saves."""

import dataclasses
import logging
import math

from gemini_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Milestones:
  """What is done after which update.

  Attributes:
    train: of the config.
    has_held_out: whether there is a held-out split.
  """

  train: config_lib.Train
  has_held_out: bool

  def is_last(self, step: int) -> bool:
    """Whether training ends with this update."""
    return step == self.train.num_steps

  def logs(self, step: int) -> bool:
    """Whether a line of training metrics is written."""
    return step % self.train.log_every == 0 or self.is_last(step)

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is saved."""
    # The run may end with any validation.
    ends = self.train.early_stopping.patience > 0 and self.validates(step)
    return ends or step % self.train.save_every == 0 or self.is_last(step)

  def validates(self, step: int) -> bool:
    """Whether the loss of held-out splits is measured."""
    every = self.train.eval_every
    return self.has_held_out and (step % every == 0 or self.is_last(step))

  def evaluates(self, step: int) -> bool:
    """Whether anything is evaluated or reported, once the step is saved."""
    return self.validates(step) or self.is_last(step)

  def warn(self):
    """Says so where few checkpoints are validated and can be the best."""
    every = math.lcm(self.train.eval_every, self.train.save_every)
    if not (self.has_held_out and self.train.keep_best):
      return
    if self.train.early_stopping.patience:
      return
    if every not in (self.train.eval_every, self.train.save_every):
      logging.warning(
        'train.keep_best: only the checkpoints of every %d steps, and the '
        'last, are validated and can be the best; let train.save_every=%d be '
        'a multiple of train.eval_every=%d, or the reverse',
        every,
        self.train.save_every,
        self.train.eval_every,
      )
