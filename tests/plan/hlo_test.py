"""Loops, products and traffic, read from the text of programs."""

import re

import pytest

from gemini_jax.plan import hlo, roofline

# A loop of 5 rounds with a product each, as TPU programs spell it: no note of
# how often it runs, layouts with tiles, one array in on-chip memory (S(1)).
LOOP = """HloModule jit_f

%cond (p.1: (s32[], f32[8,16], f32[5,16,16])) -> pred[] {
  %p.1 = (s32[], f32[8,16]{1,0:T(8,128)}, f32[5,16,16]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

%fused (a.2: f32[5,16,16], b.2: s32[]) -> f32[1,16,16] {
  %a.2 = f32[5,16,16] parameter(0)
  %b.2 = s32[] parameter(1)
  %z.2 = s32[] constant(0)
  ROOT %ds = f32[1,16,16] dynamic-slice(%a.2, %b.2, %z.2, %z.2)
}

%body (p.3: (s32[], f32[8,16], f32[5,16,16])) -> (s32[], f32[8,16]) {
  %p.3 = (s32[], f32[8,16]{1,0:T(8,128)}, f32[5,16,16]) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %x.3 = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p.3), index=1
  %w.3 = f32[5,16,16]{2,1,0} get-tuple-element(%p.3), index=2
  %one = s32[] constant(1)
  %slice = f32[1,16,16]{2,1,0:S(1)} fusion(%w.3, %i.3), kind=kLoop, calls=%fused
  %flat = f32[16,16]{1,0:S(1)} bitcast(%slice)
  %dot = f32[8,16]{1,0} dot(%x.3, %flat), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, metadata={op_name="layer/dot_general"}
  %next = s32[] add(%i.3, %one)
  ROOT %t.3 = (s32[], f32[8,16], f32[5,16,16]) tuple(%next, %dot, %w.3)
}

ENTRY %main (x: f32[8,16], w: f32[5,16,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %w = f32[5,16,16]{2,1,0} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], f32[8,16], f32[5,16,16]) tuple(%zero, %x, %w)
  %loop = (s32[], f32[8,16], f32[5,16,16]) while(%init), condition=%cond, \
body=%body
  ROOT %out = f32[8,16] get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
  assert hlo.flops(hlo.parse(LOOP)) == 5 * 2 * 8 * 16 * 16


def test_elements_of_tuples_may_be_written_short():
  """As XLA of jax 0.12 does: %p.3#1 instead of a line of its own."""
  short = LOOP
  for name in ('i.1', 'i.3', 'x.3', 'w.3'):
    line = re.search(rf'  %{name} = .*index=(\d)\n', short)
    short = short.replace(line[0], '').replace(
      f'%{name}', f'%p.{name[-1]}#{line[1]}'
    )
  assert short.count('#') == 6
  one, other = hlo.parse(short), hlo.parse(LOOP)
  assert hlo.flops(one) == hlo.flops(other)


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
  assert old in LOOP
  program = hlo.parse(LOOP.replace(old, new))
  assert hlo.flops(program) == rounds * 2 * 8 * 16 * 16


def test_traffic_is_of_slices_and_off_chip():
  """A round reads a slice and x, and writes x; the slice stays on the chip."""
  counter = 2 * 4 + 4  # read i and 1, write i + 1
  slice_read = 16 * 16 * 4 + 4
  product = 2 * 8 * 16 * 4
  expected = 5 * (counter + slice_read + product)
  assert roofline.traffic(hlo.parse(LOOP)) == expected


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
  assert hlo.flops(program) == 2 * (2 * 32 * 8 * 4)
  assert hlo.flops(program, grouped=0.25) == 2 * (2 * 32 * 8 * 4) / 4


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
  assert hlo.flops(hlo.parse(text)) == 2 * 4 * 8 * 32


@pytest.mark.parametrize(
  ('kind', 'bytes_'),
  [('pred', 6), ('bf16', 12), ('f32', 24), ('s64', 48), ('f8e4m3fn', 6)],
)
def test_bytes_of_a_type(kind, bytes_):
  assert hlo.Shape(kind, (2, 3), '').bytes == bytes_
