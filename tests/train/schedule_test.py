"""Learning rates at each step."""

import pytest

from gemini_jax import config as config_lib
from gemini_jax.train import schedule as schedule_lib

# (schedule, fields, {step: learning rate}) for 100 steps with peak 2.
SCHEDULES = {
  'constant': ({}, {0: 2, 50: 2, 100: 2}),
  'constant with warm-up': (
    {'schedule': 'constant', 'warmup_steps': 4},
    {0: 0.5, 1: 1, 2: 1.5, 3: 2, 4: 2, 50: 2, 100: 2},
  ),
  'one step of warm-up': (
    {'schedule': 'constant', 'warmup_steps': 1},
    {0: 2, 1: 2, 2: 2},
  ),
  'cosine': ({}, {0: 2, 50: 1.1, 100: 0.2}),
  'cosine with warm-up': (
    {'schedule': 'cosine', 'warmup_steps': 20},
    {0: 0.1, 19: 2, 20: 2, 60: 1.1, 100: 0.2},
  ),
  'cosine to nothing': (
    {'schedule': 'cosine', 'final_scale': 0.0},
    {0: 2, 25: 1 + 0.5**0.5, 100: 0},
  ),
  'four times a cosine': (
    {'schedule': 'cosine', 'cycles': 4, 'warmup_steps': 4},
    {0: 0.5, 3: 2, 4: 2, 16: 1.1, 28: 2, 52: 2, 64: 1.1, 100: 0.2},
  ),
  'cycles that do not divide': (
    {'schedule': 'cosine', 'cycles': 3},
    {0: 2, 17: 1.1, 34: 2, 68: 2, 85: 1.1},
  ),
  'wsd': ({}, {0: 2, 50: 2, 80: 2, 90: 1.1, 100: 0.2}),
  'wsd with warm-up': (
    {'schedule': 'wsd', 'warmup_steps': 20, 'decay_share': 0.5},
    {0: 0.1, 19: 2, 20: 2, 60: 2, 80: 1.1, 100: 0.2},
  ),
  'inverse_sqrt': ({}, {0: 2, 3: 1, 99: 0.2}),
  'inverse_sqrt with warm-up': (
    {'schedule': 'inverse_sqrt', 'warmup_steps': 4},
    {0: 0.5, 3: 2, 4: 2, 16: 1, 100: 0.4},
  ),
}


@pytest.mark.parametrize('case', SCHEDULES)
def test_schedules(case):
  fields, expected = SCHEDULES[case]
  config = config_lib.Optimizer(
    learning_rate=2.0, **({'schedule': case} | fields)
  )
  schedule = schedule_lib.make_schedule(config, 100)
  rates = {step: float(schedule(step)) for step in expected}
  assert rates == pytest.approx(expected, abs=1e-6)


def test_schedule_free_never_decays():
  config = config_lib.Optimizer(
    name='schedule_free', schedule='cosine', warmup_steps=2
  )
  schedule = schedule_lib.make_schedule(config, 100)
  assert float(schedule(0)) == pytest.approx(1.5e-3)
  assert float(schedule(100)) == pytest.approx(3e-3)
