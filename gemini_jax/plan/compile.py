"""The train step and the decode step, compiled for given devices.

B rows, T decoder length, S encoder length.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import media_reader
from gemini_jax.infer import decoding, decoding_state
from gemini_jax.layers import attention
from gemini_jax.models import gemini
from gemini_jax.parallel import chip, pipeline, sharding
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.plan import compiler_errors, hlo, roofline, topology
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

# Tells libtpu to compile also what does not fit.
_GO_ON = 'xla_tpu_no_crash_on_oom'
# XLA's name for O0: the optimisations that cost compile time are left out.
_FAST = {'optimization_level': 9}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One program on one device.

  Attributes:
    seconds: to compile it.
    peak: bytes at most at one time, arguments and results included; None
      where the compiler refuses it and does not say how many.
    arguments: bytes of its arguments by name.
    temporaries: bytes of all else at the peak.
    flops: of the matrix products.
    traffic: bytes read and written.
    collectives: the slowest first.
    largest: arrays that it makes.
    problem: what the compiler says where it refuses for want of memory; all
      but `peak` and `arguments` is unknown then.
    host: bytes in the host's memory, for each device.
  """

  seconds: float
  peak: int | None
  arguments: dict[str, int]
  flops: float = 0.0
  traffic: float = 0.0
  collectives: Sequence[roofline.Collective] = ()
  largest: Sequence[dict[str, Any]] = ()
  problem: str = ''
  host: int = 0

  @property
  def temporaries(self) -> int | None:
    """Bytes of what is neither argument nor the state that takes its place."""
    if self.peak is None:
      return None
    return max(0, self.peak - sum(self.arguments.values()))


@dataclasses.dataclass(frozen=True)
class Measured:
  """A config on devices.

  Attributes:
    config: `model.vocab_size` is set.
    devices: of which the mesh is made.
    mesh: all of them.
    state: shapes and shardings of the training state.
    train: the train step.
    decode: the decode step, if one was asked for.
  """

  config: config_lib.Config
  devices: Sequence[Any]
  mesh: Mesh
  state: state_lib.TrainState
  train: Compiled
  decode: Compiled | None = None

  @property
  def memory(self) -> int | None:
    """Bytes that programs can use on a device."""
    asked = self.config.plan.device_memory_bytes
    return topology.memory(self.devices[0]) if asked is None else asked

  def fits(self, part: Compiled) -> bool:
    """Whether one of the steps fits into the memory of a device."""
    if part.peak is None or part.problem:
      return False
    return self.memory is None or part.peak <= self.memory


@contextlib.contextmanager
def _without_cache():
  """No compiled program is kept, and none comes from the cache.

  Those for absent devices cannot be read back, and one from the cache leaves
  no text to read. That there is a cache JAX decides once, unless told anew.
  """
  # JAX defines its settings as it runs, which a type checker cannot see.
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
    ConfigError: the config does not go with the devices, or a library that
      it names is not installed.
    RefusedError: the compiler refuses, and not for want of memory.
  """
  mesh, parts = layout(config, devices)
  model, optimizer, state = parts
  options = _options(config, devices)
  with sharding.use(mesh):
    batch = abstract_batch(config, mesh)
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
      decoder, rows = abstract_rows(config, model, mesh, rows)

      def decode_step(params, state):
        # Its scores are its logits: one output, as where tokens are drawn.
        scores_BV, _, state = decoder.decode_step(params, state)
        return scores_BV, state

      decode = _compile(
        'decode step',
        jax.jit(decode_step, donate_argnums=1),
        (state.params, rows),
        {'parameters': state.params, 'cache': rows.cache},
        mesh,
        options,
      )
  return Measured(config, devices, mesh, state, train, decode)


def layout(config: config_lib.Config, devices: Sequence[Any]) -> Any:
  """The mesh; and the model, the optimizer and the abstract state on it.

  Raises:
    ConfigError: the config does not go with the devices.
  """
  mesh = mesh_lib.make_mesh(config.parallel, devices)
  sharding.check_batch(mesh, config.data.batch_size, 'data.batch_size')
  pipeline.check(config, mesh)
  parts = session_lib.abstract_parts(config, mesh)
  state_lib.check_patterns(config, parts[2].params)
  return mesh, parts


def abstract_batch(config: config_lib.Config, mesh: Mesh) -> batch_lib.Batch:
  """Shapes and shardings of a batch of `data`."""
  data = config.data
  media = media_reader.blank(data, config.model, data.batch_size)

  def place(shape, dtype):
    where = sharding.of_batch(mesh, len(shape))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  def array(length, dtype=jnp.int32):
    return place((data.batch_size, length), dtype)

  def sequence(length, name='decoder'):
    return batch_lib.Sequence(
      array(length),
      array(length),
      array(length),
      jax.tree.map(lambda x: place(x.shape, x.dtype), media.get(name, {})),
    )

  length = data.sequence_length
  return batch_lib.Batch(
    decoder=sequence(length),
    targets=array(length),
    weights=array(length, jnp.float32),
    prefix=array(length, jnp.bool_) if data.objective == 'prefix' else None,
    encoder=sequence(data.inputs_length, 'encoder')
    if config.model.encoder_layers
    else None,
  )


def abstract_rows(
  config: config_lib.Config, model: gemini.Gemini, mesh: Mesh, num_rows: int
) -> tuple[decoding.Decoder, decoding_state.State]:
  """A decoder, and the shapes and shardings of rows that it writes."""
  encodes = config.model.cross
  decoder = decoding.Decoder(
    model,
    num_rows,
    pad_id=0,
    eos_id=1,
    memory_length=config.data.inputs_length if encodes else 0,
  )
  sharding.check_batch(mesh, num_rows, 'plan.decode_batch_size')

  def place(names, leaf) -> Any:
    where = sharding.spec(mesh, names, leaf.shape, 'the cache')
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, where)
    )

  cache = jax.eval_shape(
    lambda: gemini.init_cache(
      config.model, num_rows, decoder.length, decoder.memory_length
    )
  )

  def row(dtype, *dims) -> Any:
    return place(
      ('batch', *(None for _ in dims)),
      jax.ShapeDtypeStruct((num_rows, *dims), dtype),
    )

  def sequence(length):
    return batch_lib.Sequence(*(row(jnp.int32, length) for _ in range(3)))

  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_rows))
  return decoder, decoding_state.State(
    tokens=row(jnp.int32, decoder.length),
    logprobs=row(jnp.float32, decoder.length),
    starts=row(jnp.int32),
    lengths=row(jnp.int32),
    limits=row(jnp.int32),
    done=row(jnp.bool_),
    keys=place(('batch',), keys),
    cache=jax.tree.map(lambda leaf: place(attention.CACHE_AXES, leaf), cache),
    memory=sequence(decoder.memory_length) if encodes else None,
    latent=row(jnp.float32, config.model.latent.dim)
    if config.model.latent.dim
    else None,
  )


def local_bytes(tree: Any) -> int:
  """Bytes of a tree of placed shapes on one device."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _options(
  config: config_lib.Config, devices: Sequence[Any]
) -> dict[str, Any]:
  """Compiler options of the target."""
  if devices[0].platform != 'tpu':
    return {}
  # What does not fit is compiled as well: then all of it is known.
  options: dict[str, Any] = {_GO_ON: True}
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
  arguments = {name: local_bytes(tree) for name, tree in named.items()}
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
      compiled = _compile_or_ask(
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
    # Of the rows that a device has in hand, the experts of the others take
    # theirs.
    hlo.flops(partitioned, grouped=1 / mesh.shape['expert']),
    roofline.traffic(optimised),
    roofline.collectives(partitioned, mesh, chip.of(mesh.devices.flat[0])),
    roofline.largest(optimised),
    host=memory.host_temp_size_in_bytes,
  )


def _compile_or_ask(lowered: Any, options: dict[str, Any]) -> Any:
  """The program; what is far too large is refused with the bytes it needs.

  Raises:
    JaxRuntimeError: the compiler refuses.
  """
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if _GO_ON not in options or compiler_errors.needed(str(error)):
      raise
  # Told to go on whatever the size, libtpu ends with one array that is too
  # large, or with `Invalid TPU program`. Told nothing, it stops at once and
  # says how much all of it needs.
  options = {name: on for name, on in options.items() if name != _GO_ON}
  return lowered.compile(compiler_options=options)


def _peak(memory: Any, platform: str) -> int:
  """Bytes in use at most; XLA for CPU only tells of what it allocates."""
  if platform != 'cpu':
    return memory.peak_memory_in_bytes
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _partitioned(folder: pathlib.Path) -> str:
  """The text of one device's program before it is optimised.

  Its products and collectives are plain; later passes fuse and rename them,
  each back end in its own way. One device needs no partitioning.
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
