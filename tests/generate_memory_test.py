"""What generation holds in memory, at the sizes of a real model."""

import generate_memory_study


def test_generation_holds_the_parameters_twice_at_most(tmp_path):
  """Beyond what imports take; the state of AdamW stays on the disk."""
  assert generate_memory_study.measure(tmp_path) <= 2
