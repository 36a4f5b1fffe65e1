"""The processes of a run, which all execute the same program in lock step.

A process drives the devices of one host, or one GPU. Here is what only process
0 does, and what all processes must agree on.
"""

import hashlib
import logging
import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gemini_jax import config as config_lib

# Variables of a group that is started by hand. jax itself reads the first one.
_BY_HAND = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# Where launchers state the number of processes: Slurm's srun, Open MPI's
# mpirun.
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
# Where a Cloud TPU VM finds the description of its pod.
_METADATA = (
  'http://metadata.google.internal/computeMetadata/v1/instance/attributes/'
)
# A process that has been silent this long counts as dead; one that has ended
# waits this long for the others. Then all of them end with an error.
_TIMEOUT_SECONDS = 100


def start():
  """Joins this process to the others of its group; without a group, nothing.

  Cloud TPU pods, GKE, Slurm and Open MPI are recognised automatically. A
  group started by hand sets JAX_COORDINATOR_ADDRESS (HOST:PORT of process
  0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call before any other use of jax.

  Raises:
    ConfigError: only some of these are set, or to invalid values.
  """
  by_hand = _by_hand(os.environ)
  if not by_hand and not _launched(os.environ):
    return
  # Its handler of SIGTERM would replace that of the loop.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    **by_hand,
    heartbeat_timeout_seconds=_TIMEOUT_SECONDS,
    shutdown_timeout_seconds=_TIMEOUT_SECONDS,
  )
  logging.info('process %d of %d', jax.process_index(), jax.process_count())


def is_alone() -> bool:
  """Whether this process was started as the only one; asks no device.

  Raises:
    ConfigError: as `start`.
  """
  return not _by_hand(os.environ) and not _launched(os.environ)


def check_devices():
  """ConfigError unless jax finds the devices of JAX_PLATFORMS."""
  try:
    jax.devices()
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    raise config_lib.ConfigError(
      f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r}: {reason}'
    ) from error


def _by_hand(environ: Mapping[str, str]) -> dict[str, Any]:
  """Arguments of initialize for a group of several, or nothing."""
  values = {name: environ[name] for name in _BY_HAND if environ.get(name)}
  # The address alone tells jax which port to take in a group it knows.
  if not values or (list(values) == [_BY_HAND[0]] and _launched(environ)):
    return {}
  missing = [name for name in _BY_HAND if name not in values]
  config_lib.check(
    not missing,
    f'{", ".join(values)} set without {", ".join(missing)}; a group started by '
    f'hand needs {", ".join(_BY_HAND)}',
  )
  address = values['JAX_COORDINATOR_ADDRESS']
  config_lib.check(
    re.fullmatch(r'.+:\d+', address) is not None,
    f'JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT of process 0',
  )
  numbers = {}
  for name in _BY_HAND[1:]:
    config_lib.check(
      values[name].isdecimal(), f'{name}={values[name]} must be a whole number'
    )
    numbers[name] = int(values[name])
  count, index = numbers.values()
  config_lib.check(
    index < count,
    f'JAX_PROCESS_ID={index} must be below JAX_NUM_PROCESSES={count}',
  )
  if count == 1:
    return {}
  return {
    'coordinator_address': address,
    'num_processes': count,
    'process_id': index,
    'cluster_detection_method': 'deactivate',
  }


def _launched(environ: Mapping[str, str]) -> bool:
  """Whether a launcher that jax knows has started several processes.

  jax's own detection can take a single machine for a group and then wait for a
  coordinator that was never started.
  """
  if any(int(environ.get(name) or 1) > 1 for name in _COUNTS):
    return True
  # jax adds tpu to the platforms where it finds chips and libtpu.
  if 'tpu' not in (jax.config.jax_platforms or ''):  # pyright: ignore
    return False
  hosts = environ.get('TPU_PROCESS_ADDRESSES') or environ.get(
    'TPU_WORKER_HOSTNAMES'
  )
  slices = environ.get('MEGASCALE_NUM_SLICES')
  if not hosts and not environ.get('TPU_SKIP_MDS_QUERY'):
    hosts = _metadata('worker-network-endpoints')
    match = re.search(
      r"MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _metadata('tpu-env')
    )
    slices = slices or (match and match[1])
  return len((hosts or '').split(',')) * int(slices or 1) > 1


def _metadata(name: str) -> str:
  """An attribute of this Cloud TPU VM; '' if there is none."""
  request = urllib.request.Request(
    _METADATA + name, headers={'Metadata-Flavor': 'Google'}
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as response:
      return response.read().decode()
  except OSError:
    return ''


def is_process_zero() -> bool:
  """Whether this process writes and prints for all."""
  return jax.process_index() == 0


def all_processes(flag: bool) -> bool:
  """Whether `flag` is true on every process. All must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.int32(flag))))


def same_on_all_processes(text: str) -> bool:
  """Whether every process has the same `text`. All must call it."""
  if jax.process_count() == 1:
    return True
  digest = hashlib.sha256(text.encode()).digest()
  digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
  return bool(np.all(digests == digests[0]))


def smallest(value: int) -> int:
  """The smallest int32 `value` of all processes; all wait for all."""
  if jax.process_count() == 1:
    return value
  return int(np.min(multihost_utils.process_allgather(np.int32(value))))


def on_process_zero(action: Callable[[], None]):
  """Runs `action` on process 0 while the others wait.

  Raises:
    ConfigError: on the others, when `action` failed.
  """
  error = None
  if is_process_zero():
    try:
      action()
    except Exception as caught:
      error = caught
  if all_processes(error is None):
    return
  if error is not None:
    raise error
  raise config_lib.ConfigError('the first process failed; see its message')


def fetch(tree: Any) -> Any:
  """The values of a tree of global arrays, as numpy, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
