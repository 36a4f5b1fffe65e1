"""The section `parallel`: the sizes of the mesh axes."""

from typing import Annotated, Literal

from gemini_jax.config import schema

AXES = ('data', 'fsdp', 'tensor', 'sequence', 'expert', 'pipeline')

# Devices along an axis.
Devices = Annotated[int, schema.Range(1, rest=True, cap=2**20)]


@schema.section('parallel')
class Parallel:
  """Devices along each mesh axis; -1, for one of them: all remaining ones."""

  # Data parallelism: replicas of the parameters, each with a part of the batch.
  data: Devices = -1
  # Fully sharded data parallelism: parameters are sharded along the width, the
  # batch as well.
  fsdp: Devices = 1
  # Tensor parallelism: heads, hidden units and vocabulary are sharded.
  tensor: Devices = 1
  # Context parallelism: sequences are sharded along their length.
  sequence: Devices = 1
  # Expert parallelism: experts are sharded, the batch as well.
  expert: Devices = 1
  # Pipeline parallelism: stages of consecutive layers, which microbatches pass
  # one after another.
  pipeline: Devices = 1
  # Groups of devices that a slower network (DCN) connects, such as the slices
  # of a multi-slice TPU job.
  slices: schema.Size = 1
  # The mesh axis that spans the slices.
  slice_axis: Literal['data', 'fsdp', 'pipeline'] = 'data'
  # Pipeline microbatches M of a batch; None: as many as stages (S). More of
  # them make the bubble smaller: S - 1 of R M + S - 1 iterations, R being
  # pipeline_repeats.
  microbatches: schema.Size | None = None
  # Times R that a microbatch passes all stages, each time through other layers
  # (circular schedule); 1: GPipe. More than 1 needs model.remat.
  pipeline_repeats: schema.Layers = 1

  def __post_init__(self):
    free = [name for name, size in self.sizes.items() if size == -1]
    schema.check(len(free) <= 1, f'parallel: only one of {free} can be -1')

  @property
  def sizes(self) -> dict[str, int]:
    """Devices along each axis, in the order of AXES."""
    return {axis: getattr(self, axis) for axis in AXES}
