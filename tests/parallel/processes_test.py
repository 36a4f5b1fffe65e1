"""Which environments are a group of processes, and which are not.

What several processes do together is in multiprocess_test.py.
"""

import io
import types
import urllib.error

import pytest

from gemini_jax import config as config_lib
from gemini_jax.parallel import processes

HAND = {
  'JAX_COORDINATOR_ADDRESS': 'host:1234',
  'JAX_NUM_PROCESSES': '4',
  'JAX_PROCESS_ID': '3',
}
# What srun sets, jax's own detection reads more of it.
SLURM = {'SLURM_STEP_NUM_TASKS': '16'}
# A Cloud TPU VM; the second form of the names is the older one.
ENDPOINTS = 'worker-network-endpoints'
SLICES = "ACCELERATOR_TYPE: 'v5p-8'\nMEGASCALE_NUM_SLICES: '2'\n"


@pytest.fixture
def start(monkeypatch):
  """`cluster.start` elsewhere: the arguments of initialize, or None."""

  def start(environ, platforms=None, metadata=None):
    calls = []

    def answer(request, timeout):
      if metadata is None:
        raise urllib.error.URLError('no such host')
      name = request.full_url.rsplit('/', 1)[1]
      return io.BytesIO(metadata.get(name, '').encode())

    jax = types.SimpleNamespace(
      config=types.SimpleNamespace(
        jax_platforms=platforms, update=lambda *args: None
      ),
      distributed=types.SimpleNamespace(
        initialize=lambda **kwargs: calls.append(kwargs)
      ),
      process_index=lambda: 0,
      process_count=lambda: 1,
    )
    with monkeypatch.context() as patch:
      patch.setattr(processes, 'jax', jax)
      patch.setattr(processes.os, 'environ', environ)
      patch.setattr(processes.urllib.request, 'urlopen', answer)
      processes.start()
    assert len(calls) <= 1
    return calls[0] if calls else None

  return start


# Environment, jax's platforms, the metadata of a Cloud TPU VM.
ALONE = {
  'nothing': ({}, None, None),
  'one by hand': (
    HAND | {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'},
    None,
    None,
  ),
  'a shell of Slurm': ({'SLURM_NTASKS': '16'}, None, None),
  'one task of Slurm': ({'SLURM_STEP_NUM_TASKS': '1'}, None, None),
  'Colab': ({}, 'tpu,cpu', None),
  'Kaggle': ({'TPU_PROCESS_ADDRESSES': 'local'}, 'tpu,cpu', None),
  'one TPU VM': ({}, 'tpu,cpu', {ENDPOINTS: '10.0.0.1'}),
  'a pod, but on the CPU': ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'cpu', None),
}
GROUPS = {
  'Slurm': (SLURM, None, None),
  'Slurm with an address': (
    SLURM | {'JAX_COORDINATOR_ADDRESS': 'host:1'},
    None,
    None,
  ),
  'Open MPI': ({'OMPI_COMM_WORLD_SIZE': '2'}, None, None),
  'GKE': ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'tpu,cpu', None),
  'GKE, slices of one host': (
    {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'},
    'tpu,cpu',
    None,
  ),
  'TPU VMs': ({}, 'tpu,cpu', {ENDPOINTS: 'n:0:10.0.0.1,n:1:10.0.0.2'}),
  'TPU VMs, slices of one host': (
    {},
    'tpu,cpu',
    {ENDPOINTS: 'a', 'tpu-env': SLICES},
  ),
}


@pytest.mark.parametrize('name', ALONE)
def test_one_process_waits_for_nobody(name, start):
  assert start(*ALONE[name]) is None


@pytest.mark.parametrize('name', GROUPS)
def test_a_group_is_left_to_jax(name, start):
  arguments = start(*GROUPS[name])
  assert arguments is not None
  assert all(name.endswith('_timeout_seconds') for name in arguments)


def test_a_group_by_hand(start):
  arguments = start(HAND)
  assert arguments['coordinator_address'] == 'host:1234'
  assert arguments['num_processes'] == 4
  assert arguments['process_id'] == 3
  # What stands in the environment beside it is not asked.
  assert arguments['cluster_detection_method'] == 'deactivate'
  assert start(HAND | SLURM)['num_processes'] == 4


# What is set wrong, and the message.
HALVES = {
  'no address': (
    {'JAX_COORDINATOR_ADDRESS': ''},
    'JAX_NUM_PROCESSES, JAX_PROCESS_ID set without JAX_COORDINATOR_ADDRESS; '
    'a group started by hand needs JAX_COORDINATOR_ADDRESS, '
    'JAX_NUM_PROCESSES, JAX_PROCESS_ID',
  ),
  'the address alone': (
    {'JAX_NUM_PROCESSES': '', 'JAX_PROCESS_ID': ''},
    'JAX_COORDINATOR_ADDRESS set without JAX_NUM_PROCESSES, JAX_PROCESS_ID; ',
  ),
  'no port': (
    {'JAX_COORDINATOR_ADDRESS': 'host'},
    'JAX_COORDINATOR_ADDRESS=host must be HOST:PORT of process 0',
  ),
  'no number': (
    {'JAX_NUM_PROCESSES': 'two'},
    'JAX_NUM_PROCESSES=two must be a whole number',
  ),
  'negative': (
    {'JAX_PROCESS_ID': '-1'},
    'JAX_PROCESS_ID=-1 must be a whole number',
  ),
  'too many': (
    {'JAX_PROCESS_ID': '4'},
    'JAX_PROCESS_ID=4 must be below JAX_NUM_PROCESSES=4',
  ),
}


@pytest.mark.parametrize('name', HALVES)
def test_half_a_group_is_refused(name, start):
  change, message = HALVES[name]
  with pytest.raises(config_lib.ConfigError) as error:
    start(HAND | change)
  assert str(error.value).startswith(message)
