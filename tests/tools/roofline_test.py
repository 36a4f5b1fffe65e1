"""Collectives: between whom, how much, and how long at the least."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gemini_jax.parallel import chip
from gemini_jax.tools import hlo, roofline

V5P = chip.TPUS['v5p']


def torus(shape, axes, grid=None):
  """A mesh of v5p devices that are only places in a torus of `shape`."""
  count = int(np.prod(shape))
  devices = np.empty(count, object)
  for i, coords in enumerate(np.ndindex(*shape)):
    devices[i] = types.SimpleNamespace(coords=coords, slice_index=0)
  sizes = grid or shape
  return types.SimpleNamespace(
    devices=devices.reshape(sizes),
    axis_names=axes,
    shape=dict(zip(axes, sizes, strict=True)),
  )


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
  assert roofline.groups(attributes, 8).tolist() == expected


def test_a_ring_of_the_torus():
  """All-gather over x: both directions of one closed ring of 8."""
  mesh = torus((8, 8, 8), ('x', 'y', 'z'))
  network = roofline.Network(mesh, V5P)
  group = np.arange(512).reshape(8, 64).T
  assert network.axes(group) == ('x',)
  size = 8e9
  gather = size * 7 / 8 / (2 * V5P.link)
  assert network.seconds('all-gather', group, size) == pytest.approx(gather)
  assert network.seconds('all-reduce', group, size) == pytest.approx(2 * gather)
  # A quarter of an all-gather, but for the part that stays.
  assert network.seconds('all-to-all', group, size) == pytest.approx(
    gather / 4 * 8 / 7
  )
  # Two dims: twice the links.
  both = np.arange(512).reshape(64, 8).T
  assert network.seconds('all-gather', both, size) == pytest.approx(
    size * 63 / 64 / (4 * V5P.link)
  )


def test_a_part_of_a_dim_is_a_line_and_shares_links():
  mesh = torus((8, 8, 8), ('a', 'b', 'y', 'z'), (4, 2, 8, 8))
  network = roofline.Network(mesh, V5P)
  ids = np.arange(512).reshape(4, 2, 64)
  near = ids.transpose(0, 2, 1).reshape(-1, 2)
  far = ids.transpose(1, 2, 0).reshape(-1, 4)
  assert network.axes(near) == ('b',)
  assert network.seconds('all-gather', near, 8e9) == pytest.approx(
    4e9 / V5P.link
  )
  # Every second device: the ring is closed, the links are of two groups.
  assert network.seconds('all-gather', far, 8e9) == pytest.approx(
    6e9 / V5P.link
  )


def test_a_permutation_goes_from_neighbour_to_neighbour():
  network = roofline.Network(torus((8, 8, 8), ('x', 'y', 'z')), V5P)
  ring = np.array([(i * 64, (i + 1) % 8 * 64) for i in range(8)])
  assert network.seconds('collective-permute', ring, 9e9) == pytest.approx(0.1)
  # A line closed the long way round uses the links' other direction.
  line = np.array([(0, 64), (64, 128), (128, 192), (192, 0)])
  assert network.seconds('collective-permute', line, 9e9) == pytest.approx(0.1)
  # Two rings of every second device share the links.
  apart = np.array([(i * 64, (i + 2) % 8 * 64) for i in range(8)])
  assert network.seconds('collective-permute', apart, 9e9) == pytest.approx(0.2)


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
  (found,) = roofline.collectives(program, mesh, None)
  assert (found.kind, found.axes, found.count) == ('all-reduce', ('b',), 1)
  assert found.bytes == 4 * 8 * 4
  assert found.seconds is None
