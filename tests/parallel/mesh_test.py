"""Meshes that fit the devices, and the links between them."""

import jax
import numpy as np
import pytest

import fake_devices
from gemini_jax import config as config_lib
from gemini_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ({}, (8, 1, 1, 1, 1, 1)),
    ({'data': 1, 'fsdp': -1}, (1, 8, 1, 1, 1, 1)),
    ({'data': -1, 'tensor': 2}, (4, 1, 2, 1, 1, 1)),
    ({'data': 2, 'fsdp': 2, 'sequence': 2}, (2, 2, 1, 2, 1, 1)),
    ({'data': 1, 'expert': 2, 'pipeline': -1}, (1, 1, 1, 1, 2, 4)),
  ],
)
def test_a_mesh_takes_all_devices(sizes, shape):
  mesh = mesh_lib.make_mesh(config_lib.Parallel(**sizes))
  assert mesh.axis_names == config_lib.AXES
  assert mesh.devices.shape == shape
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    (
      {'data': 3},
      'parallel.data=3 is a mesh of 3 devices; there are 8; set one axis to '
      '-1 to take them all',
    ),
    (
      {'data': 4, 'tensor': 4},
      'parallel.data=4, parallel.tensor=4 is a mesh of 16 devices; there are '
      '8; set one axis to -1 to take them all',
    ),
    (
      {'data': 1},
      'parallel is a mesh of 1 devices; there are 8; set one axis to -1 to '
      'take them all',
    ),
    (
      {'fsdp': 3},
      'parallel.data=-1, parallel.fsdp=3: 3 does not divide the 8 devices',
    ),
  ],
)
def test_a_mesh_that_does_not_fit(sizes, message):
  with pytest.raises(config_lib.ConfigError) as error:
    mesh_lib.make_mesh(config_lib.Parallel(**sizes))
  assert str(error.value) == message


def test_an_axis_follows_the_torus():
  """Neighbours along tensor are neighbours on the wires, in a ring."""
  mesh = mesh_lib.make_mesh(
    config_lib.Parallel(data=4, fsdp=4, tensor=4), fake_devices.chips((4, 4, 4))
  )
  for ring in mesh.devices.reshape(16, 4):
    places = np.array([chip.coords for chip in ring])
    moves = (np.roll(places, -1, axis=0) - places) % 4
    assert sorted(moves.sum(0)) == [0, 0, 4]


@pytest.mark.parametrize('axis', ['data', 'fsdp', 'pipeline'])
def test_only_one_axis_goes_across_slices(axis):
  sizes = {'data': 2, 'fsdp': 2, 'tensor': 2, 'pipeline': 2}
  mesh = mesh_lib.make_mesh(
    config_lib.Parallel(**sizes, slices=2, slice_axis=axis),
    fake_devices.chips((2, 2, 2), slices=2),
  )
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  halves = np.split(slices, 2, axis=config_lib.AXES.index(axis))
  assert [np.unique(half).tolist() for half in halves] == [[0], [1]]


def test_slices_without_names_are_devices_in_order():
  mesh = mesh_lib.make_mesh(
    config_lib.Parallel(data=2, fsdp=4, slices=2, slice_axis='fsdp')
  )
  ids = np.vectorize(lambda device: device.id)(mesh.devices)
  assert ids.reshape(2, 4).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize(
  ('fields', 'devices', 'message'),
  [
    (
      {'slices': 2},
      fake_devices.chips((2, 2, 2)),
      'parallel.slices=2, but the devices are in 1 slices',
    ),
    (
      {},
      fake_devices.chips((2, 2, 2), slices=2),
      'parallel.slices=1, but the devices are in 2 slices',
    ),
    (
      {'slices': 3},
      fake_devices.cpus(1),
      'parallel.slices=3 does not divide the 8 devices',
    ),
    (
      {'slices': 4, 'data': 2, 'fsdp': 4},
      fake_devices.cpus(1),
      'parallel.slices=4 must divide parallel.data=2, the axis across them',
    ),
  ],
)
def test_slices_that_do_not_fit(fields, devices, message):
  with pytest.raises(config_lib.ConfigError) as error:
    mesh_lib.make_mesh(config_lib.Parallel(**fields), devices)
  assert str(error.value) == message
