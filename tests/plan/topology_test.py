"""Names of slices and hosts, and their devices where a compiler is there."""

import importlib.util
import types

import jax
import pytest

from gemini_jax import config as config_lib
from gemini_jax.parallel import chip
from gemini_jax.plan import gpu_targets, topology

HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None
HAS_CUDA = any(
  importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)
)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5p', 'must be a chip and the shape of its slice, such as v4:4x4x4'),
    ('v5p-128', 'must be a chip'),
    ('v9:4x4x4', 'v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:4x4x4'),
    ('v5p:8x8', 'not a slice on offer: 2x2x1, 2x2x2, 2x2x4, 2x4x4, or'),
    ('v5p:4x4x6', 'multiples of 4 up to 16x16x24'),
    ('v5p:4x4x64', 'multiples of 4 up to 16x16x24'),
    ('v5e:32x32', 'not a slice on offer: 1x1, 2x2'),
    ('v9:4x4x4', 'a100:1x8, h100-pcie:1x8, h100:1x8, h200:1x8, b200:1x8'),
    ('h100', 'hosts x GPUs of each, such as a100:1x8'),
    ('h100:8', 'must be a chip'),
    ('h100:2x16', 'hosts x GPUs of each: 1 to 1024 hosts of 1, 2, 4, 8'),
    ('h100:0x8', '1 to 1024 hosts'),
    ('b200:1x2x8', 'hosts x GPUs of each'),
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
  known = chip.find(devices[0])
  assert known is not None
  assert known.name == name.split(':')[0]
  assert not topology.is_here(devices)


@pytest.mark.skipif(HAS_CUDA, reason="JAX's CUDA plug-in is installed")
def test_without_the_cuda_plugin_it_says_what_to_install():
  with pytest.raises(config_lib.ConfigError) as caught:
    topology.devices('h100:2x8')
  assert str(caught.value).startswith('plan.topology=h100:2x8 needs the CUDA')
  assert f' jax-cuda12-pjrt=={jax.__version__}' in str(caught.value)


@pytest.mark.skipif(not HAS_CUDA, reason="needs JAX's CUDA plug-in")
@pytest.mark.parametrize('name', chip.GPUS)
def test_gpus_are_of_the_kind_and_in_hosts(name):
  devices = topology.devices(f'{name}:3x4')
  assert chip.find(devices[0]) is chip.GPUS[name]
  assert topology.hosts(devices).tolist() == [0] * 4 + [1] * 4 + [2] * 4
  assert not topology.is_here(devices)
  assert len(topology.devices(f'{name}:1x2', slices=2)) == 4


@pytest.mark.parametrize('name', chip.GPUS)
def test_every_gpu_is_described(name):
  text = gpu_targets.describe(chip.GPUS[name])
  assert f'device_memory_size: {chip.GPUS[name].memory}\n' in text
  assert chip.GPUS[name].kinds[0] in text
  assert text.count('{') == text.count('}')


def absent(kind):
  """A device that only compiles, by what the table of chips asks of it."""
  client = types.SimpleNamespace(runtime_type='compile_only_runtime')
  return types.SimpleNamespace(device_kind=kind, client=client)


def test_programs_have_the_share_of_a_gpu_that_jax_takes(monkeypatch):
  gpu, tpu = absent('NVIDIA H100 80GB HBM3'), absent('TPU v5p')
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  assert topology.memory(gpu) == int(0.75 * chip.GPUS['h100'].memory)
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
  assert topology.memory(gpu) == int(0.9 * chip.GPUS['h100'].memory)
  assert topology.memory(tpu) == chip.TPUS['v5p'].memory
  for wrong in ('0', '1.5', 'most'):
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', wrong)
    with pytest.raises(config_lib.ConfigError, match=f'={wrong} must be'):
      topology.memory(gpu)


def test_links_close_where_slices_do():
  assert topology.wraps(chip.TPUS['v5p'], (4, 4, 8)) == (True, True, True)
  assert topology.wraps(chip.TPUS['v5p'], (2, 4, 4)) == (False, False, False)
  assert topology.wraps(chip.TPUS['v5e'], (8, 16)) == (False, True)
