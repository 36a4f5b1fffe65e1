"""Texts of compiled programs, shared by tests of plan."""

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
