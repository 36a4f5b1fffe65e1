"""Devices that are not there: what a mesh asks of them."""

import itertools
import types

NUM_DEVICES = 8


class Device(types.SimpleNamespace):
  """What a mesh asks of a device."""

  __hash__ = object.__hash__


def chips(shape, slices=1):
  """Fake TPUs, four a host, in the order of jax.devices()."""
  places = list(itertools.product(*map(range, reversed(shape))))
  return [
    Device(
      id=i,
      platform='tpu',
      device_kind='TPU v5p',
      coords=place[::-1],
      core_on_chip=0,
      slice_index=i // len(places),
      process_index=i // 4,
    )
    for i, place in enumerate(places * slices)
  ]


def cpus(num_processes):
  """Fake CPU devices of several processes."""
  return [
    Device(
      id=i,
      platform='cpu',
      device_kind='cpu',
      process_index=i * num_processes // NUM_DEVICES,
    )
    for i in range(NUM_DEVICES)
  ]
