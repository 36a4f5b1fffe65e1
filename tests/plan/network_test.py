"""Least times of collectives on the links of a torus and of hosts."""

import types

import numpy as np
import pytest

from gemini_jax.parallel import chip
from gemini_jax.plan import network as network_lib

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


def test_a_ring_of_the_torus():
  """All-gather over x: both directions of one closed ring of 8."""
  mesh = torus((8, 8, 8), ('x', 'y', 'z'))
  network = network_lib.Network(mesh, V5P)
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
  network = network_lib.Network(mesh, V5P)
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
  network = network_lib.Network(torus((8, 8, 8), ('x', 'y', 'z')), V5P)
  ring = np.array([(i * 64, (i + 1) % 8 * 64) for i in range(8)])
  assert network.seconds('collective-permute', ring, 9e9) == pytest.approx(0.1)
  # A line closed the long way round uses the links' other direction.
  line = np.array([(0, 64), (64, 128), (128, 192), (192, 0)])
  assert network.seconds('collective-permute', line, 9e9) == pytest.approx(0.1)
  # Two rings of every second device share the links.
  apart = np.array([(i * 64, (i + 2) % 8 * 64) for i in range(8)])
  assert network.seconds('collective-permute', apart, 9e9) == pytest.approx(0.2)


H100 = chip.GPUS['h100']


def hosts_of_gpus(hosts, each, axes, sizes):
  """A mesh of GPUs that only have a host."""
  client = types.SimpleNamespace(runtime_type='compile_only_runtime')
  devices = np.empty(hosts * each, object)
  for i in range(hosts * each):
    devices[i] = types.SimpleNamespace(process_index=i // each, client=client)
  return types.SimpleNamespace(devices=devices.reshape(sizes), axis_names=axes)


def test_gpus_of_a_host_are_near_and_hosts_far():
  network = network_lib.Network(
    hosts_of_gpus(2, 8, ('data', 'fsdp'), (2, 8)), H100
  )
  inside = np.arange(16).reshape(2, 8)
  size = 8e9
  near = size * 7 / 8 / H100.link
  assert network.seconds('all-gather', inside, size) == pytest.approx(near)
  assert network.seconds('all-reduce', inside, size) == pytest.approx(2 * near)
  # Between GPUs at the same place of their hosts, by their own network.
  far = size / 2 / H100.network
  assert network.seconds('all-gather', inside.T, size) == pytest.approx(far)
  # All of them: each has an eighth to send to the other host.
  everyone = np.arange(16)[None]
  expected = far / 8 + size * 15 / 16 / H100.link
  got = network.seconds('all-gather', everyone, size)
  assert got == pytest.approx(expected)
  # Of its sixteenth, a device sends half to the other host, all but what is
  # its own to any.
  expected = size / 16 * (0.5 / H100.network + 15 / 16 / H100.link)
  got = network.seconds('all-to-all', everyone, size)
  assert got == pytest.approx(expected)


def test_what_counts_is_the_host_not_the_place_in_the_mesh():
  mesh = hosts_of_gpus(2, 2, ('data', 'fsdp'), (2, 2))
  mesh.devices = mesh.devices.T
  network = network_lib.Network(mesh, H100)
  rows = np.array([[0, 1], [2, 3]])
  far = 1e9 / 2 / H100.network
  near = 1e9 / 2 / H100.link
  assert network.seconds('all-gather', rows, 1e9) == pytest.approx(far)
  assert network.seconds('all-gather', rows.T, 1e9) == pytest.approx(near)
  # The slowest pair of a permutation, the slowest of all groups.
  for pairs, bandwidth in (
    ([(0, 2), (1, 3)], H100.link),
    ([(0, 2), (2, 1)], H100.network),
  ):
    got = network.seconds('collective-permute', np.array(pairs), 1e9)
    assert got == pytest.approx(1e9 / bandwidth)


def test_of_slices_a_device_sends_others_what_is_for_them():
  mesh = torus((2, 2, 2), ('x', 'y', 'z'))
  for i, device in enumerate(mesh.devices.flat):
    device.slice_index = i % 2
  network = network_lib.Network(mesh, V5P)
  pairs = np.arange(8).reshape(4, 2)
  got = network.seconds('all-to-all', pairs, 8e9)
  assert got == pytest.approx(8e9 / 2 / 2 / V5P.network)
