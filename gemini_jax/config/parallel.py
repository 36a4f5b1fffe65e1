"""Devices along each axis of the mesh."""

from typing import Annotated, Literal

from gemini_jax.config import schema

AXES = ('data', 'fsdp', 'tensor', 'sequence', 'expert', 'pipeline')

# Devices along an axis.
Devices = Annotated[int, schema.Range(1, rest=True, cap=2**20)]


@schema.section('parallel')
class Parallel:
  """Devices along each axis of the mesh; one of them may be -1: the rest."""

  # Copies of the parameters; each reads its share of the batch.
  data: Devices = -1
  # Parts of every parameter, along its width; the batch is split as well.
  fsdp: Devices = 1
  # Parts of the heads, of the hidden units and of the vocabulary.
  tensor: Devices = 1
  # Parts of the sequences.
  sequence: Devices = 1
  # Parts of the experts.
  expert: Devices = 1
  # Parts of the layers: stages that microbatches go through one by one.
  pipeline: Devices = 1
  # Groups of devices with a slower network (DCN) between them than inside,
  # such as the slices of a multi-slice TPU job.
  slices: schema.Size = 1
  # The axis whose outer part goes across the slices.
  slice_axis: Literal['data', 'fsdp', 'pipeline'] = 'data'
  # Microbatches of a batch; None: as many as stages. The more there are, the
  # less the stages wait: of R M + S - 1 iterations, S - 1.
  microbatches: schema.Size | None = None
  # Times R that a microbatch goes round the stages, each time through other
  # layers (circular); 1: once (GPipe). More need model.remat.
  pipeline_repeats: schema.Layers = 1

  def __post_init__(self):
    free = [name for name, size in self.sizes.items() if size == -1]
    schema.check(len(free) <= 1, f'parallel: only one of {free} can be -1')

  @property
  def sizes(self) -> dict[str, int]:
    """Devices along each axis, in the order of AXES."""
    return {axis: getattr(self, axis) for axis in AXES}
