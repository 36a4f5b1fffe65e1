"""Where numbers go: a file, TensorBoard, W&B, the terminal; and MFU."""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
import os
import pathlib
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.config import legacy
from gemini_jax.data import media_reader
from gemini_jax.data import task as task_lib
from gemini_jax.models import media_embeddings
from gemini_jax.parallel import chip, processes

# Fields that measure this machine and not the run; all others repeat.
TIMINGS = ('train/tokens_per_second', 'train/step_seconds', 'train/mfu')

FILE = 'metrics.jsonl'
# Holds the id of the folder's run on Weights & Biases.
_WANDB_ID_FILE = 'wandb_id'


def peak_flops(device: Any, dtype: str) -> float | None:
  """FLOP/s that a device can reach in this type; None where unknown."""
  if dtype != 'bfloat16':
    return None
  known = chip.find(device)
  return known.flops if known else None


def forward_flops(
  config: config_lib.Model,
  length: int,
  memory_length: int = 0,
  media: Mapping[str, int] | None = None,
) -> float:
  """FLOPs of the matrix products for one sequence, causal ones counted once.

  Args:
    config: the model, `vocab_size` set.
    length: tokens of the decoder.
    memory_length: tokens of the encoder.
    media: of each kind, how many the sequence has room for, on both sides.
  """
  width, hidden = config.width, config.mlp_width
  heads = config.num_heads * config.head_width
  kv_heads = config.kv_heads * config.head_width
  projections = 2 * width * (heads + kv_heads)
  if config.num_experts:
    # Those that a token visits.
    hidden = config.experts_per_token * config.expert_width
    hidden += config.shared_expert_dim
  feedforward = (3 if config.gated else 2) * width * hidden
  feedforward += width * config.num_experts

  def pairs(length: int, kind: str, causal: bool) -> float:
    """Query-key pairs that a layer looks at."""
    reach = min(config.window, length) if kind == 'local' else length
    past = reach * length - reach * (reach - 1) / 2
    return past if causal else 2 * past - length

  def stack(num_layers: int, length: int, causal: bool = False) -> float:
    pattern = config.attention_pattern
    attended = sum(
      pairs(length, pattern[i % len(pattern)], causal)
      for i in range(num_layers)
    )
    return 4 * heads * attended + 2 * num_layers * length * (
      projections + feedforward
    )

  flops = stack(config.num_layers, length, True)
  flops += 2 * length * width * (config.vocab_size or 0)
  if config.encodes:
    flops += stack(config.encoder_layers, memory_length)
  if config.cross:
    flops += config.num_layers * (
      4 * width * (heads * length + kv_heads * memory_length)
      + 4 * heads * length * memory_length
    )
  if config.contrast_dim:
    # The encoder reads what is written as well.
    flops += stack(config.encoder_layers, length)
    flops += 2 * 2 * width * config.contrast_dim
  if config.latent.dim:
    flops += _latent_flops(config, length, memory_length)
  for kind in media_embeddings.written(config):
    head = media_embeddings.part(config, kind).autoencoder
    flops += 2 * length * width * head.num_components * (1 + 2 * head.dim)
  if media:
    flops += media_flops(config, tuple(media.items()))
  return flops


def _latent_flops(
  config: config_lib.Model, length: int, memory_length: int
) -> float:
  """Of pooling what the encoder says to a z, and of what the decoder sees."""
  width, dim, slots = config.width, config.latent.dim, config.latent.memory
  pool = width // config.num_heads * config.num_heads
  flops = 4 * width * pool * (1 + memory_length) + 4 * pool * memory_length
  flops += 2 * width * 2 * dim
  if config.latent.embedding:
    flops += 2 * dim * width
  kv_heads, heads = (
    count * config.head_width for count in (config.kv_heads, config.num_heads)
  )
  return flops + config.num_layers * slots * (
    4 * dim * kv_heads + 4 * heads * length
  )


@functools.lru_cache(maxsize=16)
def media_flops(
  config: config_lib.Model, media: tuple[tuple[str, int], ...]
) -> float:
  """Of encoders and autoencoders of so many media of each kind.

  As traced: what the layers of media attend to is not causal.
  """
  config = dataclasses.replace(
    config, attention_kernel='chunked', scan_layers=True, remat=False
  )
  reader = media_embeddings.MediaEmbedder(config)
  # As a device sees it that has the whole of everything.
  one = Mesh(
    np.array(jax.local_devices()[:1]).reshape([1] * len(config_lib.AXES)),
    config_lib.AXES,
  )
  with jax.set_mesh(one):
    shapes = jax.eval_shape(
      lambda: {
        kind: jax.tree.map(
          jnp.asarray, batch_lib.blank_media(kind, config, 1, count)
        )
        for kind, count in media
      }
    )
    variables = jax.eval_shape(reader.init, jax.random.key(0), shapes)
    traced = jax.make_jaxpr(reader.apply)(nn.meta.unbox(variables), shapes)
  return product_flops(traced.jaxpr)


def product_flops(jaxpr: Any) -> float:
  """FLOPs of the matrix products of a traced function.

  Of the branches of a condition, such as one for each platform, the least.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    inner = [
      product_flops(getattr(part, 'jaxpr', part))
      for value in equation.params.values()
      for part in (value if isinstance(value, tuple | list) else (value,))
      if hasattr(getattr(part, 'jaxpr', part), 'eqns')
    ]
    match equation.primitive.name:
      case 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        sizes = math.prod(shape[dim] for dim in contracted)
        total += 2 * sizes * equation.outvars[0].aval.size
      case 'ragged_dot_general':
        # Each row meets the matrix of its group.
        sizes = equation.invars[0].aval.shape[-1]
        total += 2 * sizes * equation.outvars[0].aval.size
      case 'scan':
        total += equation.params['length'] * sum(inner)
      case 'cond':
        total += min(inner)
      case _:
        total += sum(inner)
  return total


def step_flops(config: config_lib.Config) -> float:
  """FLOPs of one training step: three forward passes, no recomputation."""
  data, memory = config.data, 0
  if config.model.encodes:
    reads_inputs = data.objective == 'seq2seq'
    # A latent without inputs reads what is written.
    memory = data.inputs_length if reads_inputs else data.sequence_length
  media = collections.Counter()
  if config.model.kinds and data.tasks:
    tasks = task_lib.from_config(data)
    for parts in media_reader.sequence_parts(data).values():
      media.update(task_lib.max_media(tasks, parts))
  sequence = forward_flops(config.model, data.sequence_length, memory, media)
  return 3 * data.batch_size * sequence


def mfu(config: config_lib.Config, seconds: float) -> float | None:
  """Share of the devices' peak that a step reaches; None where unknown."""
  peak = peak_flops(jax.devices()[0], config.model.dtype)
  if peak is None:
    return None
  return step_flops(config) / seconds / peak / jax.device_count()


@contextlib.contextmanager
def _missing(module: str):
  """What imports `module` for the first time meanwhile is told: not found."""
  if module in sys.modules:
    yield
    return
  # Python's own way to say so.
  sys.modules[module] = None  # pyright: ignore
  try:
    yield
  finally:
    del sys.modules[module]


def check(config: config_lib.Config):
  """ConfigError, with the remedy, unless every sink can be opened."""
  if config.train.wandb_project:
    _import_wandb(config)


# Bytes at the end of metrics.jsonl that surely hold a whole line.
_TAIL = 1 << 20


def newest_lines(workdir: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The last lines of metrics.jsonl, the newest first.

  What was cut off or damaged is passed over.

  Raises:
    ConfigError: it is no file.
  """
  with _open_record(workdir) as file:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    lines = file.read().splitlines()
  for line in reversed(lines):
    try:
      values = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(values, dict) and type(values.get('step')) is int:
      yield legacy.metrics(values)


def last_step(workdir: pathlib.Path) -> int:
  """The last step that metrics.jsonl tells of; 0 where it tells of none."""
  return next((line['step'] for line in newest_lines(workdir)), 0)


def check_record(workdir: pathlib.Path, size: int):
  """Refuses a metrics.jsonl that has lost lines which a checkpoint counts on.

  An empty one may stand for those that a user does not want.

  Args:
    workdir: folder of the run.
    size: bytes that it had at the step of the checkpoint.

  Raises:
    ConfigError: it is missing, shorter or changed, or no file.
  """
  path = workdir / FILE
  problem = '' if path.exists() or not size else 'is missing'
  with _open_record(workdir) as file:
    length = file.seek(0, os.SEEK_END)
    if 0 < length < size:
      problem = f'has {length:,} bytes'
    elif 0 < size <= length:
      file.seek(size - 1)
      if file.read(1) != b'\n':
        problem = f'has no line that ends at byte {size:,}'
  config_lib.check(
    not problem,
    f'{path} {problem}, but the checkpoint counts on the {size:,} that it had; '
    'put a copy of it back, or to go on without those lines, put an empty '
    'file there',
  )


def _open_record(workdir: pathlib.Path) -> io.BufferedIOBase:
  path = workdir / FILE
  try:
    host.check_regular(path)
    return path.open('rb')
  except FileNotFoundError:
    return io.BytesIO()
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error


class Writer:
  """Writes metrics of a step to every sink; resumes where a run stopped.

  Every process has the same numbers; the first writes them.
  """

  def __init__(
    self, workdir: pathlib.Path, config: config_lib.Config, step: int, size: int
  ):
    """Opens the sinks.

    Args:
      workdir: folder of the run.
      config: the run's config.
      step: the step that the run goes on from.
      size: bytes of metrics.jsonl at that step; what follows is dropped,
        since it will be written again.

    Raises:
      ConfigError: metrics.jsonl is not what was written until then.
    """
    self._writes = processes.is_process_zero()
    if not self._writes:
      return
    self._wandb = (
      _wandb(workdir, config, step) if config.train.wandb_project else None
    )
    check_record(workdir, size)
    path = workdir / FILE
    # At the end, whatever becomes of the file meanwhile.
    self._file = path.open('a')
    # An empty file stays empty; it would be filled up with zeros.
    self._path, self._size = path, min(size, path.stat().st_size)
    self._file.truncate(self._size)
    self._board = _Board(workdir / 'tensorboard', step + 1)

  def write(self, step: int, values: Mapping[str, float | None]):
    """One line: `step`, then the values; None and NaN become null."""
    if not self._writes:
      return
    values = {
      name: value if value is not None and math.isfinite(value) else None
      for name, value in values.items()
    }
    line = json.dumps({'step': step} | values) + '\n'
    self._file.write(line)
    self._file.flush()
    self._size += len(line)
    known = {name: value for name, value in values.items() if value is not None}
    self._board.write(step, known)
    if self._wandb:
      self._wandb.log(known, step=step)

  def size(self) -> int:
    """Bytes of metrics.jsonl, all of them on disk; 0 where none is written."""
    if not self._writes:
      return 0
    self._file.flush()
    os.fsync(self._file.fileno())
    if not host.is_at(self._file.fileno(), self._path):
      logging.warning('%s was removed; it begins anew', self._path)
      self._file.close()
      self._file, self._size = self._path.open('a'), 0
    size = os.fstat(self._file.fileno()).st_size
    if size < self._size:
      logging.warning('%s has lost lines during the run', self._path)
    self._size = size
    return size

  def close(self):
    """Closes every sink."""
    if not self._writes:
      return
    self._file.close()
    self._board.close()
    if self._wandb:
      self._wandb.finish()


class _Board:
  """Writes scalars for TensorBoard.

  In this thread, as tensorboardX's own writer has one that ends on a full
  disk, after which the training waits for it for ever.
  """

  # Longest time until a scalar is on the disk.
  _FLUSH_SECONDS = 120

  def __init__(self, folder: pathlib.Path, purge_step: int):
    """Scalars of earlier runs from `purge_step` on are hidden."""
    # Imported here: it is slow, and generation does without. It tries torch,
    # which it has no need of here: seconds, where that is installed.
    with _missing('torch'):
      from tensorboardX import event_file_writer, summary
      from tensorboardX.proto import event_pb2
    # Its classes are made as it is imported, which a type checker cannot see.
    messages: Any = event_pb2
    self._scalar, self._event = summary.scalar, messages.Event
    folder.mkdir(exist_ok=True)
    self._events = event_file_writer.EventsWriter(str(folder / 'events'))
    start = messages.SessionLog(status=messages.SessionLog.START)
    self._add(purge_step, session_log=start)
    self._flushed = 0.0

  def _add(self, step: int, **content: Any):
    self._events.write_event(
      self._event(step=step, wall_time=time.time(), **content)
    )

  def write(self, step: int, values: Mapping[str, float]):
    for name, value in values.items():
      self._add(step, summary=self._scalar(name, value))
    if time.monotonic() - self._flushed > self._FLUSH_SECONDS:
      self._flushed = time.monotonic()
      self._events.flush()

  def close(self):
    self._events.close()


def _import_wandb(config: config_lib.Config) -> Any:
  asked = f'train.wandb_project={config.train.wandb_project!r} needs wandb'
  return config_lib.optional('wandb', asked, 'wandb')


def _wandb(workdir: pathlib.Path, config: config_lib.Config, step: int) -> Any:
  wandb = _import_wandb(config)
  try:
    return wandb.init(
      project=config.train.wandb_project,
      name=workdir.resolve().name,
      id=_wandb_id(workdir, step),
      resume='allow',
      dir=str(workdir),
      config=json.loads(config_lib.to_json(config)),
    )
  except wandb.Error as error:
    raise config_lib.ConfigError(
      f'train.wandb_project={config.train.wandb_project!r} cannot be used: '
      f'{" ".join(str(error).split())}; log in with `wandb login`, or set '
      'WANDB_MODE=offline'
    ) from error


def _wandb_id(workdir: pathlib.Path, step: int) -> str:
  """The id of the run in a work folder, which is made once.

  Runs of earlier versions, which go on from a step without one, have the name
  of their folder.
  """
  path = workdir / _WANDB_ID_FILE
  if path.is_file():
    identity = host.read_file(path).decode(errors='replace').strip()
    if re.fullmatch(r'[^\s/\\#?%:]{1,128}', identity):
      return identity
  identity = workdir.resolve().name if step else uuid.uuid4().hex[:12]
  host.replace_file(path, f'{identity}\n'.encode())
  return identity


class Stopwatch:
  """Measures the seconds of training steps, without what happens between.

  Evaluations and checkpoints wait until the devices are idle, so the time
  while it is paused belongs to no step.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts it; `clock` returns seconds."""
    self._clock = clock
    self._seconds = 0.0
    self._begin = clock()

  def pause(self):
    """Stops it, once the devices are done with the last step."""
    self._seconds += self._clock() - self._begin

  def resume(self):
    """Goes on after a pause."""
    self._begin = self._clock()

  def lap(self) -> float:
    """Seconds since it was started or asked last."""
    now = self._clock()
    seconds = self._seconds + now - self._begin
    self._seconds, self._begin = 0.0, now
    return seconds


class Progress:
  """A bar at a terminal; plain lines in a log."""

  def __init__(self, start: int, total: int):
    self._bar = None
    self._begin = time.monotonic()
    self._start, self._total = start, total
    if sys.stderr.isatty() and processes.is_process_zero():
      self._bar = tqdm.tqdm(
        initial=start, total=total, unit='step', dynamic_ncols=True
      )

  def update(self, step: int, values: Mapping[str, float | None]):
    """Shows that `step` is done, with some of its numbers."""
    shown = {
      name.removeprefix('train/'): value
      for name, value in values.items()
      if value is not None
    }
    if self._bar is not None:
      self._bar.set_postfix_str(_spell(shown), refresh=False)
      self._bar.update(step - self._bar.n)
      return
    passed = time.monotonic() - self._begin
    left = passed / max(1, step - self._start) * (self._total - step)
    self.note(
      f'step {step:,}/{self._total:,}  {_spell(shown)}  '
      f'{int(left) // 60}:{int(left) % 60:02d} left'
    )

  def note(self, line: str):
    """A line that stays."""
    if self._bar is not None:
      self._bar.write(line)
    else:
      print(line, flush=True)

  def close(self):
    """Leaves the bar as it is."""
    if self._bar is not None:
      self._bar.close()


def _spell(values: dict[str, Any]) -> str:
  formats = {
    'tokens_per_second': ('{:,.0f} tokens/s', 1),
    'mfu': ('MFU {:.1%}', 1),
    'loss': ('loss {:.4f}', 1),
  }
  return '  '.join(
    formats[name][0].format(value)
    for name, value in values.items()
    if name in formats
  )


def devices_line() -> str:
  """What the run computes on."""
  devices = jax.devices()
  count = jax.process_count()
  return (
    f'{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})'
    f'{f" of {count} processes" if count > 1 else ""}, jax {jax.__version__}'
  )


# Of the results, what a line shows.
_SHOWN = frozenset(
  (
    *('loss', 'bits_per_byte', 'accuracy', 'exact_match'),
    *('nll', 'kl', 'mi', 'active_units'),
  )
)


def spell_results(values: Mapping[str, float]) -> str:
  """The numbers of an evaluation that a line shows."""
  shown = [
    f'{name} {value:.4f}'
    for name, value in values.items()
    if name.split('/')[-1] in _SHOWN
    or (name.endswith('_accuracy') and not name.endswith('token_accuracy'))
  ]
  return ''.join(f'  {item}' for item in shown)
