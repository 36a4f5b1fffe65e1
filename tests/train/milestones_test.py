"""What is due at a step follows from the config alone."""

import pytest

from gemini_jax import config as config_lib
from gemini_jax.train import milestones as milestones_lib


@pytest.mark.parametrize(
  ('has_held_out', 'evaluates'), [(True, [4, 8, 10]), (False, [10])]
)
def test_the_last_step_does_everything(has_held_out, evaluates):
  train = config_lib.Train(
    num_steps=10, log_every=3, eval_every=4, save_every=5
  )
  milestones = milestones_lib.Milestones(train, has_held_out)
  steps = range(1, 11)
  assert [s for s in steps if milestones.logs(s)] == [3, 6, 9, 10]
  assert [s for s in steps if milestones.saves(s)] == [5, 10]
  assert [s for s in steps if milestones.evaluates(s)] == evaluates
  validates = evaluates if has_held_out else []
  assert [s for s in steps if milestones.validates(s)] == validates


def test_where_a_validation_may_end_the_run_it_is_saved(caplog):
  stopping = config_lib.EarlyStopping(patience=1)
  train = config_lib.Train(
    num_steps=10, eval_every=3, save_every=5, early_stopping=stopping
  )
  milestones = milestones_lib.Milestones(train, True)
  saved = [step for step in range(1, 11) if milestones.saves(step)]
  assert saved == [3, 5, 6, 9, 10]
  milestones.warn()
  assert not caplog.text


@pytest.mark.parametrize(
  ('eval_every', 'save_every', 'keep_best', 'warns'),
  [
    (2, 3, True, True),
    (2, 4, True, False),
    (4, 2, True, False),
    (2, 3, False, False),
  ],
)
def test_checkpoints_that_are_not_validated_are_announced(
  eval_every, save_every, keep_best, warns, caplog
):
  train = config_lib.Train(
    eval_every=eval_every, save_every=save_every, keep_best=keep_best
  )
  milestones_lib.Milestones(train, False).warn()
  assert not caplog.text
  milestones_lib.Milestones(train, True).warn()
  assert ('only the checkpoints of every 6 steps' in caplog.text) == warns
