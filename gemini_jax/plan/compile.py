"""Compiles the train step and the decode step for given devices."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax.parallel import chip, sharding
from gemini_jax.plan import (
  abstract,
  compiler_errors,
  execution,
  hlo,
  topology,
  traffic,
)
from gemini_jax.plan import collectives as collectives_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

# Makes libtpu compile programs that do not fit into memory.
_COMPILE_ANYWAY = 'xla_tpu_no_crash_on_oom'
# XLA's O0, which skips optimisations that take compile time.
_FAST = {'optimization_level': 9}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One compiled program, per device.

  Attributes:
    seconds: compile time.
    peak: peak memory in bytes, arguments and results included; None if the
      compiler refuses the program without saying how much it needs.
    arguments: bytes of the arguments by name.
    temporaries: bytes of all else at the peak.
    flops: FLOPs of matrix products.
    traffic: bytes read from and written to memory.
    collectives: the slowest first.
    largest: the largest intermediate arrays.
    problem: the compiler's message if it refuses for lack of memory; then only
      `peak` and `arguments` are known.
    host: bytes of host memory.
  """

  seconds: float
  peak: int | None
  arguments: dict[str, int]
  flops: float = 0.0
  traffic: float = 0.0
  collectives: Sequence[collectives_lib.Collective] = ()
  largest: Sequence[dict[str, Any]] = ()
  problem: str = ''
  host: int = 0

  @property
  def temporaries(self) -> int | None:
    """Bytes at the peak beyond the arguments."""
    if self.peak is None:
      return None
    return max(0, self.peak - sum(self.arguments.values()))


@dataclasses.dataclass(frozen=True)
class Measured:
  """The compiled steps of a config on devices.

  Attributes:
    config: with `model.vocab_size` set.
    devices: of the mesh.
    mesh: of the devices.
    state: shapes and shardings of the training state.
    train: the train step.
    decode: the decode step, if requested.
  """

  config: config_lib.Config
  devices: Sequence[Any]
  mesh: Mesh
  state: state_lib.TrainState
  train: Compiled
  decode: Compiled | None = None

  @property
  def memory(self) -> int | None:
    """Bytes that programs can use on a device; None if unknown."""
    configured = self.config.plan.device_memory_bytes
    if configured is not None:
      return configured
    return topology.memory(self.devices[0])

  def fits(self, part: Compiled) -> bool:
    """Whether a step fits into the memory of a device."""
    if part.peak is None or part.problem:
      return False
    return self.memory is None or part.peak <= self.memory


@contextlib.contextmanager
def _without_cache():
  """Disables the compilation cache.

  Programs for absent devices cannot be read back from it, and a cached program
  leaves no HLO dump. JAX decides once whether there is a cache, until a reset.
  """
  # JAX defines its settings dynamically, which a type checker cannot see.
  before = jax.config.jax_enable_compilation_cache  # pyright: ignore
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


@_without_cache()
def measure(config: config_lib.Config, devices: Sequence[Any]) -> Measured:
  """Compiles both steps.

  Raises:
    ConfigError: the config does not match the devices, or a library that it
      names is not installed.
    CompilerError: the compiler refuses a program, not for lack of memory.
  """
  mesh, parts = abstract.layout(config, devices)
  model, optimizer, state = parts
  options = _options(config, devices)
  with sharding.use(mesh):
    batch = abstract.batch(config, mesh)
    train = _compile(
      'train step',
      step_lib.jitted(config, model, optimizer, state),
      (state, batch, np.int32(0)),
      {
        'parameters': state.params,
        'optimizer': (state.opt_state, state.extra),
        'batch': batch,
      },
      mesh,
      options,
    )
    decode = None
    rows = config.plan.decode_batch_size
    rows = config.data.batch_size if rows is None else rows
    if rows:
      decoder, rows = abstract.decoding_rows(config, model, mesh, rows)

      def decode_step(params, state):
        logits_BV, _, state = decoder.decode_step(params, state)
        return logits_BV, state

      decode = _compile(
        'decode step',
        jax.jit(decode_step, donate_argnums=1),
        (state.params, rows),
        {'parameters': state.params, 'cache': rows.cache},
        mesh,
        options,
      )
  return Measured(config, devices, mesh, state, train, decode)


def _options(
  config: config_lib.Config, devices: Sequence[Any]
) -> dict[str, Any]:
  """Compiler options for the platform of the devices."""
  if devices[0].platform != 'tpu':
    return {}
  # Programs that do not fit are compiled as well, to report all figures.
  options: dict[str, Any] = {_COMPILE_ANYWAY: True}
  if config.plan.fast:
    options |= _FAST
  return options


def _compile(
  name: str,
  function: Any,
  args: tuple[Any, ...],
  named: dict[str, Any],
  mesh: Mesh,
  options: dict[str, Any],
) -> Compiled:
  begin = time.monotonic()
  arguments = {name: abstract.local_bytes(tree) for name, tree in named.items()}
  with tempfile.TemporaryDirectory(prefix='gemini_jax_plan_') as folder:
    try:
      lowered = function.lower(*args)
    except RuntimeError as error:
      if 'cuDNN not found' not in str(error):
        raise
      raise config_lib.ConfigError(
        "model.attention_kernel='cudnn' needs cuDNN (no GPU), which is not "
        "installed: pip install nvidia-cudnn-cu12; or set 'chunked'"
      ) from error
    try:
      compiled = _compile_or_explain(
        lowered,
        options
        | {'xla_dump_to': folder, 'xla_dump_hlo_pass_re': 'spmd-partitioning'},
      )
    except jax.errors.JaxRuntimeError as error:
      message = str(error)
      if not compiler_errors.is_for_memory(message):
        raise compiler_errors.CompilerError(
          f'the compiler refuses the {name}: {compiler_errors.reason(message)}'
        ) from error
      return Compiled(
        time.monotonic() - begin,
        compiler_errors.needed(message),
        arguments,
        problem=compiler_errors.reason(message),
      )
    seconds = time.monotonic() - begin
    partitioned = hlo.parse(_partitioned(pathlib.Path(folder)))
  optimised = hlo.parse(compiled.as_text())
  memory: Any = compiled.memory_analysis()
  return Compiled(
    seconds,
    _peak(memory, mesh.devices.flat[0].platform),
    arguments,
    # A device holds the rows of all its expert peers; its own experts process
    # one part of them.
    execution.flops(partitioned, grouped=1 / mesh.shape['expert']),
    traffic.num_bytes(optimised),
    collectives_lib.find(partitioned, mesh, chip.find(mesh.devices.flat[0])),
    traffic.largest(optimised),
    host=memory.host_temp_size_in_bytes,
  )


def _compile_or_explain(lowered: Any, options: dict[str, Any]) -> Any:
  """The compiled program.

  Raises:
    JaxRuntimeError: the compiler refuses; the message says how many bytes a
      program needs that does not fit.
  """
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if _COMPILE_ANYWAY not in options or compiler_errors.needed(str(error)):
      raise
  # With that option libtpu may fail on one array that is too large, or with
  # `Invalid TPU program`. Without it, it stops at once and says how much memory
  # the program needs.
  options = {
    name: on for name, on in options.items() if name != _COMPILE_ANYWAY
  }
  return lowered.compile(compiler_options=options)


def _peak(memory: Any, platform: str) -> int:
  """Peak memory in bytes; on CPU XLA only reports what it allocates."""
  if platform != 'cpu':
    return memory.peak_memory_in_bytes
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _partitioned(folder: pathlib.Path) -> str:
  """HLO text of one device's program before optimisation.

  Later passes fuse and rename matrix products and collectives, differently on
  each back end. A program for one device is not partitioned.
  """
  for pattern in (
    '*.after_spmd-partitioning.*',
    '*.after_tpu-spmd-partitioning.*',
    '*.before_optimizations.txt',
  ):
    files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_size)
    if files:
      return files[-1].read_text()
  raise RuntimeError(f'the compiler wrote no program: {list(folder.iterdir())}')
