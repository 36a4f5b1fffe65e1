"""Changes of a config with which it fits; each is compiled to check it."""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Iterator
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.plan import abstract, compiler_errors, topology
from gemini_jax.plan import compile as compile_lib

# Most suggestions to give, and most programs to compile.
_MAX_SUGGESTIONS, _MAX_COMPILED = 2, 10


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """Fields to set, and the compiled steps with them."""

  changes: dict[str, Any]
  measured: compile_lib.Measured

  def summary(self) -> dict[str, Any]:
    """For plan.json."""
    return {
      'flags': flags(self.changes),
      'bytes_per_device': self.measured.train.peak,
      'fits': self.measured.fits(self.measured.train),
    }


def flags(changes: dict[str, Any]) -> str:
  """The changes as flags of the command line, quoted for a shell."""
  return ' '.join(
    f'--config.{field}=' + shlex.quote(str(value).replace("'", '"'))
    for field, value in changes.items()
  )


def search(measured: compile_lib.Measured) -> list[Suggestion]:
  """At most two changes with which the config fits; prints what it tries."""
  fitting: list[Suggestion] = []
  tried = 0
  offloads = measured.devices[0].platform == 'tpu'
  mesh = dict(measured.mesh.shape)
  for changes in candidates(measured.config, mesh, offloads):
    if tried >= _MAX_COMPILED or len(fitting) >= _MAX_SUGGESTIONS:
      break
    if is_not_enough(changes, measured):
      continue
    try:
      config = apply(measured.config, changes)
      devices = measured.devices
      if 'plan.topology' in changes:
        devices = topology.devices(config.plan.topology, config.parallel.slices)
      state = abstract.layout(config, devices)[1][2]
      # Not worth a compilation if the state alone does not fit.
      if measured.memory and abstract.local_bytes(state) > measured.memory:
        continue
      tried += 1
      print(f'trying {flags(changes)}', end=' ', flush=True)
      # The decode step is irrelevant here.
      config = apply(config, {'plan.decode_batch_size': 0})
      suggestion = Suggestion(changes, compile_lib.measure(config, devices))
    except config_lib.ConfigError:
      # The change contradicts other fields.
      continue
    except compiler_errors.CompilerError as error:
      print(f'-> {error}', flush=True)
      continue
    peak = suggestion.measured.train.peak
    spelled = 'too large' if peak is None else f'{peak / 2**30:,.2f} GiB'
    fits = suggestion.measured.fits(suggestion.measured.train)
    print(f'-> {spelled}{", fits" if fits else ""}', flush=True)
    if fits:
      fitting.append(suggestion)
  return fitting


def is_not_enough(
  changes: dict[str, Any], measured: compile_lib.Measured
) -> bool:
  """Whether a change cannot be enough, whatever it saves."""
  train, memory = measured.train, measured.memory
  if train.peak is None or train.temporaries is None or memory is None:
    return False
  if all(field.startswith('parallel.') for field in changes):
    # It can save the state and the gradients, which are no larger; activations
    # remain.
    state = train.arguments['parameters'] + train.arguments['optimizer']
    return train.peak - 2 * state > memory
  if set(changes) == {'optimizer.accumulation_steps'}:
    steps = measured.config.optimizer.accumulation_steps
    share = steps / changes['optimizer.accumulation_steps']
    return train.peak - (1 - share) * train.temporaries > memory
  return False


def candidates(
  config: config_lib.Config, mesh: dict[str, int], offloads: bool = False
) -> Iterator[dict[str, Any]]:
  """Changes to try: those with the smallest cost for a run first, then several.

  Args:
    config: of the run that does not fit.
    mesh: sizes of its axes.
    offloads: whether the devices can offload tensors to host memory.
  """
  remat: dict[str, Any] = {}
  if not config.model.remat:
    remat = {'model.remat': True}
  elif config.model.remat_save:
    remat = {'model.remat_save': ()}
  offload: dict[str, Any] = {}
  if offloads and config.model.remat and config.model.remat_save:
    kept = config.model.remat_offload + config.model.remat_save
    offload = {'model.remat_save': (), 'model.remat_offload': kept}
  fsdp: dict[str, Any] = {}
  if mesh['data'] > 1:
    fsdp = {'parallel.data': 1, 'parallel.fsdp': mesh['data'] * mesh['fsdp']}
  steps = config.optimizer.accumulation_steps
  rows = config.data.batch_size // (
    mesh['data'] * mesh['fsdp'] * mesh['expert']
  )
  parts = [
    {'optimizer.accumulation_steps': steps * times}
    for times in (2, 4, 8)
    if rows % (steps * times) == 0
  ]
  if not parts and rows > 1:
    parts = [{'data.batch_size': config.data.batch_size // rows}]
  tensor: dict[str, Any] = {}
  for axis in ('data', 'fsdp'):
    if mesh[axis] % 2 == 0:
      tensor = {
        f'parallel.{axis}': mesh[axis] // 2,
        'parallel.tensor': mesh['tensor'] * 2,
      }
      break
  alone = [offload, remat, fsdp, *parts, tensor]
  yield from (changes for changes in alone if changes)
  together: dict[str, Any] = {}
  for changes in (remat, fsdp, parts[-1] if parts else {}):
    before, together = together, together | changes
    if before and changes:
      yield together
  yield from larger(config)
  yield from (together | changes for changes in larger(config) if together)


def larger(config: config_lib.Config) -> Iterator[dict[str, Any]]:
  """The next larger topologies, with all devices on the fsdp axis."""
  if not config.plan.topology:
    return
  known, shape = topology.parse(config.plan.topology)
  size = math.prod(shape)
  shapes = (s for s in topology.shapes(known) if math.prod(s) > size)
  for bigger in itertools.islice(shapes, 2):
    name = f'{known.name}:{"x".join(map(str, bigger))}'
    yield {'plan.topology': name, 'parallel.data': 1, 'parallel.fsdp': -1}


def apply(
  config: config_lib.Config, changes: dict[str, Any]
) -> config_lib.Config:
  """The config with `section.field` replaced.

  Raises:
    ConfigError: the values contradict each other.
  """
  sections: dict[str, dict[str, Any]] = {}
  for path, value in changes.items():
    section, field = path.split('.')
    sections.setdefault(section, {})[field] = value
  return dataclasses.replace(
    config,
    **{
      name: dataclasses.replace(getattr(config, name), **values)
      for name, values in sections.items()
    },
  )


def spell(suggestions: list[dict[str, Any]]) -> str:
  """The suggestions as lines of text."""
  if not suggestions:
    return 'no single change that was tried fits; use more devices'
  lines = ['these fit (compiled):']
  lines += [
    f'  {entry["flags"]}  {entry["bytes_per_device"] / 2**30:,.2f} GiB'
    for entry in suggestions
  ]
  return '\n'.join(lines)
