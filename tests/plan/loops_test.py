"""How often loops run."""

import pytest

import plan_programs
from gemini_jax.plan import execution, hlo


@pytest.mark.parametrize(
  ('old', 'new', 'rounds'),
  [
    ('constant(5)', 'constant(7)', 7),
    ('direction=LT', 'direction=LE', 6),
    ('%zero = s32[] constant(0)', '%zero = s32[] constant(2)', 3),
    ('%one = s32[] constant(1)', '%one = s32[] constant(2)', 3),
    ('body=%body', 'body=%body, {"known_trip_count":{"n":"11"}}', 11),
  ],
)
def test_how_often_a_loop_runs(old, new, rounds):
  assert old in plan_programs.LOOP
  program = hlo.parse(plan_programs.LOOP.replace(old, new))
  assert execution.flops(program) == rounds * 2 * 8 * 16 * 16
