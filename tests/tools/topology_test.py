"""Names of slices, and their devices where libtpu is installed."""

import importlib.util

import pytest

from gemini_jax import config as config_lib
from gemini_jax.parallel import chip
from gemini_jax.tools import topology

HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5p', 'must be a chip and the shape of its slice, such as v4:4x4x4'),
    ('v5p-128', 'must be a chip'),
    ('v9:4x4x4', 'v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:4x4x4'),
    ('v5p:8x8', 'not a slice that is sold: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or'),
    ('v5p:4x4x6', 'multiples of 4 up to 16x16x24'),
    ('v5p:4x4x64', 'multiples of 4 up to 16x16x24'),
    ('v5e:32x32', 'not a slice that is sold: 1x1, 2x2'),
  ],
)
def test_a_wrong_name_is_told_with_what_is_accepted(name, message):
  with pytest.raises(config_lib.ConfigError) as caught:
    topology.devices(name)
  assert str(caught.value).startswith(f'plan.topology={name} ')
  assert message in str(caught.value)


@pytest.mark.skipif(HAS_LIBTPU, reason='libtpu is installed')
def test_without_libtpu_it_says_what_to_install():
  with pytest.raises(config_lib.ConfigError, match='pip install'):
    topology.devices('v5p:2x2x1')


@pytest.mark.skipif(not HAS_LIBTPU, reason='needs libtpu')
@pytest.mark.parametrize(
  ('name', 'count'),
  [('v4:4x4x4', 64), ('v5e:1x1', 1), ('v5p:2x2x1', 4), ('tpu7x:2x2x1', 8)],
)
def test_devices_are_of_the_kind(name, count):
  devices = topology.devices(name)
  assert len(devices) == count
  known = chip.of(devices[0])
  assert known is not None
  assert known.name == name.split(':')[0]
  assert not topology.is_here(devices)


def test_links_close_where_slices_do():
  assert topology.wraps(chip.TPUS['v5p'], (4, 4, 8)) == (True, True, True)
  assert topology.wraps(chip.TPUS['v5p'], (2, 4, 4)) == (False, False, False)
  assert topology.wraps(chip.TPUS['v5e'], (8, 16)) == (False, True)
