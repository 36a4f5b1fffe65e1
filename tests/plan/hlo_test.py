"""The text of programs."""

import pytest

from gemini_jax.plan import hlo


@pytest.mark.parametrize(
  ('kind', 'bytes_'),
  [('pred', 6), ('bf16', 12), ('f32', 24), ('s64', 48), ('f8e4m3fn', 6)],
)
def test_bytes_of_a_type(kind, bytes_):
  assert hlo.Shape(kind, (2, 3), '').bytes == bytes_
