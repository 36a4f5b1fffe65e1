"""Collectives of a program, read from its text."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gemini_jax.plan import collectives, hlo


@pytest.mark.parametrize(
  ('attributes', 'expected'),
  [
    ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ('replica_groups={{0,2},{1,3}}, x=1', [[0, 2], [1, 3]]),
    ('replica_groups={}', [list(range(8))]),
    ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]]),
    (
      "replica_groups=mesh['a'=2,'b'=4] {'a'}",
      [[0, 4], [1, 5], [2, 6], [3, 7]],
    ),
  ],
)
def test_groups_are_read_in_every_spelling(attributes, expected):
  assert collectives.groups(attributes, 8).tolist() == expected


def test_collectives_of_a_partitioned_product():
  """A product whose inner dim is split: its sum crosses that axis."""
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2),
    ('a', 'b'),
    axis_types=(AxisType.Auto,) * 2,
  )

  def array(shape, *axes):
    where = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=where)

  out = NamedSharding(mesh, PartitionSpec('a'))
  compiled = (
    jax.jit(lambda x, y: x @ y, out_shardings=out)
    .lower(array((16, 32), 'a', 'b'), array((32, 8), 'b'))
    .compile()
  )
  program = hlo.parse(compiled.as_text())
  (found,) = collectives.find(program, mesh, None)
  assert (found.kind, found.axes, found.count) == ('all-reduce', ('b',), 1)
  assert found.bytes == 4 * 8 * 4
  assert found.seconds is None
