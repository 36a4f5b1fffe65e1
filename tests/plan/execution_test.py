"""What a program executes, counted from its text."""

import re

import plan_programs
from gemini_jax.plan import execution, hlo


def test_a_loop_counts_as_often_as_it_runs():
  assert execution.flops(hlo.parse(plan_programs.LOOP)) == 5 * 2 * 8 * 16 * 16


def test_elements_of_tuples_may_be_written_short():
  """As XLA of jax 0.12 does: %p.3#1 instead of a line of its own."""
  short = plan_programs.LOOP
  for name in ('i.1', 'i.3', 'x.3', 'w.3'):
    line = re.search(rf'  %{name} = .*index=(\d)\n', short)
    short = short.replace(line[0], '').replace(
      f'%{name}', f'%p.{name[-1]}#{line[1]}'
    )
  assert short.count('#') == 6
  one, other = hlo.parse(short), hlo.parse(plan_programs.LOOP)
  assert execution.flops(one) == execution.flops(other)


def test_a_ragged_product_counts_the_rows_of_its_groups():
  text = """ENTRY %main (x: f32[32,8], y: f32[32,4]) -> f32[2,8,4] {
  %x = bf16[32,8]{1,0} parameter(0)
  %y = bf16[32,4]{1,0} parameter(1)
  %k = bf16[2,8,4]{2,1,0} parameter(2)
  %s = s32[2]{0} parameter(3)
  %a = bf16[32,4]{1,0} ragged-dot(%x, %k, %s), lhs_contracting_dims={1}, \
rhs_contracting_dims={1}, lhs_ragged_dims={0}, rhs_group_dims={0}
  ROOT %b = bf16[2,8,4]{2,1,0} ragged-dot(%x, %y, %s), \
lhs_contracting_dims={0}, rhs_contracting_dims={0}, lhs_ragged_dims={0}
}
"""
  program = hlo.parse(text)
  assert execution.flops(program) == 2 * (2 * 32 * 8 * 4)
  assert execution.flops(program, grouped=0.25) == 2 * (2 * 32 * 8 * 4) / 4


def test_of_branches_the_larger_counts():
  text = """%wide (a: f32[4,8]) -> f32[4,32] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,32]{1,0} constant({...})
  %c = f32[4,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}
  ROOT %d = f32[] constant(1)
}

%narrow (e: f32[4,8]) -> f32[] {
  %e = f32[4,8]{1,0} parameter(0)
  %f = f32[8,2]{1,0} constant({...})
  %g = f32[4,2]{1,0} dot(%e, %f), lhs_contracting_dims={1}
  ROOT %h = f32[] constant(1)
}

ENTRY %main (x: f32[4,8], p: s32[]) -> f32[] {
  %x = f32[4,8]{1,0} parameter(0)
  %p = s32[] parameter(1)
  ROOT %y = f32[] conditional(%p, %x, %x), branch_computations={%narrow, %wide}
}
"""
  assert execution.flops(hlo.parse(text)) == 2 * 4 * 8 * 32
