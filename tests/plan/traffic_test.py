"""Bytes that a program reads and writes."""

import plan_programs
from gemini_jax.plan import hlo, traffic


def test_traffic_is_of_slices_and_off_chip():
  """A round reads a slice and x, and writes x; the slice stays on the chip."""
  counter = 2 * 4 + 4  # read i and 1, write i + 1
  slice_read = 16 * 16 * 4 + 4
  product = 2 * 8 * 16 * 4
  expected = 5 * (counter + slice_read + product)
  assert traffic.num_bytes(hlo.parse(plan_programs.LOOP)) == expected
