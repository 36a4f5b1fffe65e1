"""The schedule of a pipeline, and whether layers and batches split as it says.

M microbatches, S stages, R repeats. What follows it is in `stages`.
"""

import dataclasses
import math

import jax
from jax.sharding import AbstractMesh, Mesh

from gemini_jax import config as config_lib
from gemini_jax.parallel import sharding

AXIS = 'pipeline'


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How batches are cut into microbatches and layers into chunks.

  The number of stages S is the size of the mesh's pipeline axis. A stage is
  idle in S - 1 of the R M + S - 1 iterations.

  Attributes:
    microbatches: M; None: as many as stages.
    repeats: R; stage s runs the chunks s, s + S, s + 2 S, ... of R S.
    in_stages: False: the microbatches go through the layers one by one, without
      stages. The numbers are the same; it is slow, but runs without
      compilation, which the diagnosis of a step that is not finite needs.
  """

  microbatches: int | None = None
  repeats: int = 1
  in_stages: bool = True

  def count(self, num_stages: int) -> int:
    """M, which is S where none is given."""
    return self.microbatches or num_stages


def make_schedule(parallel: config_lib.Parallel) -> Schedule:
  """The schedule that a config asks for."""
  return Schedule(parallel.microbatches, parallel.pipeline_repeats)


def check(config: config_lib.Config, mesh: Mesh):
  """Checks that layers and batches split as the schedule wants.

  Raises:
    ConfigError: they do not.
  """
  num_stages = num_stages_of(mesh)
  if num_stages == 1:
    return
  schedule, model = make_schedule(config.parallel), config.model
  num, repeats = schedule.count(num_stages), schedule.repeats
  config_lib.check(
    repeats == 1 or num >= num_stages,
    f'parallel.microbatches={num} must be at least parallel.pipeline='
    f'{num_stages} when parallel.pipeline_repeats={repeats} is above 1',
  )
  config_lib.check(
    repeats == 1 or model.remat,
    f'parallel.pipeline_repeats={repeats} needs model.remat=True: without it '
    'each iteration would keep the parameters that it used',
  )
  for field, num_layers, pattern in (
    ('model.num_layers', model.num_layers, model.attention_pattern),
    ('model.num_encoder_layers', model.encoder_layers, model.attention_pattern),
    ('model.image.num_layers', model.image.num_layers, ('global',)),
    ('model.audio.num_layers', model.audio.num_layers, ('global',)),
  ):
    config_lib.check(
      num_layers % (num_stages * repeats) == 0,
      f'{field}={num_layers} must be a multiple of parallel.pipeline '
      f'({num_stages}) * parallel.pipeline_repeats ({repeats}) = '
      f'{num_stages * repeats}',
    )
    size, period = num_layers // num_stages, len(pattern)
    config_lib.check(
      size // repeats % period == 0,
      f'model.attention_pattern has {period} layers, which must divide the '
      f'{size // repeats} consecutive layers of a stage ({field}={num_layers}, '
      f'parallel.pipeline={num_stages}, parallel.pipeline_repeats={repeats})',
    )
  axes = [('parallel.microbatches', num)] + [
    (f'parallel.{axis}', mesh.shape[axis])
    for axis in dict(sharding.RULES)['batch']
    if mesh.shape[axis] > 1
  ]
  parts = config.optimizer.accumulation_steps
  accumulated = [('optimizer.accumulation_steps', parts)] if parts > 1 else []
  for field, size, factors in (
    ('data.batch_size', config.data.batch_size, accumulated + axes),
    (
      'evaluate.batch_size',
      config.evaluate.batch_size or config.data.batch_size,
      axes,
    ),
  ):
    multiple = math.prod(value for _, value in factors)
    config_lib.check(
      size % multiple == 0,
      f'{field}={size} must be a multiple of '
      f'{" * ".join(f"{name} ({value})" for name, value in factors)} = '
      f'{multiple}',
    )


def splits(schedule: Schedule, num_rows: int) -> bool:
  """Whether the mesh in use has stages, and the rows make microbatches."""
  mesh = jax.sharding.get_abstract_mesh()
  num_stages = num_stages_of(mesh)
  if num_stages == 1:
    return False
  parts = math.prod(mesh.shape[a] for a in dict(sharding.RULES)['batch'])
  return num_rows % (schedule.count(num_stages) * parts) == 0


def num_stages_of(mesh: AbstractMesh | Mesh) -> int:
  """S; 1 where no mesh is in use."""
  return 1 if mesh.empty else mesh.shape[AXIS]
